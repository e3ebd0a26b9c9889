"""What is expected of a manifest: one suite for real images, one for synthetic ones.

Each expectation has a sentence that says what holds when it is met: Data Docs, the report and a failure all show it.
Great Expectations passes every column expectation on an empty frame or an all-null column, so both suites begin with
the row count, the columns and not-null.
"""

from __future__ import annotations

from collections.abc import Sequence

import great_expectations.expectations as gxe
import pandas as pd
from great_expectations import ExpectationSuite

from pipeline.expectations.thresholds import Thresholds

# What Pillow can open; a pixel array is "L" or "RGB".
MODES = (
    *("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"),
    *("I", "F", "I;16", "I;16L", "I;16B", "I;16N"),
)
MAX_SIDE = 65_535  # pixels

_COMMON = ("split", "label", "class_name", "path", "content", "mean", "std")
_REAL = (*_COMMON, "width", "height", "mode")
_SYNTHETIC = (*_COMMON, "seed", "index", "spread", "confidence", "nearest_distance")


def with_counts(manifest: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """The manifest with what the rows say together, as columns, so that an expectation can name the rows at fault.

    images_of_class, images_of_class_in_split, classes_in_split, splits_of_content: whole numbers; class_of_label: the
    name that the label stands for, null when it stands for none.
    """
    if not {"split", "label", "content"} <= set(manifest.columns):
        return manifest  # the expectation about columns fails and names them
    return manifest.assign(
        class_of_label=manifest["label"].map(dict(enumerate(classes))),
        images_of_class=manifest.groupby("label", dropna=False)["label"].transform("size"),
        images_of_class_in_split=manifest.groupby(["split", "label"], dropna=False)["label"].transform("size"),
        classes_in_split=manifest.groupby("split", dropna=False)["label"].transform("nunique"),
        splits_of_content=manifest.groupby("content", dropna=False)["split"].transform("nunique"),
    )


def real_suite(thresholds: Thresholds, classes: Sequence[str]) -> ExpectationSuite:
    """Of real images: enough of them in every class and split, no picture in two splits, sane sizes and modes."""
    return ExpectationSuite(
        name="real",
        expectations=[
            *_first(thresholds, _REAL),
            gxe.ExpectColumnDistinctValuesToEqualSet(
                column="split",
                value_set=["train", "validation", "test"],
                description="the splits are train, validation and test",
            ),
            *_labels(thresholds, classes),
            *_pixels(thresholds),
            gxe.ExpectColumnValuesToBeInSet(
                column="splits_of_content", value_set=[1], description="no picture is in two splits"
            ),
            *[
                gxe.ExpectColumnValuesToBeBetween(
                    column=side,
                    min_value=1,
                    max_value=MAX_SIDE,
                    description=f"the original {side} is 1 to {MAX_SIDE:,} pixels",
                )
                for side in ("width", "height")
            ],
            gxe.ExpectColumnValuesToBeInSet(
                column="mode",
                value_set=MODES,
                description="the original mode is one of Pillow's",
            ),
        ],
    )


def synthetic_suite(thresholds: Thresholds, classes: Sequence[str], *, balanced: bool = True) -> ExpectationSuite:
    """Of synthetic images: no picture twice, none unsure or copied, one seed and spread; classes of equal size where
    `balanced`.
    """
    equal = gxe.ExpectColumnUniqueValueCountToBeBetween(
        column="images_of_class", min_value=1, max_value=1, description="all classes have the same size"
    )
    return ExpectationSuite(
        name="synthetic",
        expectations=[
            *_first(thresholds, _SYNTHETIC),
            gxe.ExpectColumnDistinctValuesToEqualSet(
                column="split", value_set=["train"], description="the only split is train"
            ),
            *_labels(thresholds, classes),
            *([equal] if balanced else []),
            *_pixels(thresholds),
            gxe.ExpectColumnValuesToBeUnique(column="content", description="no picture is there twice"),
            gxe.ExpectColumnValuesToBeUnique(column="index", description="no sample's index is there twice"),
            gxe.ExpectColumnValuesToBeBetween(
                column="confidence",
                min_value=thresholds.min_confidence,
                max_value=1,
                description=f"the filter's confidence in the class is {thresholds.min_confidence:g} to 1",
            ),
            gxe.ExpectColumnValuesToBeBetween(
                column="nearest_distance",
                min_value=0,
                strict_min=True,
                description="no picture is a copy of a training image",
            ),
            *[
                gxe.ExpectColumnUniqueValueCountToBeBetween(
                    column=column, min_value=1, max_value=1, description=f"one {column} for all images"
                )
                for column in ("seed", "spread")
            ],
        ],
    )


def _first(thresholds: Thresholds, columns: Sequence[str]) -> list[gxe.Expectation]:
    return [
        gxe.ExpectTableRowCountToBeBetween(
            min_value=thresholds.min_images, description=f"there are at least {thresholds.min_images:,} images"
        ),
        gxe.ExpectTableColumnsToMatchSet(
            column_set=columns, exact_match=False, description=f"the columns {', '.join(columns)} are there"
        ),
        *[gxe.ExpectColumnValuesToNotBeNull(column=name, description=f"{name} is never null") for name in columns],
    ]


def _labels(thresholds: Thresholds, classes: Sequence[str]) -> list[gxe.Expectation]:
    count, smallest = len(classes), thresholds.min_images_per_class
    return [
        gxe.ExpectColumnValuesToBeBetween(
            column="label", min_value=0, max_value=count - 1, description=f"labels are 0 to {count - 1}"
        ),
        gxe.ExpectColumnMinToBeBetween(
            column="classes_in_split", min_value=count, description=f"every split has all {count} classes"
        ),
        gxe.ExpectColumnMinToBeBetween(
            column="images_of_class_in_split",
            min_value=smallest,
            description=f"every class has at least {smallest} images in every split",
        ),
        gxe.ExpectColumnPairValuesToBeEqual(
            column_A="class_name",
            column_B="class_of_label",
            ignore_row_if="neither",
            description="class_name is the name of the label's class",
        ),
    ]


def _pixels(thresholds: Thresholds) -> list[gxe.Expectation]:
    return [
        gxe.ExpectColumnValuesToBeUnique(column="path", description="no path is there twice"),
        gxe.ExpectColumnValuesToMatchRegex(
            column="content", regex="^[0-9a-f]{64}$", description="content is a hex sha256"
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="mean", min_value=0, max_value=255, description="the mean of the pixels is 0 to 255"
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="std",
            min_value=0,
            strict_min=True,
            mostly=1 - thresholds.max_constant_fraction,
            description=f"at most {thresholds.max_constant_fraction:.1%} of the images are of one shade",
        ),
    ]
