"""Tables as CSV, for `dvc plots` and for whatever else reads such files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows under the names of all their columns, in the order in which these first occur.

    Empty is what a row does not have, None, and what is not a number.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(chain.from_iterable(rows))), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value != value else value for name, value in row.items()} for row in rows)  # NaN
    return text.getvalue()
