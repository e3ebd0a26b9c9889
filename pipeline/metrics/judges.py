"""The classifiers of the `features` stage: one gives features, one filters, an ensemble judges."""

from __future__ import annotations

import json
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import FailedError, UserError
from pipeline.imageset.files import sha256_file
from pipeline.metrics.classifier import Classifier, load, predict

INDEX = "features.json"
EXTRACTOR, FILTER = "extractor.safetensors", "filter.safetensors"
JUDGES = tuple(f"judge-{number}.safetensors" for number in range(3))


@dataclass(frozen=True, kw_only=True)
class Judges:
    """What `features` trained on the real training split.

    `extractor` gives the in-domain features of fidelity and of snapshot selection; `filter` gives the confidence that
    `augment` filters by; `ensemble` is used for nothing but judging. `about` is features.json.
    """

    extractor: Classifier
    filter: Classifier
    ensemble: tuple[Classifier, ...]
    about: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> Judges:
        """Read out/features. Raises UserError when there is none, FailedError when a file is another than written."""
        try:
            about = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            hashes = {file: about["classifiers"][file]["sha256"] for file in (EXTRACTOR, FILTER, *JUDGES)}
        except FileNotFoundError:
            raise UserError(f"{folder / INDEX}: not found; needed the judges that the features stage trains") from None
        except (ValueError, KeyError, TypeError):
            raise FailedError(f"{folder / INDEX}: is not whole; needed what the features stage writes") from None
        loaded = {}
        for file, needed in hashes.items():
            loaded[file] = load(folder / file)
            if (found := sha256_file(folder / file)) != needed:
                raise FailedError(f"{folder / file}: has the sha256 {found}; needed {needed} as in {INDEX}")
        return cls(
            extractor=loaded[EXTRACTOR],
            filter=loaded[FILTER],
            ensemble=tuple(loaded[file] for file in JUDGES),
            about=about,
        )

    def probabilities(self, images: np.ndarray, pool: Executor | None = None) -> np.ndarray:
        """The ensemble's mean class probabilities, float32 (N, classes), of uint8 `images` (N, C, H, W)."""
        votes = list((pool.map if pool else map)(partial(predict, images=images), self.ensemble))
        mean: np.ndarray = np.mean(votes, axis=0)
        return mean
