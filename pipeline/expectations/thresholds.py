"""The settings of the suites, apart from them: importing Great Expectations takes seconds."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from pipeline.params import within


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """`validate` of params.yaml."""

    min_images: int = 100
    min_images_per_class: int = 5  # in every split
    max_constant_fraction: float = 0.01  # images whose pixels are all equal
    min_confidence: float = 0  # of the filter, that a synthetic image shows its class; `augment` drops what is unsure

    def __post_init__(self) -> None:
        within(self, min_images=(1, inf), min_images_per_class=(1, inf))
        within(self, max_constant_fraction=(0, 1), min_confidence=(0, 1))
