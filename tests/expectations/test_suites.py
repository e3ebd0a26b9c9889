"""Each fault in a manifest fails the expectation that is about it, with what was found, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from pipeline.expectations.check import check
from pipeline.expectations.suites import real_suite, synthetic_suite, with_counts
from pipeline.expectations.thresholds import Thresholds

THRESHOLDS = Thresholds(min_images=60, min_images_per_class=5, max_constant_fraction=0.05, min_confidence=0.6)
Damage = Callable[[pd.DataFrame], pd.DataFrame]


def put(rows: int | list[int], **values: object) -> Damage:
    def damage(frame: pd.DataFrame) -> pd.DataFrame:
        for column, value in values.items():
            if value is None:
                frame[column] = frame[column].astype("object")
            frame.loc[rows, column] = value
        return frame

    return damage


def test_a_good_real_manifest_meets_every_expectation(real: pd.DataFrame, classes: tuple[str, ...]) -> None:
    report = check(with_counts(real, classes), real_suite(THRESHOLDS, classes))
    assert report.failed == ()
    assert report.success


def test_a_good_synthetic_manifest_meets_every_expectation(synthetic: pd.DataFrame, classes: tuple[str, ...]) -> None:
    report = check(with_counts(synthetic, classes), synthetic_suite(THRESHOLDS, classes))
    assert report.failed == ()
    assert report.success


def test_classes_of_other_sizes_are_as_good_where_they_are_wanted(
    synthetic: pd.DataFrame, classes: tuple[str, ...]
) -> None:
    suite = synthetic_suite(THRESHOLDS, classes, balanced=False)
    assert check(with_counts(synthetic[:-1], classes), suite).success


BOTH: dict[str, tuple[Damage, dict[str, str]]] = {
    "too few": (lambda frame: frame[:54], {"there are at least 60 images": "54"}),
    "class without images in a split": (
        lambda frame: frame[(frame["split"] != "train") | (frame["label"] != 2)],
        {"every split has all 3 classes": "2"},
    ),
    "small class": (
        lambda frame: frame.drop(frame[(frame["split"] == "train") & (frame["label"] == 1)].index[4:]),
        {"every class has at least 5 images in every split": "4"},
    ),
    "label outside": (
        put(4, label=3),
        {
            "labels are 0 to 2": "1 of {rows} rows: 4.png (label 3)",
            "every class has at least 5 images in every split": "1",
            "class_name is the name of the label's class": (
                "1 of {rows} rows: 4.png (class_name bee, class_of_label None)"
            ),
        },
    ),
    "wrong name": (
        put(3, class_name="bee"),
        {"class_name is the name of the label's class": "1 of {rows} rows: 3.png (class_name bee, class_of_label ant)"},
    ),
    "null": (
        put([7, 8], mean=None),
        {"mean is never null": "2 of {rows} rows: 7.png (mean None), 8.png (mean None)"},
    ),
    "same path": (put(5, path="6.png"), {"no path is there twice": "2 of {rows} rows: 6.png, 6.png"}),
    "values that cannot be": (
        put(5, content="c0ffee", mean=255.5),
        {
            "content is a hex sha256": "1 of {rows} rows: 5.png (content c0ffee)",
            "the mean of the pixels is 0 to 255": "1 of {rows} rows: 5.png (mean 255.5)",
        },
    ),
    "constant images": (
        put(list(range(12)), std=0.0),
        {
            "at most 5.0% of the images are of one shade": (
                "12 of {rows} rows: 0.png (std 0.0), 1.png (std 0.0), 2.png (std 0.0), …"
            )
        },
    ),
}

REAL: dict[str, tuple[Damage, dict[str, str]]] = {
    "leak": (
        put(3, content=f"{0:064x}"),
        {"no picture is in two splits": "2 of 180 rows: 0.png (splits_of_content 2), 3.png (splits_of_content 2)"},
    ),
    "split missing": (
        lambda frame: frame[frame["split"] != "test"],
        {"the splits are train, validation and test": "missing test"},
    ),
    "an original that cannot be": (
        put(0, width=0, mode="beige"),
        {
            "the original width is 1 to 65,535 pixels": "1 of 180 rows: 0.png (width 0)",
            "the original mode is one of Pillow's": "1 of 180 rows: 0.png (mode beige)",
        },
    ),
}

SYNTHETIC: dict[str, tuple[Damage, dict[str, str]]] = {
    "unbalanced": (lambda frame: frame[:-1], {"all classes have the same size": "2"}),
    "other split": (
        lambda frame: frame.assign(split=np.where(frame.index < 75, "train", "test")),
        {"the only split is train": "found also test"},
    ),
    "same picture": (
        lambda frame: frame.assign(content=["0" * 64, *["0" * 64], *frame["content"][2:]]),
        {"no picture is there twice": "2 of 150 rows: 0.png (content {zeros}), 1.png (content {zeros})"},
    ),
    "same index": (
        put(1, index=0),
        {"no sample's index is there twice": "2 of 150 rows: 0.png (index 0), 1.png (index 0)"},
    ),
    "unsure": (
        put(2, confidence=0.5),
        {"the filter's confidence in the class is 0.6 to 1": "1 of 150 rows: 2.png (confidence 0.5)"},
    ),
    "copy": (
        put(2, nearest_distance=0.0),
        {"no picture is a copy of a training image": "1 of 150 rows: 2.png (nearest_distance 0.0)"},
    ),
    "from two drawings": (
        put(2, seed=4, spread=1.0),
        {"one seed for all images": "2", "one spread for all images": "2"},
    ),
}


@pytest.mark.parametrize("fault", [*BOTH, *REAL])
def test_a_fault_in_a_real_manifest_is_found(real: pd.DataFrame, classes: tuple[str, ...], fault: str) -> None:
    damage, expected = (BOTH | REAL)[fault]
    frame = damage(real)
    report = check(with_counts(frame, classes), real_suite(THRESHOLDS, classes))
    found = {verdict.expectation: verdict.observed for verdict in report.failed}
    assert found == {name: text.format(rows=len(frame)) for name, text in expected.items()}
    assert not report.success


@pytest.mark.parametrize("fault", SYNTHETIC)
def test_a_fault_in_a_synthetic_manifest_is_found(
    synthetic: pd.DataFrame, classes: tuple[str, ...], fault: str
) -> None:
    damage, expected = SYNTHETIC[fault]
    report = check(with_counts(damage(synthetic), classes), synthetic_suite(THRESHOLDS, classes))
    found = {verdict.expectation: verdict.observed for verdict in report.failed}
    assert found == {name: text.format(zeros="0" * 64) for name, text in expected.items()}


def test_an_empty_manifest_fails(real: pd.DataFrame, classes: tuple[str, ...]) -> None:
    report = check(with_counts(real[:0], classes), real_suite(THRESHOLDS, classes))
    assert report.failed[0].expectation == "there are at least 60 images"
    assert report.failed[0].observed == "0"


@pytest.mark.parametrize("column", ["label", "content", "path", "std", "mode"])
def test_a_column_of_nulls_fails(real: pd.DataFrame, classes: tuple[str, ...], column: str) -> None:
    frame = real.assign(**{column: None})
    report = check(with_counts(frame, classes), real_suite(THRESHOLDS, classes))
    assert f"{column} is never null" in [verdict.expectation for verdict in report.failed]


@pytest.mark.parametrize("column", ["label", "width"])
def test_a_missing_column_fails_and_is_named(real: pd.DataFrame, classes: tuple[str, ...], column: str) -> None:
    frame = real.drop(columns=column)
    report = check(with_counts(frame, classes), real_suite(THRESHOLDS, classes))
    assert report.failed[0].observed == f"missing {column}"
    assert f'The column "{column}" in BatchData does not exist.' in [verdict.observed for verdict in report.failed]


@pytest.mark.parametrize(
    ("field", "value"),
    [("min_images", 0), ("min_images_per_class", 0), ("max_constant_fraction", 1.5), ("min_confidence", -0.1)],
)
def test_thresholds_that_make_no_sense_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{field} is {value}; needed"):
        Thresholds(**{field: value})
