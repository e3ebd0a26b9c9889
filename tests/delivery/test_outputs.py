"""What stages left is held to what its readers need of it."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from reports import METRICS, REPORTS, UTILITY, write_report

from pipeline.delivery.outputs import read_report
from pipeline.errors import UserError


@pytest.mark.parametrize("path", REPORTS)
def test_a_whole_report_is_read_as_it_is(tmp_path: Path, path: Path) -> None:
    write_report(tmp_path, path)
    assert read_report(tmp_path, path) == REPORTS[path]


@pytest.mark.parametrize(
    ("path", "keys", "lacking"),
    [
        (METRICS["model"], ("protocol", 0, "generated"), r"protocol\[0\]\.generated"),
        (METRICS["synthetic"], ("protocol", 0, "real"), r"protocol\[0\]\.real"),
        (METRICS["synthetic"], ("memorization", "copies"), r"memorization\.copies"),
        (UTILITY, ("rows", 0, "accuracy"), r"rows\[0\]\.accuracy"),
        (UTILITY, ("rows", 0, "accuracy", "mixed", "mean"), r"rows\[0\]\.accuracy\.mixed\.mean"),
    ],
)
def test_what_a_reader_would_miss_is_named(
    tmp_path: Path, path: Path, keys: tuple[str | int, ...], lacking: str
) -> None:
    content: Any = deepcopy(REPORTS[path])
    *outer, last = keys
    inner = content
    for key in outer:
        inner = inner[key]
    del inner[last]
    write_report(tmp_path, path)
    (tmp_path / path).write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"^{tmp_path / path}: {lacking} is missing, empty or of another kind; needed"):
        read_report(tmp_path, path)
