"""Rows of several generators make one; the study itself is a real one in tests/test_pipeline.py."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flows.study import Study, _table, over_generators
from pipeline.report.utility import draw
from pipeline.stages.utility import table


def interval(mean: float, half: float = 0.1) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def row(
    gain: float, *, over_real: float | None = None, advised: float = 0.0, rare: float | None = None
) -> dict[str, Any]:
    """As of utility.json, of a set that gains so much, as said by its classifiers."""
    found = {
        "data": "5 %",
        "data_fraction": 0.05,
        "protocol": "same-data",
        "real_images": 58,
        "verdict": "helps",
        "sentence": "of this set only",
        "gain_over_real": interval(gain if over_real is None else over_real),
        "gain_over_real_long": interval(gain),
        "accuracy": {arm: interval(90 + gain) for arm in ("real", "real_long", "mixed", "synthetic")},
        "advised_share": advised,
    }
    if rare is not None:
        baselines = ("real", "real_long", "oversampled", "weighted")
        found["rare"] = {
            "images": {"8": 3},
            "verdict": "helps",
            "recall_gain": {arm: interval(rare) for arm in baselines},
            "balanced_accuracy_gain": {arm: interval(0.0) for arm in baselines},
            "recall": {arm: interval(80 + rare) for arm in (*baselines, "filled")},
            "balanced_accuracy": {arm: interval(90) for arm in (*baselines, "filled")},
        }
    return found


def test_the_interval_of_several_generators_is_over_their_own_means() -> None:
    """Of 1, 2 and 3: 2 with t(0.975, 2) · 1 / √3 to either side, however small the intervals of each."""
    found = over_generators([row(1.0), row(2.0), row(3.0)])
    half = 4.302653 / 3**0.5
    assert found["gain_over_real_long"] == pytest.approx({"mean": 2, "low": 2 - half, "high": 2 + half}, abs=1e-4)
    assert found["accuracy"]["mixed"]["mean"] == 92
    assert (found["data"], found["real_images"], found["verdict"]) == ("5 %", 58, "makes no difference")
    assert "sentence" not in found


def test_one_generator_stands_for_itself() -> None:
    alone = row(1.0)
    assert over_generators([alone]) is alone


@pytest.mark.parametrize(
    ("gains", "over_real", "verdict"),
    [((1.0, 1.1, 0.9), 1.0, "helps"), ((1.0, 1.1, 0.9), -1.0, "harms"), ((-1.0, -1.1, -0.9), 1.0, "harms")],
)
def test_the_verdict_is_that_of_both_gains(gains: Sequence[float], over_real: float, verdict: str) -> None:
    sets = [row(gain, over_real=over_real + gain / 100) for gain in gains]
    assert over_generators(sets)["verdict"] == verdict


def test_rare_classes_have_a_verdict_over_generators_too() -> None:
    helps, unsure = (over_generators([row(0.0, rare=gain) for gain in gains]) for gains in ((3.0, 3.1), (3.0, -3.0)))
    assert (helps["rare"]["verdict"], unsure["rare"]["verdict"]) == ("helps", "makes no difference")
    assert helps["rare"]["images"] == {"8": 3}
    assert helps["rare"]["recall"]["filled"]["mean"] == pytest.approx(83.05)


def test_what_a_study_shows_of_several_generators(tmp_path: Path) -> None:
    """Each set's gain, marked where its card advises to mix it in; the table of it and the picture have the mean."""
    sets = [row(0.5, advised=0.25, rare=3.0), row(-0.25, rare=2.0)]
    found = Study(sets=[sets])
    shown = str(_table(found, seeds=10).caption).splitlines()
    assert shown[0].endswith("over the generators, whose sets gain, * where the card advises to mix it in:")
    assert shown[1:] == ["58 (5 %): +0.50* -0.25"]
    (line,) = csv.DictReader(table(found.rows).splitlines())
    assert float(line["gain_over_real_long"]) == 0.125
    draw(tmp_path / "study.png", found.rows, found.sets)
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")
