"""A small ImageSet to read, damage and compare, and a decode cache of each test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.imageset import ImageSet, Row, write_imageset

CLASSES = ("ant", "bee", "ćma")


def some_rows(count: int = 60, *, channels: int = 3, size: int = 8, seed: int = 0) -> Iterator[Row]:
    """Two thirds train, of three classes in turn; every image another."""
    random = np.random.default_rng(seed)
    for i in range(count):
        yield Row(
            split=("train", "train", "train", "train", "test", "validation")[i % 6],
            label=(i * 7 + i // 6) % 3,
            image=random.integers(0, 256, (channels, size, size), dtype=np.uint8),
            path=f"raw/{i}.jpg",
            provenance={"mode": "RGB", "width": 100 + i, "ratio": i / 2},
        )


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def rows() -> Callable[..., Iterator[Row]]:
    return some_rows


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., ImageSet]:
    """Write `rows` as tmp_path/name, with settings that a test need not care about."""

    def write(rows: Any = None, name: str = "set", **settings: Any) -> ImageSet:
        settings = {
            "classes": CLASSES,
            "source": {"kind": "made up", "licence": "CC0", "images": 60, "share": 0.5, "versioned": True},
            "resize": "lanczos",
            "synthetic": False,
            "shard_images": 30,
        } | settings
        return write_imageset(tmp_path / name, some_rows() if rows is None else rows, **settings)

    return write
