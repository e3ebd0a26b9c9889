"""docs/faults.md: every test that it names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_test_that_the_list_of_faults_names_is_there() -> None:
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`", (ROOT / "docs/faults.md").read_text())
    assert len(named) >= 20
    missing = [(file, test) for file, test in named if f"\ndef {test}(" not in (ROOT / file).read_text()]
    assert missing == []
