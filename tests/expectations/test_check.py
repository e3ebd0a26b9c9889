"""A report is never vacuous, and the same manifest gives the same bytes."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from great_expectations import ExpectationSuite

from pipeline.expectations.check import check
from pipeline.expectations.suites import real_suite, with_counts
from pipeline.expectations.thresholds import Thresholds


def test_a_suite_without_expectations_fails(real: pd.DataFrame) -> None:
    report = check(real, ExpectationSuite(name="empty"))
    assert not report.success
    assert report.to_json()["expectations"] == {"evaluated": 0, "failed": 0}


def test_the_verdicts_stand_in_the_order_of_the_suite(real: pd.DataFrame, classes: tuple[str, ...]) -> None:
    suite = real_suite(Thresholds(), classes)
    report = check(with_counts(real, classes), suite)
    assert [verdict.expectation for verdict in report.verdicts] == [one.description for one in suite.expectations]


def test_the_same_manifest_gives_the_same_report_and_page(real: pd.DataFrame, classes: tuple[str, ...]) -> None:
    frame = with_counts(real.assign(mode="beige"), classes)
    assert check(frame, real_suite(Thresholds(), classes)) == check(frame, real_suite(Thresholds(), classes))


def test_the_page_shows_every_expectation_and_needs_nothing_from_elsewhere(
    real: pd.DataFrame, classes: tuple[str, ...]
) -> None:
    report = check(with_counts(real.assign(mode="beige"), classes), real_suite(Thresholds(), classes))
    text = " ".join(re.sub(r"<[^>]+>", " ", report.page).replace("&#39;", "'").split())
    assert [verdict.expectation for verdict in report.verdicts if verdict.expectation not in text] == []
    assert "Failed" in text
    assert re.findall(r"https?:|<script|<link|<img|src=|url\(|href=\"(?!#)", report.page) == []


def test_nothing_is_printed(real: pd.DataFrame, classes: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    check(with_counts(real, classes), real_suite(Thresholds(), classes))
    assert capfd.readouterr() == ("", "")
