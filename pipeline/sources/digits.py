"""The 1,797 handwritten digits that come inside scikit-learn: 8×8, grayscale, no network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import FailedError
from pipeline.sources.source import RawImage, Reading

_CLASSES = tuple("0123456789")
# The data have never changed: to name them costs nothing, to load them takes scikit-learn, seconds.
_INVENTORY = {
    "kind": "digits",
    "images": 1797,
    "sha256": "a19cb3d96bba7deace8ee5a513a6eb7bad0403d528f00bf4d351b6a7a55baa91",
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """The digits have no settings."""


class Source:
    """Values 0 to 16 become 0 to 255. The data name no splits."""

    name = "digits"
    about: Mapping[str, str] = {
        "kind": "digits",
        "licence": "cc-by-4.0",
        "description": "Optical Recognition of Handwritten Digits (UCI), as scikit-learn carries it: 8×8, grayscale",
    }

    def __init__(self, config: Config) -> None:
        pass

    def inventory(self) -> dict[str, Any]:
        return dict(_INVENTORY)

    @contextmanager
    def read(self, inventory: Mapping[str, Any]) -> Iterator[Reading]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        labels = digits.target.astype(np.uint8)
        found = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
        if found != (needed := inventory.get("sha256")):
            raise FailedError(f"scikit-learn's digits have the sha256 {found}; needed {needed}")
        images = (
            RawImage(path=f"{index:04d}", data=image, label=_CLASSES[label])
            for index, (image, label) in enumerate(zip(pixels, labels, strict=True))
        )
        yield Reading(classes=_CLASSES, count=len(pixels), images=images)
