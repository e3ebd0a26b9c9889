"""Tables: what is written is read back, whatever is lacking."""

from __future__ import annotations

import csv
import io
import math

import pytest

from pipeline.report.tables import to_csv


def test_rows_may_have_other_columns_and_nothing_is_empty() -> None:
    text = to_csv([{"a": 1, "b": None}, {"a": math.nan, "c": 0.5}])
    assert text == "a,b,c\n1,,\n,,0.5\n"


@pytest.mark.parametrize("name", ["a,b", 'say "a"', "two\nlines", "Ü"])
def test_any_text_comes_back(name: str) -> None:
    assert list(csv.DictReader(io.StringIO(to_csv([{"class": name}]), newline=""))) == [{"class": name}]
