"""augment: what the generator draws → out/synthetic: an ImageSet, its manifest, and what was dropped.

The set is class-balanced, or has as many images of a class as params.yaml says, such as to fill up rare ones.

Latents are drawn wider than in training, and what a classifier does not take for the asked-for class is dropped (GaFi,
arXiv 2305.10118); so is, where that is asked for, what lies among no real images of its class in the features of this
classifier (precision, arXiv 1904.06991), and so are near-copies of training images. Samples are judged in the order of
their index and each class keeps the first that pass: a larger set begins with the smaller one.

Spread, least confidence and neighbours are searched when params.yaml names more than one of them: a pool of samples is
drawn once for each spread, and its features and confidences serve all. Chosen is what surprises least on the validation
split.

A generator that translates has no latents, and translates the training images: there are as many samples as these.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline import paths
from pipeline.errors import FailedError, UserError
from pipeline.errors import nearest as nearest_name
from pipeline.gan.model import Model
from pipeline.imageset import ImageSet, Row, write_imageset
from pipeline.imageset.files import atomic_folder
from pipeline.imageset.layout import content_hash
from pipeline.imageset.manifest import write_manifest
from pipeline.metrics.classifier import Classifier, embed, predict
from pipeline.metrics.judges import FILTER, Judges
from pipeline.metrics.manifold import Manifold
from pipeline.metrics.neighbours import Nearest, nearest_of_domain
from pipeline.metrics.probe import surprise
from pipeline.parallel import in_parallel
from pipeline.params import SEEDS, Document, within
from pipeline.progress import ProgressLine
from pipeline.report.tables import to_csv

_CHUNK = 512  # samples that are judged together, always: in another batch a probability may differ in its last bit
_POOL, _POOL_OF_CLASS = 2048, 10  # samples that a search draws for each spread: at least, and for each class
_REASONS = ("other_label", "low_confidence", "off_manifold", "near_copy", "duplicate", "class_full")


@dataclass(frozen=True, kw_only=True)
class Params:
    """The `augment` section of params.yaml.

    Of a class in `class_counts` there are so many images, of each other one `images_per_class`.
    `spread` is the standard deviation of the latents. The filter's most probable class must be the asked-for one, at a
    probability of at least `min_confidence`. In the filter's features a sample must be as near to some training image
    of its class as the `manifold_neighbours`-th nearest other one is to that image; at 0 it may be anywhere.
    `try_spreads`, `try_min_confidences` and `try_manifold_neighbours` are tried beside these three, and the best on the
    validation split is used. A near-copy is nearer to a training image than the quantile `copy_quantile` of validation
    images is. The stage fails when `max_draws_per_image` samples for each wanted image were not enough.
    """

    seed: int = 3
    images_per_class: int = 500
    class_counts: dict[str, int] = field(default_factory=dict)
    spread: float = 1.2
    min_confidence: float = 0.5
    manifold_neighbours: int = 0
    try_spreads: tuple[float, ...] = ()
    try_min_confidences: tuple[float, ...] = ()
    try_manifold_neighbours: tuple[int, ...] = ()
    copy_quantile: float = 0.01
    max_draws_per_image: int = 20

    def __post_init__(self) -> None:
        within(self, seed=SEEDS, images_per_class=(1, inf), max_draws_per_image=(1, inf))
        for name, wanted in self.class_counts.items():
            if wanted < 1:
                raise ValueError(f"class_counts.{name} is {wanted}; needed at least 1")
        for name, spreads in {"spread": (self.spread,), "try_spreads": self.try_spreads}.items():
            for spread in spreads:
                if not 0 < spread < float("inf"):
                    raise ValueError(f"{name} is {spread}; needed a number above 0")
        for confidence in self.try_min_confidences:
            if not 0 <= confidence < 1:
                raise ValueError(f"try_min_confidences has {confidence}; needed 0 or more, and below 1")
        for name, tried in {
            "manifold_neighbours": (self.manifold_neighbours,),
            "try_manifold_neighbours": self.try_manifold_neighbours,
        }.items():
            for neighbours in tried:
                if neighbours < 0:
                    raise ValueError(f"{name} is {neighbours}; needed at least 0")
        for name in ("min_confidence", "copy_quantile"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; needed 0 or more, and below 1")


def read_params(document: Document) -> Params:
    return document.section("augment", Params)


class Sampler(Protocol):
    """What `Model` is here: sample i is fixed by (seed, i), its label the asked-for one or -1."""

    def sample(self, *, seed: int, start: int, count: int, spread: float) -> tuple[np.ndarray, np.ndarray]: ...

    def distinct(self, count: int) -> int: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Sieve:
    """What a sample must pass, apart from the other samples."""

    filter: Classifier
    min_confidence: float
    manifold: Manifold | None = None  # of the training images in the filter's features; None: a sample may be anywhere
    neighbours: int = 0  # how far the manifold reaches
    train: NDArray[np.uint8]  # (N, C, H, W)
    domains: NDArray[np.int64] | None = None  # of the training images (N,), where samples are translations of them
    copy_distance: float  # root mean square over pixels, in levels of 0 to 255

    def distances(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """To the nearest training image, of a translation to the nearest of its domain."""
        if self.domains is None:
            return self._nearest(images)[0]
        return nearest_of_domain(images, labels, self.train, self.domains)[0]

    def among_real(self, images: np.ndarray, labels: np.ndarray) -> NDArray[np.bool_]:
        """Whether each is on the manifold of the real images of its label."""
        if self.manifold is None or self.neighbours == 0:
            return np.ones(len(images), bool)
        return self.manifold.holds(embed(self.filter, images), labels, self.neighbours)

    @cached_property
    def _nearest(self) -> Nearest:
        return Nearest(self.train)

    def judge(self, images: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
        """Of samples (N, C, H, W): labels (asked for, or by the filter where -1), the filter's confidence in them,
        distances to the nearest training image, and for each the reason to drop it or an empty text.
        """
        probabilities = predict(self.filter, images)
        likeliest = probabilities.argmax(axis=1)
        labels = np.where(asked < 0, likeliest, asked)
        confidences = probabilities[np.arange(len(labels)), labels]
        distances = self.distances(images, labels)
        reasons = np.select(
            [
                labels != likeliest,
                confidences < self.min_confidence,
                ~self.among_real(images, labels),
                distances < self.copy_distance,
            ],
            _REASONS[:4],
            default="",
        )
        return labels, confidences, distances, reasons.tolist()


@dataclass(kw_only=True)
class Selection:
    """Takes the samples of `sampler` in order, keeps the first `wanted` of each class that pass, counts all.

    Iterating gives the kept ones as rows. `tally` counts by (label, "kept" or the reason) up to the last kept sample.
    """

    sampler: Sampler
    sieve: Sieve
    params: Params
    classes: tuple[str, ...]
    origin: Callable[[int], Mapping[str, str]] = lambda index: {}  # what else is known of the sample of an index
    tally: Counter[tuple[int, str]] = dataclasses.field(default_factory=Counter)

    @property
    def wanted(self) -> list[int]:
        """How many images, by label."""
        return [self.params.class_counts.get(name, self.params.images_per_class) for name in self.classes]

    def __iter__(self) -> Iterator[Row]:
        params, wanted_of, wanted = self.params, self.wanted, sum(self.wanted)
        most = max(wanted_of) * len(wanted_of) * params.max_draws_per_image  # classes are drawn equally often
        line = ProgressLine("augment", wanted, "images")
        contents: set[str] = set()
        # One thread draws the next samples while what was kept of these is encoded.
        starts = range(0, most, _CHUNK)
        drawn = in_parallel(self._draw, starts, threading.Event(), threads=1, ahead=2)
        for start, (images, labels, confidences, distances, reasons) in zip(starts, drawn, strict=True):
            if not len(images):
                raise FailedError(self._too_few(exhausted=True))
            for place, (label, reason) in enumerate(zip(labels.tolist(), reasons, strict=True)):
                content = content_hash(images[place])
                if not reason and content in contents:
                    reason = "duplicate"
                elif not reason and self.tally[label, "kept"] == wanted_of[label]:
                    reason = "class_full"
                self.tally[label, reason or "kept"] += 1
                if reason:
                    continue
                contents.add(content)
                yield Row(
                    split="train",
                    label=label,
                    image=images[place],
                    path=f"{start + place:08d}.png",
                    provenance={
                        "seed": params.seed,
                        "index": start + place,
                        "spread": params.spread,
                        "confidence": round(float(confidences[place]), 6),
                        "nearest_distance": round(float(distances[place]), 4),
                        **self.origin(start + place),
                    },
                )
                if len(contents) == wanted:
                    line.update(wanted, f"{self.tally.total():,} drawn")
                    return
            line.update(len(contents), f"{self.tally.total():,} drawn")
        raise FailedError(self._too_few(exhausted=False))

    def _draw(self, start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]:
        """The samples of a chunk, none after the last distinct one, and what the sieve finds of them."""
        chunk = max(0, self.sampler.distinct(start + _CHUNK) - start)
        images, asked = self.sampler.sample(seed=self.params.seed, start=start, count=chunk, spread=self.params.spread)
        return images, *self.sieve.judge(images, asked)

    def counts(self) -> dict[str, Any]:
        """Drawn, kept, and dropped by reason, in all and by class."""
        by_class = {
            name: {found: self.tally[label, found] for found in ("kept", *_REASONS)}
            for label, name in enumerate(self.classes)
        }
        total = {found: sum(each[found] for each in by_class.values()) for found in ("kept", *_REASONS)}
        return {"drawn": self.tally.total(), "kept": total.pop("kept"), "dropped": total, "classes": by_class}

    def _too_few(self, *, exhausted: bool) -> str:
        label = min(range(len(self.classes)), key=lambda label: self.tally[label, "kept"] / self.wanted[label])
        dropped = {reason: self.tally[label, reason] for reason in _REASONS if self.tally[label, reason]}
        why = ", ".join(f"{reason} {number:,}" for reason, number in dropped.items()) or "never drawn"
        more = (
            "fewer augment.images_per_class: all training images are translated"
            if exhausted
            else f"augment.max_draws_per_image above {self.params.max_draws_per_image}"
        )
        return (
            f"augment: {self.tally.total():,} samples gave {self.tally[label, 'kept']:,} of "
            f"{self.wanted[label]:,} images of class '{self.classes[label]}' (dropped: {why}); needed a "
            f"better model, lower augment.min_confidence, or {more}"
        )


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What is searched for; the share of a pool of samples that pass it; how they do on validation images.

    `surprise` is None where a class has no image that passes; so are both where there is nothing to choose from.
    """

    spread: float
    min_confidence: float
    manifold_neighbours: int
    kept: float | None = None
    surprise: float | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """By their names in Params."""
        return {name: getattr(self, name) for name in ("spread", "min_confidence", "manifold_neighbours")}


