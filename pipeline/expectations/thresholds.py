"""The settings of the suites, apart from them: importing Great Expectations takes seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """`validate` of params.yaml."""

    min_images: int = 100
    min_images_per_class: int = 5  # in every split
    max_constant_fraction: float = 0.01  # images whose pixels are all equal
    min_confidence: float = 0  # of the filter, that a synthetic image shows its class; `augment` drops what is unsure

    def __post_init__(self) -> None:
        for name in ("min_images", "min_images_per_class"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; needed at least 1")
        for name in ("max_constant_fraction", "min_confidence"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; needed 0 to 1")
