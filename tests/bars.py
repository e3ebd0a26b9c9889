"""Images that tests judge: a bright bar whose height is the class, in noise that can be more or less."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.imageset import ImageSet, Row, write_imageset

CLASSES = ("low", "middle", "high")


def bars(count: int, seed: int, noise: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Noisy 8×8 images with a bright bar at the height of their class, and their classes in turn."""
    images = np.random.default_rng(seed).integers(0, noise, (count, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(count) % 3
    for image, label in zip(images, labels, strict=True):
        image[0, 1 + 2 * label : 3 + 2 * label] += 150
    return images, labels


def write_set(root: Path, parts: dict[str, tuple[np.ndarray, np.ndarray]], *, synthetic: bool) -> ImageSet:
    """An ImageSet of bars; `parts` are images and labels by split."""
    rows = [
        Row(split=split, label=int(label), image=image, path=f"{split}-{number}.png", provenance={})
        for split, (images, labels) in parts.items()
        for number, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    source = {"kind": "made up", "licence": "CC0", "description": "bars"}
    return write_imageset(root, rows, classes=CLASSES, source=source, resize=None, synthetic=synthetic)
