"""The data sets that torchvision loads, checks and, where it may, downloads.

Their own train and test parts are the splits. Of STL-10 only the labelled images are used: 5,000 to train, 8,000 to
test.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.errors import FailedError, UserError, nearest
from pipeline.sources.source import RawImage, Reading

_DIGITS = tuple("0123456789")


@dataclass(frozen=True, kw_only=True)
class _Dataset:
    """`loader` is torchvision's class; `classes` are given where it has none, or none that reads well."""

    loader: str
    licence: str
    description: str
    classes: tuple[str, ...] | None = None
    takes_split: bool = False


_DATASETS = {
    "mnist": _Dataset(
        loader="MNIST",
        licence="cc-by-sa-3.0",
        description="MNIST: handwritten digits, 28×28, grayscale",
        classes=_DIGITS,
    ),
    "fashion_mnist": _Dataset(
        loader="FashionMNIST",
        licence="mit",
        description="Fashion-MNIST: articles of clothing, 28×28, grayscale",
    ),
    "kmnist": _Dataset(
        loader="KMNIST",
        licence="cc-by-sa-4.0",
        description="Kuzushiji-MNIST: cursive Japanese characters, 28×28, grayscale",
    ),
    "svhn": _Dataset(
        loader="SVHN",
        licence="other",
        description="SVHN: cropped house numbers, 32×32, colour; for non-commercial use only",
        classes=_DIGITS,
        takes_split=True,
    ),
    "cifar10": _Dataset(
        loader="CIFAR10",
        licence="unknown",
        description="CIFAR-10: ten kinds of animals and vehicles, 32×32, colour",
    ),
    "cifar100": _Dataset(
        loader="CIFAR100",
        licence="unknown",
        description="CIFAR-100: a hundred kinds of things (the fine labels), 32×32, colour",
    ),
    "stl10": _Dataset(
        loader="STL10",
        licence="unknown",
        description="STL-10, the labelled part: ten kinds of animals and vehicles, 96×96, colour",
        takes_split=True,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """`root` is the folder that torchvision keeps its data sets in; `download` lets it fetch what is not there."""

    dataset: str
    root: str = "data/torchvision"
    download: bool = True

    def __post_init__(self) -> None:
        if self.dataset not in _DATASETS:
            raise ValueError(f"dataset is '{self.dataset}'; {nearest(self.dataset, _DATASETS)}")


class Source:
    """One of torchvision's data sets."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.dataset = _DATASETS[config.dataset]
        self.name = f"{config.dataset} in {config.root}"
        self.about: Mapping[str, str] = {
            "kind": "torchvision",
            "dataset": config.dataset,
            "licence": self.dataset.licence,
            "description": self.dataset.description,
        }

    def inventory(self) -> dict[str, Any]:
        """Just the name: what it stands for never changes, and torchvision checks the files when they are read."""
        return {"kind": "torchvision", "dataset": self.config.dataset}

    @contextmanager
    def read(self, inventory: Mapping[str, Any]) -> Iterator[Reading]:
        parts: dict[Literal["train", "test"], Any] = {"train": self._load("train"), "test": self._load("test")}
        classes = self.dataset.classes or tuple(parts["train"].classes)
        images = (
            RawImage(path=f"{split}/{index:06d}", data=np.asarray(picture), label=classes[label], split=split)
            for split, part in parts.items()
            for index, (picture, label) in enumerate(map(part.__getitem__, range(len(part))))
        )
        yield Reading(classes=classes, count=sum(map(len, parts.values())), images=images)

    def _load(self, split: str) -> Any:
        import torchvision

        dataset, root = self.config.dataset, self.config.root
        loader = getattr(torchvision.datasets, self.dataset.loader)
        part = {"split": split} if self.dataset.takes_split else {"train": split == "train"}
        try:
            return loader(root, **part, download=False)
        except (RuntimeError, ValueError, TypeError, AssertionError, EOFError, OSError) as error:
            if "download=True" not in str(error):  # what torchvision advises where files are missing or not unpacked
                raise UserError(
                    f"{root}: its {dataset} cannot be read ({_one_line(error)}); needed the original files"
                ) from None
        if not self.config.download:
            raise UserError(
                f"{root}: has no {dataset} that torchvision.datasets.{self.dataset.loader} can read; needed its files "
                "unpacked there, or source.download: true"
            )
        try:
            return loader(root, **part, download=True)
        except (RuntimeError, OSError) as error:
            raise FailedError(
                f"{root}: has no {dataset} and torchvision cannot download it ({_one_line(error)}); needed a network, "
                "or its files in that folder"
            ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