def search(
    sampler: Sampler, sieve: Sieve, extractor: Classifier, validation: tuple[np.ndarray, np.ndarray], params: Params
) -> list[Candidate]:
    """All candidates of `params`. Each spread is sampled and judged once, whatever the number of filters.

    A single candidate is not sampled at all.
    """
    spreads = sorted({params.spread, *params.try_spreads})
    confidences_tried = sorted({params.min_confidence, *params.try_min_confidences})
    neighbours_tried = sorted({params.manifold_neighbours, *params.try_manifold_neighbours})
    if len(spreads) * len(confidences_tried) * len(neighbours_tried) == 1:
        return [
            Candidate(spread=spreads[0], min_confidence=confidences_tried[0], manifold_neighbours=neighbours_tried[0])
        ]
    classes = sieve.filter.config["classes"]
    held_out, truth = embed(extractor, validation[0]), validation[1]
    pool = sampler.distinct(max(_POOL, _POOL_OF_CLASS * classes))
    all_sure = dataclasses.replace(sieve, min_confidence=0, neighbours=0)
    found = []
    for spread in spreads:
        images, asked = sampler.sample(seed=params.seed, start=0, count=pool, spread=spread)
        labels, confidences, _, reasons = all_sure.judge(images, asked)
        features = embed(extractor, images)
        passed = np.array([not reason for reason in reasons])
        for neighbours in neighbours_tried:
            among = passed & dataclasses.replace(sieve, neighbours=neighbours).among_real(images, labels)
            for least in confidences_tried:
                rows = np.flatnonzero(among & (confidences >= least))
                score = None
                if len(np.unique(labels[rows])) == classes:
                    score = round(surprise(features[rows], labels[rows], held_out, truth, classes), 6)
                found.append(
                    Candidate(
                        spread=spread,
                        min_confidence=least,
                        manifold_neighbours=neighbours,
                        kept=len(rows) / pool,
                        surprise=score,
                    )
                )
    return found


