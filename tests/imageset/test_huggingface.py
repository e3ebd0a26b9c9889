"""A set is read by the `datasets` library alone, without us."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.imageset import ImageSet, Row

Load = Callable[..., Any]
Rows = Callable[..., Iterator[Row]]
Write = Callable[..., ImageSet]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    return lambda *arguments, **settings: datasets.load_dataset(
        *arguments, cache_dir=str(tmp_path / "huggingface"), **settings
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("by_folder", [True, False])
def test_images_class_names_and_splits(write: Write, rows: Rows, load: Load, channels: int, by_folder: bool) -> None:
    imageset = write(rows(channels=channels))
    files = {
        split: [str(imageset.root / shard.path) for shard in imageset.shards_of(split)] for split in imageset.counts
    }
    loaded = load(str(imageset.root)) if by_folder else load("parquet", data_files=files)
    assert set(loaded) == {"train", "validation", "test"}
    for split in imageset.counts:
        images, labels = imageset.arrays(split)
        found = loaded[split]
        assert found.features["label"].names == ["ant", "bee", "ćma"]
        assert found.column_names == ["image", "label", "mode", "width", "ratio"]
        assert found["label"] == labels.tolist()
        for expected, row in zip(images, found, strict=True):
            assert row["image"].mode == ("L" if channels == 1 else "RGB")
            assert np.array_equal(np.atleast_3d(np.asarray(row["image"])).transpose(2, 0, 1), expected)


def test_a_set_of_one_shard_is_found_beside_its_json(write: Write, rows: Rows, load: Load) -> None:
    imageset = write(replace(row, split="train") for row in rows(20))
    assert len(imageset.shards) == 1
    assert {split: len(found) for split, found in load(str(imageset.root)).items()} == {"train": 20}


def test_a_stream_mixes_the_classes(write: Write, rows: Rows, load: Load) -> None:
    imageset = write(rows(1200), shard_images=10_000)
    stream = load(str(imageset.root), split="train", streaming=True)
    labels = [row["label"] for row in stream.shuffle(seed=0, buffer_size=300).take(60)]
    assert min(labels.count(label) for label in range(3)) >= 5
