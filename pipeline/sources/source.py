"""What a kind of raw data gives. `source.kind: images` in params.yaml leads to pipeline/sources/images.py.

A kind's module has `Config`, its other settings in the section `source`, and `Source(config)`, which touches neither
disk nor network until it is asked. A new kind is one such file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import nearest
from pipeline.params import Document

Split = Literal["train", "validation", "test"]
SPLIT_NAMES: Mapping[str, Split] = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class RawImage:
    """One image as it was found: `data` is the bytes of a file, or pixels, uint8 (H, W) or (H, W, 3).

    `label` is the name of its class, `split` the split that the source itself puts it in, None where it names none.
    `fault` says why it is known to be no image of the set; `label` is None only beside a fault. A `harmless` one, such
    as a README beside pictures, is no bad image either.
    """

    path: str
    data: bytes | NDArray[np.uint8]
    label: str | None
    split: Split | None = None
    fault: str | None = None
    harmless: bool = False


@dataclass(frozen=True, kw_only=True)
class Reading:
    """An open source: its class names in the order of their labels, how many images it has, and the images."""

    classes: tuple[str, ...]
    count: int
    images: Iterator[RawImage]


class Source(Protocol):
    """Raw images. `name` is what sentences call it; `about` (kind, licence, description …) goes into the ImageSet."""

    name: str
    about: Mapping[str, str]

    def inventory(self) -> dict[str, Any]:
        """What is there, as JSON: kind, names, sizes, hashes. The same content gives the same inventory."""

    def read(self, inventory: Mapping[str, Any]) -> AbstractContextManager[Reading]:
        """Read exactly what `inventory` lists, in bounded memory. Raises FailedError where it is gone or changed."""


def kinds() -> list[str]:
    """The kinds there are: the modules beside this one that have a `Config`."""
    names = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    return [name for name in names if hasattr(importlib.import_module(f"pipeline.sources.{name}"), "Config")]


def load_source(document: Document) -> Source:
    """The source that the section `source` describes. Raises UserError that names the key."""
    settings = dict(document.mapping("source"))
    if "kind" not in settings:
        raise document.error("source.kind", f"is missing; needed one of {', '.join(kinds())}")
    kind = settings.pop("kind")
    if kind not in kinds():
        raise document.error("source.kind", f"is '{kind}'; {nearest(str(kind), kinds())}")
    module: Any = importlib.import_module(f"pipeline.sources.{kind}")
    source: Source = module.Source(document.build("source", settings, module.Config))
    return source
