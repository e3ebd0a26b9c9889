"""`features`: train the classifiers that give features, filter and judge, on the real training split.

They are never one and the same: the filter never judges, and the judges have another architecture and other seeds, so
that neither filtering nor snapshot selection can make the agreement look good.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from math import inf

import numpy as np
import torch

from pipeline import paths
from pipeline.errors import UserError
from pipeline.imageset import ImageSet
from pipeline.imageset.files import atomic_folder
from pipeline.imageset.subset import rare_labels
from pipeline.metrics.classifier import NARROWEST, Classifier, predict, save, train_classifier
from pipeline.metrics.judges import EXTRACTOR, FILTER, INDEX, JUDGES
from pipeline.params import SEEDS, THREADS, Document, within
from pipeline.progress import ProgressLine


@dataclass(frozen=True, kw_only=True)
class Params:
    """The `features` section of params.yaml."""

    seed: int = 1
    images_seen: int = 20_000  # by each of the classifiers
    width: int = 16  # channels of the first layer
    per_channel: bool = False  # whether each channel is a picture of its own, with a letter of the class's name
    flip: bool = False  # whether a mirror image keeps its class
    threads: int = 1  # of torch; another count gives other bits

    def __post_init__(self) -> None:
        within(self, seed=SEEDS, images_seen=(1000, inf), width=(NARROWEST, inf), threads=THREADS)


def read_params(document: Document) -> Params:
    return document.section("features", Params)


def train_all(
    images: np.ndarray, labels: np.ndarray, *, classes: int, params: Params
) -> dict[str, tuple[Classifier, int]]:
    """Each file's classifier and its seed. The judges are twice as deep as the extractor and the filter.

    Where classes are rare all are shown equally often: who hardly ever sees a class takes its images for another's.
    """
    counts = np.bincount(labels, minlength=classes)
    weights = 1 / counts[labels] if rare_labels(counts.tolist()) else None
    files = [EXTRACTOR, FILTER, *JUDGES]
    line = ProgressLine("features", len(files) * params.images_seen, "images")
    trained = {}
    for number, file in enumerate(files):
        classifier = train_classifier(
            images,
            labels,
            classes=classes,
            seed=params.seed + number,
            images_seen=params.images_seen,
            weights=weights,
            width=params.width,
            blocks=2 if file in JUDGES else 1,
            per_channel=params.per_channel,
            flip=params.flip,
        )
        trained[file] = (classifier, params.seed + number)
        line.update(len(trained) * params.images_seen, f"{len(trained)} of {len(files)} classifiers")
    return trained


def _check_words(real: ImageSet) -> None:
    """Raise UserError where the classes are not all words of as many letters as there are channels, in order."""
    letters = dict.fromkeys(name[0] for name in real.classes)
    if real.classes != tuple(map("".join, itertools.product(letters, repeat=real.channels))):
        raise UserError(
            f"{real.root}: its classes are not all words of {real.channels} letters, one for each channel; needed that "
            "with features.per_channel, as in Stacked MNIST"
        )


def _check_test_split(real: ImageSet, params: Params) -> None:
    """Raise UserError where `evaluate` will have too few test images for the extractor, before anything is trained."""
    with torch.device("meta"):
        extractor = Classifier(
            channels=real.channels,
            image_size=real.image_size,
            classes=len(real.classes),
            width=params.width,
            per_channel=params.per_channel,
        )
    if "test" in real.counts and (count := sum(real.counts["test"])) <= extractor.dimensions:
        raise UserError(
            f"{real.root}: the test split has {count} images; needed more than the {extractor.dimensions} dimensions "
            f"of the features that evaluate compares, which fall with features.width ({params.width})"
        )


def run(document: Document) -> None:
    """Write out/features: the classifiers, and features.json with their hashes, seeds and accuracies."""
    params = read_params(document)
    torch.set_num_threads(params.threads)
    real = ImageSet.open(paths.REAL / paths.IMAGESET)
    (images, labels), (held_out, truth) = real.arrays("train"), real.arrays("validation")
    for name, count in zip(real.classes, real.counts["train"], strict=True):
        if count == 0:
            raise UserError(f"{real.root}: the training split has no image of class '{name}'; needed at least 1")
    if params.per_channel:
        _check_words(real)
    _check_test_split(real, params)
    trained = train_all(images, labels, classes=len(real.classes), params=params)
    right = {file: predict(classifier, held_out).argmax(axis=1) == truth for file, (classifier, _) in trained.items()}
    with atomic_folder(paths.FEATURES) as folder:
        about = {
            "classifiers": {
                file: {
                    **classifier.config,
                    "seed": seed,
                    "sha256": save(classifier, folder / file),
                    "validation_accuracy": float(right[file].mean()),
                }
                for file, (classifier, seed) in trained.items()
            },
            "class_names": list(real.classes),
            "data_fingerprint": real.fingerprint,
            "images_seen": params.images_seen,
            "train_images": len(images),
            "validation_images": len(held_out),
        }
        (folder / INDEX).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
