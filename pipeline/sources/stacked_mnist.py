"""Stacked MNIST: three digits as red, green and blue of one picture, 1,000 classes (Metz et al. 2017, 1611.02163).

How many of the classes a GAN shows, and how evenly, is the classical test of mode collapse. Each part of MNIST is
shuffled three times, and the n-th digits of the three make the n-th picture: every digit is there once in each channel.
A class is named by its three digits, red first. The shuffles are fixed, so that all who use it use the same set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.sources import torchvision
from pipeline.sources.source import RawImage, Reading

CLASSES = tuple(f"{number:03d}" for number in range(1000))
_SEED = 0  # with which each class is there in both parts


@dataclass(frozen=True, kw_only=True)
class Config:
    """`root` is the folder that torchvision keeps MNIST in; `download` lets it fetch what is not there."""

    root: str = "data/torchvision"
    download: bool = True


class Source:
    """60,000 pictures to train on and 10,000 to test with."""

    def __init__(self, config: Config) -> None:
        self.mnist = torchvision.Source(torchvision.Config(dataset="mnist", root=config.root, download=config.download))
        self.name = f"stacked {self.mnist.name}"
        self.about: Mapping[str, str] = {
            "kind": "stacked_mnist",
            "licence": self.mnist.about["licence"],
            "description": "Stacked MNIST: three handwritten digits as the channels of one picture, 28×28, colour",
        }

    def inventory(self) -> dict[str, Any]:
        """Just the name: neither MNIST nor the shuffles ever change."""
        return {"kind": "stacked_mnist"}

    @contextmanager
    def read(self, inventory: Mapping[str, Any]) -> Iterator[Reading]:
        with self.mnist.read(self.mnist.inventory()) as reading:
            digits = list(reading.images)
        yield Reading(classes=CLASSES, count=len(digits), images=_stack(digits))


def _stack(digits: list[RawImage]) -> Iterator[RawImage]:
    random = np.random.Generator(np.random.Philox(_SEED))
    for split in ("train", "test"):
        part = [digit for digit in digits if digit.split == split]
        shuffles = [random.permutation(len(part)) for _ in range(3)]
        for index, rows in enumerate(zip(*shuffles, strict=True)):
            channels = [part[row] for row in rows]
            yield RawImage(
                path=f"{split}/{index:06d}",
                data=np.stack([np.asarray(digit.data) for digit in channels], axis=2),
                label="".join(str(digit.label) for digit in channels),
                split=split,
            )
