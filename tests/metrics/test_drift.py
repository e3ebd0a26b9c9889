"""Drift of sets whose differences are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.imageset import ImageSet, Row, write_imageset
from pipeline.metrics.classifier import Classifier
from pipeline.metrics.drift import distances, drift


@pytest.fixture(scope="module")
def extractor() -> Classifier:
    torch.manual_seed(0)
    return Classifier(channels=1, image_size=8, classes=2, width=8).eval()


def noise(count: int, seed: int, brightness: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 100, (count, 1, 8, 8), dtype=np.uint8) + np.uint8(brightness)


def write_set(root: Path, counts: dict[str, tuple[int, int]], classes: tuple[str, ...] = ("a", "b")) -> ImageSet:
    rows = [
        Row(split=split, label=label, image=noise(1, 1000 * label + number)[0], path=f"{number}.png", provenance={})
        for split, of_class in counts.items()
        for label, count in enumerate(of_class)
        for number in range(count)
    ]
    source = {"kind": "made up", "licence": "CC0", "description": "noise"}
    return write_imageset(root, rows, classes=classes, source=source, resize=None, synthetic=False)


def test_the_same_kind_of_images_is_as_far_as_two_halves_of_them(extractor: Classifier) -> None:
    moved, floor = distances(noise(400, 1), noise(400, 2), extractor, seed=0)
    assert moved is not None
    assert floor is not None
    assert moved < 2 * floor


def test_brighter_images_are_farther(extractor: Classifier) -> None:
    moved, floor = distances(noise(400, 1), noise(400, 2, brightness=100), extractor, seed=0)
    assert moved is not None
    assert floor is not None
    assert moved > 20 * floor


def test_too_few_images_have_no_distance(extractor: Classifier) -> None:
    few = 2 * extractor.dimensions
    assert distances(noise(few, 1), noise(400, 2), extractor, seed=0) == (None, None)


def test_balance_is_the_total_variation_distance_of_the_classes(
    extractor: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))
    before = write_set(tmp_path / "before", {"train": (6, 2), "test": (1, 1)})
    now = write_set(tmp_path / "now", {"train": (4, 4, 8)}, classes=("a", "b", "c"))
    found = drift(before, now, extractor)
    assert found.images == {"train": (8, 16), "test": (2, 0)}
    assert found.shares == {"a": (0.7, 0.25), "b": (0.3, 0.25), "c": (0.0, 0.5)}
    assert found.balance == pytest.approx(0.5)
    assert found.features is None
