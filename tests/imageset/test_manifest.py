from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.imageset import ImageSet, Row
from pipeline.imageset.layout import content_hash
from pipeline.imageset.manifest import write_manifest

Rows = Callable[..., Iterator[Row]]
Write = Callable[..., ImageSet]


def test_one_row_for_each_image_with_what_is_known_of_it(write: Write, rows: Rows, tmp_path: Path) -> None:
    write_manifest(tmp_path / "manifest.parquet", write())
    found = {row["path"]: row for row in pq.read_table(tmp_path / "manifest.parquet").to_pylist()}
    assert len(found) == 60
    for row in rows():
        expected = {
            "split": row.split,
            "label": row.label,
            "class_name": ("ant", "bee", "ćma")[row.label],
            "path": row.path,
            "content": content_hash(row.image),
            "mean": pytest.approx(row.image.mean()),
            "std": pytest.approx(row.image.std()),
            **row.provenance,
        }
        assert found[row.path] == expected
        assert list(found[row.path]) == list(expected)


def test_an_even_image_has_no_spread(write: Write, tmp_path: Path) -> None:
    images = [np.full((1, 4, 4), value, np.uint8) for value in (0, 200, 255)]
    write_manifest(
        tmp_path / "manifest.parquet",
        write([Row(split="train", label=0, image=image, path="", provenance={}) for image in images]),
    )
    table = pq.read_table(tmp_path / "manifest.parquet")
    assert table["mean"].to_pylist() == [0.0, 200.0, 255.0]
    assert table["std"].to_pylist() == [0.0, 0.0, 0.0]


def test_a_provenance_column_called_content_is_the_same_column(write: Write, rows: Rows, tmp_path: Path) -> None:
    named = (replace(row, provenance={"content": content_hash(row.image)}) for row in rows())
    write_manifest(tmp_path / "manifest.parquet", write(named))
    names = pq.read_schema(tmp_path / "manifest.parquet").names
    assert names == ["split", "label", "class_name", "path", "content", "mean", "std"]


def test_it_is_the_same_bytes_each_time(write: Write, tmp_path: Path) -> None:
    imageset = write()
    for name in ("one", "two"):
        write_manifest(tmp_path / name, imageset)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
