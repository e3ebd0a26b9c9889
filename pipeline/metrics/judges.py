"""The classifiers of the `features` stage: one gives features, one filters, an ensemble judges."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import FailedError, UserError
from pipeline.imageset.files import sha256_file
from pipeline.metrics.classifier import Classifier, load, predict

INDEX = "features.json"


@dataclass(frozen=True, kw_only=True)
class Judges:
    """What `features` trained on the real training split, each with its own seed.

    `extractor` gives the in-domain features of fidelity and of snapshot selection; `filter` gives the confidence that
    `augment` filters by; `ensemble` is never used for anything but judging. `about` is features.json.
    """

    extractor: Classifier
    filter: Classifier
    ensemble: tuple[Classifier, ...]
    about: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> Judges:
        """Read the folder of the `features` stage. Raises UserError when it is none, FailedError on another hash."""
        try:
            about = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{folder / INDEX}: not found; needed the judges, run the features stage first") from None
        for file, entry in about["classifiers"].items():
            found = sha256_file(folder / file)
            if found != entry["sha256"]:
                raise FailedError(f"{folder / file}: sha256 is {found}; needed {entry['sha256']} of {INDEX}")
        judges = sorted(file for file in about["classifiers"] if file.startswith("judge"))
        return cls(
            extractor=load(folder / "extractor.safetensors"),
            filter=load(folder / "filter.safetensors"),
            ensemble=tuple(load(folder / file) for file in judges),
            about=about,
        )

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """The ensemble's mean class probabilities, float32 (N, classes), of uint8 `images` (N, C, H, W)."""
        votes: np.ndarray = np.mean([predict(judge, images) for judge in self.ensemble], axis=0)
        return votes