def choose(candidates: list[Candidate], params: Params) -> Params:
    """`params` with the settings of the least surprise, of equals the first; as they are if none has any."""
    scored = [(each.surprise, each) for each in candidates if each.surprise is not None]
    if not scored:
        return params
    _, best = min(scored, key=lambda pair: pair[0])
    return dataclasses.replace(params, **best.settings)


def run(document: Document) -> None:
    """Write out/synthetic, whole or not at all. Raises UserError when model, judges and real set do not fit."""
    from pipeline.report.search import draw

    params = given = read_params(document)
    real = ImageSet.open(paths.REAL / paths.IMAGESET)
    model, judges = Model.load(paths.MODEL), Judges.load(paths.FEATURES)
    made = (model.classes, model.channels, model.image_size)
    if made != (real.classes, real.channels, real.image_size):
        raise UserError(f"{paths.MODEL}: makes {_kind(*made)}; needed {_kind(real.classes, *real.shape[:2])}")
    for name in params.class_counts:
        if name not in real.classes:
            raise document.error(f"augment.class_counts.{name}", f"names no class; {nearest_name(name, real.classes)}")
    train, labels = real.arrays("train")
    validation = real.arrays("validation")
    model = model.with_sources(train, labels)
    reach = max(params.manifold_neighbours, *params.try_manifold_neighbours, 0)
    sieve = Sieve(
        filter=judges.filter,
        min_confidence=params.min_confidence,
        manifold=Manifold(embed(judges.filter, train), labels, reach) if reach else None,
        train=train,
        domains=labels if model.translates else None,
        copy_distance=0,
    )
    expected = np.quantile(sieve.distances(*validation), params.copy_quantile)
    sieve = dataclasses.replace(sieve, copy_distance=float(expected))
    candidates = search(model, sieve, judges.extractor, validation, params)
    params = choose(candidates, params)
    sieve = dataclasses.replace(sieve, min_confidence=params.min_confidence, neighbours=params.manifold_neighbours)
    chosen = {name: getattr(params, name) for name in candidates[0].settings}
    tried = [dataclasses.asdict(each) | {"chosen": each.settings == chosen} for each in candidates]
    selection = Selection(sampler=model, sieve=sieve, params=params, classes=real.classes)
    generator = {"family": model.family, "model_sha256": model.sha256, "data_fingerprint": model.data_fingerprint}
    if model.parent is not None:
        generator["parent_sha256"] = model.parent
    how = "Drawn by a {} generator that learned from"
    if model.translates:
        generator["translated"] = "train split"
        how = "Translated by a {} generator from the images that it learned from"
        names = real.table("train", ["image.path"])["image"].combine_chunks().field("path").to_pylist()
        selection.origin = lambda index: {"source": names[model.sources.rows(np.array([index]))[0]]}
    with atomic_folder(paths.SYNTHETIC) as folder:
        imageset = write_imageset(
            folder / paths.IMAGESET,
            selection,
            classes=real.classes,
            source={
                "kind": "generator",
                "licence": real.source.get("licence", ""),
                "description": f"{how.format(model.family)}: {real.source['description']}",
            },
            resize=None,
            synthetic=True,
            generator=generator,
        )
        write_manifest(folder / paths.MANIFEST, imageset)
        report = selection.counts() | {
            "generator": generator,
            "filter_sha256": judges.about["classifiers"][FILTER]["sha256"],
            "real_fingerprint": real.fingerprint,
            "copy_distance": sieve.copy_distance,
            "validation_on_manifold": float(sieve.among_real(*validation).mean()),
            "chosen": chosen,
            "search": tried,
            "params": dataclasses.asdict(given),
        }
        (folder / "search.csv").write_text(to_csv(tried), encoding="utf-8")
        draw(folder / "search.png", tried)
        (folder / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _kind(classes: tuple[str, ...], channels: int, image_size: int) -> str:
    names = ", ".join(classes[:3]) + (", …" if len(classes) > 3 else "")
    return f"{channels}×{image_size}×{image_size} images of {len(classes)} classes ({names})"
