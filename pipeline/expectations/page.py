"""The page that Great Expectations renders, made self-contained and the same at every run.

As rendered, Data Docs load their styles, icons and scripts from content delivery networks, so that a machine without
internet shows bare text and an empty index; and they carry times and random ids, so that no two runs write equal bytes.
"""

from __future__ import annotations

import re
from itertools import count

_REMOVED = (
    r"<script\b.*?</script>",
    r"<style\b.*?</style>",  # for other sheets that are gone as well
    r"<link\b[^>]*>",
    r"<img\b[^>]*>",
    r"<footer\b.*?</footer>",  # an advertisement
    r'\sonclick="[^"]*"',
    r"Data asset: None<br>",
    r"<tr>(?:(?!</tr>).)*(?:Run Time|Run Name|ge_load_time)(?:(?!</tr>).)*</tr>",
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
)
_LINK_UP = r'<a href="\.\./[^"]*"\s*>(.*?)</a>'  # to pages that only hold what this one holds
_BREADCRUMBS = r"<ol\b.*?</ol>"
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0; }
.container-fluid > .row { display: flex; gap: 2rem; flex-wrap: wrap; padding: 1rem 2rem; }
.container-fluid > .row > .col-lg-2 { flex: 0 0 13rem; }
.container-fluid > .row > .col-lg-10 { flex: 1 1 32rem; min-width: 0; }
.container-fluid.ge-section > .row { display: block; padding: 0 0 1rem; }
.navbar-expand-md { display: none; }
.table { width: 100%; max-width: 60rem; } .table > * > tr > :first-child { width: 4rem; }
.table > * > tr > :last-child { width: 16rem; }
h4, h5, h6, p { margin: .2rem 0; }
h4 { font-size: 1.3rem; } h5 { font-size: 1.1rem; } h6 { font-size: .95rem; } .h6 { font-weight: 600; }
.alert { background: #8882; border-radius: 6px; padding: .5rem .8rem; }
.card { border: 1px solid #8884; border-radius: 6px; margin-bottom: 1rem; }
.card > * { padding: .4rem .8rem; } .card-header { background: #8882; }
.nav { list-style: none; margin: 0; padding: 0; }
a { color: #2b6cb0; text-decoration: none; }
table { border-collapse: collapse; margin: .5rem 0; }
td, th { border-bottom: 1px solid #8884; padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; }
.badge { background: #8883; border-radius: 4px; padding: 0 .3rem; }
.text-success, .text-success::before { color: #2f855a; } .text-danger, .text-danger::before { color: #c53030; }
.fa-check-circle::before { content: "✓"; font-weight: 700; font-style: normal; }
.fa-times::before, .fa-exclamation-triangle::before { content: "✗"; font-weight: 700; font-style: normal; }
.collapse:not(:target) { display: none; }
body:has(#option2:checked) tr:has(.hide-succeeded-validation-target-child),
body:has(#option2:checked) .hide-succeeded-validation-target { display: none; }
"""


def self_contained(html: str) -> str:
    """The page without scripts, times, random ids and anything that must be fetched; filter and details still work."""
    for pattern in (*_REMOVED, _BREADCRUMBS):
        html = re.sub(pattern, "", html, flags=re.DOTALL)
    html = re.sub(_LINK_UP, r"\1", html, flags=re.DOTALL)
    numbers = count(1)
    names: dict[str, str] = {}
    html = re.sub(_UUID, lambda found: names.setdefault(found[0], f"part-{next(numbers)}"), html)
    return html.replace("</head>", f"<style>{_STYLE}</style>\n</head>", 1)
