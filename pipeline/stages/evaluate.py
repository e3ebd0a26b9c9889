"""`evaluate`: how good the unfiltered samples of the model are, or the released set, each number with its protocol."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from pipeline import paths
from pipeline.errors import UserError
from pipeline.gan.family import ImageSpec, load_family
from pipeline.gan.model import CHUNK, Model
from pipeline.imageset import ImageSet
from pipeline.imageset.files import atomic_folder
from pipeline.metrics import fidelity, modes, neighbours, parzen, spread
from pipeline.metrics.extractors import (
    IN_DOMAIN,
    Ensemble,
    Extractor,
    InDomain,
    Pretrained,
    Settings,
    embed_once,
    floor_once,
    measure,
)
from pipeline.metrics.judges import JUDGES, Judges
from pipeline.metrics.once import once
from pipeline.params import SEEDS, THREADS, Document, within
from pipeline.report import figures
from pipeline.report.tables import to_csv

_SAMPLED_AT_ONCE = 8 * CHUNK
_UNTRAINED = 2000  # samples of a generator before training: they are far off, by however many


@dataclass(frozen=True, kw_only=True)
class Params(Settings):
    """The `evaluate` section of params.yaml: another `extractor` than the in-domain one is used beside that."""

    seed: int = 2
    max_images: int = 10_000  # sampled from a model, drawn from a set; pairs of neighbours cost the square
    parzen_samples: int = 0  # of a model, for the historical Parzen log-likelihood; 10,000 in the literature, 0: none
    threads: int = 1  # parts that are measured side by side, each by one thread of torch: no digit depends on it

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, seed=SEEDS, max_images=(100, math.inf), threads=THREADS)
        if not 0 <= self.parzen_samples <= self.max_images:
            raise ValueError(f"parzen_samples is {self.parzen_samples}; needed 0 to {self.max_images}, the max_images")


def read_params(document: Document) -> Params:
    return document.section("evaluate", Params)


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images uint8 (N, C, H, W), their labels int64 (N,), -1 where none was asked for, and what they are.

    `translated`: made of real images of the other domain, so that each domain is compared by itself.
    """

    images: np.ndarray
    labels: np.ndarray
    description: str
    translated: bool = False

    def draw(self, count: int, seed: int, *, every_class: bool = False) -> Images:
        """`count` of them without replacement, in order; all when there are no more.

        `every_class`: one of each class at least, so that no rare one seems to be lacking.
        """
        return self._of(self.drawn(count, seed, every_class=every_class))

    def drawn(self, count: int, seed: int, *, every_class: bool = False) -> np.ndarray:
        """The rows of these."""
        rows = np.random.Generator(np.random.Philox(seed)).permutation(len(self.images))
        if every_class:
            first = np.unique(self.labels[rows], return_index=True)[1]
            rows = np.concatenate([rows[first], np.delete(rows, first)])
        return np.sort(rows[:count])

    def counts_like(self, real: Images) -> np.ndarray:
        """How many of each class, (K,), make a draw no larger than `real` that has its shares of classes.

        Where that would leave out more than half of what there is, or nobody asked for classes, (1,): how many in all.
        """
        most = min(len(self.images), len(real.images))
        if self.labels.min() >= 0 and real.labels.max() > 0:
            of_real = np.bincount(real.labels)
            have = np.bincount(self.labels, minlength=len(of_real))[: len(of_real)]
            enough = min(most, int((have * len(real.images) // np.maximum(of_real, 1))[of_real > 0].min()))
            if 2 * enough >= most:
                return enough * of_real // len(real.images)
        return np.array([most])

    def have(self, counts: np.ndarray) -> bool:
        """Whether there are as many as counts_like says."""
        if len(counts) == 1:
            return len(self.images) >= int(counts[0])
        return bool((np.bincount(self.labels, minlength=len(counts))[: len(counts)] >= counts).all())

    def draw_like(self, counts: np.ndarray, seed: int) -> Images:
        """As many as counts_like says, without replacement, in order; of what there are too few of, all."""
        if len(counts) == 1:
            return self.draw(int(counts[0]), seed)
        rows = np.random.Generator(np.random.Philox(seed)).permutation(len(self.images))
        chosen = [rows[self.labels[rows] == label][:count] for label, count in enumerate(counts)]
        return self._of(np.sort(np.concatenate(chosen)))

    def parts(self, *, translated: bool) -> list[Images]:
        """What is compared together, see fidelity.by_domain."""
        return [self._of(rows) for rows in fidelity.by_domain(self.labels, translated=translated)]

    def _of(self, rows: np.ndarray) -> Images:
        return dataclasses.replace(self, images=self.images[rows], labels=self.labels[rows])


RoundTrip = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Images, their translations, and these translated back: Model.round_trip."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """`metrics` is what metrics.json holds; the rest is what the figures show."""

    metrics: dict[str, Any]
    per_class: list[dict[str, Any]]
    labels: np.ndarray  # as asked for, or as judged where nothing was
    judged: np.ndarray
    nearest: tuple[np.ndarray, np.ndarray]  # distances to, and rows of, the nearest training images
    nearest_in_features: tuple[np.ndarray, np.ndarray]  # among those whose features are compared
    nearest_of_held_out: tuple[np.ndarray, np.ndarray]


@contextmanager
def side_by_side(threads: int) -> Iterator[Executor]:
    """For the parts of an evaluation. Torch has one thread in each, so that no digit depends on how many there are."""
    torch.set_num_threads(1)
    with ThreadPoolExecutor(threads) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)  # what is still to come is of no use when something was refused


def evaluate(
    generated: Images,
    train: Images,
    held_out: Images,
    *,
    pool: Executor,
    classes: Sequence[str],
    judges: Judges,
    params: Params,
    pretrained: Extractor | None = None,
    untrained: Images | None = None,
    validation: Images | None = None,
    round_trip: RoundTrip | None = None,
) -> Evaluation:
    """Measure `generated` against the real images, and `untrained` samples of the same generator where given.

    With a `pretrained` extractor fidelity in its features too. With `validation`, on which it chooses its σ, the
    Parzen log-likelihood of held-out images. With `round_trip` how much is lost on the way.

    Fidelity is to the held-out images, which neither the generator nor the extractor has seen: towards the training
    images both lean, so that a set could score better than real images do. It takes as many generated images as there
    are held-out ones, at most max_images, with their shares of the classes, or as many as can have these: a balanced
    set is not worse for being balanced. Its floor puts as many training images in their place, and is left out when
    there are not so many. A class of the training images that `generated` has none of counts as 0 where the worst
    class is asked for. What depends on real images only is computed once. Raises UserError when there are too few
    images.
    """
    k, seed = len(classes), params.seed
    in_domain = InDomain(judges)
    reals = [images.draw(params.max_images, seed) for images in (held_out, train)]
    nearest = pool.submit(
        neighbours.nearest_as_made,
        *(generated.images, generated.labels, train.images, train.labels),
        translated=generated.translated,
    )
    nearest_of_held_out = pool.submit(_nearest_once, held_out, train, translated=generated.translated)
    embedded = pool.submit(in_domain.embed, generated.images)
    embedded_once = [pool.submit(embed_once, in_domain, images.images) for images in reals]
    judged = judges.probabilities(generated.images, pool).argmax(axis=1)
    judged_real = embed_once(Ensemble(judges), held_out.images, pool).argmax(axis=1)
    labels = generated.labels if generated.labels.min() >= 0 else judged
    ours = embedded.result(), labels
    theirs, known = ((each.result(), images.labels) for each, images in zip(embedded_once, reals, strict=True))

    metrics: dict[str, Any] = {"images": len(generated.images)}
    protocol = []
    extractors: list[Extractor] = [in_domain, *([pretrained] if pretrained else [])]
    for extractor in extractors:
        blocks, entry = _fidelity(extractor, generated, train, held_out, untrained, params, pool)
        metrics |= blocks
        protocol.append((tuple(blocks), entry))
    by_label, columns = _by_label(generated, labels, judged, train, k, seed)
    metrics |= by_label | _held_out_agreement(held_out.labels, judged_real, k)
    alike, independent = neighbours.alike(labels, held_out.labels)
    distances = nearest.result()[0], nearest_of_held_out.result()[0][alike]
    metrics["memorization"] = neighbours.memorization(*distances)
    metrics["memorization_spread"] = spread.of_nearer(*distances, independent, seed=seed)
    metrics["memorization_floor"] = neighbours.expected_nearer(independent)
    in_features, found_by_class, nearest_in_features = _in_features(ours, theirs, known, k, params, pool)
    metrics |= in_features
    protocol += _protocol(generated, train, held_out, judges, params)
    if validation:
        samples, choosing = params.parzen_samples, validation.draw(parzen.CHOOSING, seed).images
        metrics["parzen"] = parzen.parzen(generated.images[:samples], choosing, held_out.images)
        if len(train.images) >= samples:
            metrics["parzen_real"] = parzen.parzen(train.draw(samples, seed).images, choosing, held_out.images)
        protocol.append(_parzen_protocol(generated, train, held_out, validation, params))
    if round_trip:
        metrics["cycle"] = {"error": _difference(round_trip[0], round_trip[2])}
        metrics["cycle"]["change"] = _difference(*round_trip[:2])
        protocol.append(_cycle_protocol(generated, held_out, len(round_trip[0]), params))
    metrics["protocol"] = [
        {"measures": [name for name in names if name in metrics], **entry} for names, entry in protocol
    ]
    columns = {"class": np.array(classes, object), **columns, **found_by_class}
    return Evaluation(
        metrics=metrics,
        per_class=[dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
        labels=labels,
        judged=judged,
        nearest=nearest.result(),
        nearest_in_features=(nearest_in_features[0], train.drawn(params.max_images, seed)[nearest_in_features[1]]),
        nearest_of_held_out=nearest_of_held_out.result(),
    )


def _by_label(
    generated: Images, labels: np.ndarray, judged: np.ndarray, train: Images, classes: int, seed: int
) -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
    """What judges make of the labels asked for, which classes are there and how varied: by name in metrics.json; and
    all classes' measures.
    """
    agreement = np.full(classes, np.nan)
    blocks = {}
    if labels is generated.labels:
        agreement = modes.agreement(labels, judged, classes)
        lacking = np.isnan(agreement) & (np.bincount(train.labels, minlength=classes) > 0)
        by_class = np.where(lacking, 0, agreement)
        blocks["agreement"] = {"mean": float((judged == labels).mean()), "worst_class": float(np.nanmin(by_class))}
        blocks["agreement_spread"] = spread.of_agreement(labels, judged, by_class)
    drawn = np.random.Generator(np.random.Philox(seed)).choice(train.labels, len(judged))
    blocks["modes"] = modes.balance(judged, train.labels, classes)
    blocks["modes_spread"] = spread.of_balance(judged, train.labels, classes, seed=seed)
    blocks["modes_floor"] = modes.balance(drawn, train.labels, classes)
    pixel_spread, real_spread = (
        modes.pixel_spread(images, of_these, classes)
        for images, of_these in ((generated.images, labels), (train.images, train.labels))
    )
    pixel_spread = np.divide(pixel_spread, real_spread, out=np.full(classes, np.nan), where=real_spread > 0)
    if np.isfinite(pixel_spread).any():
        blocks["modes"]["pixel_spread"] = float(np.nanmean(pixel_spread))
        blocks["modes_spread"] |= spread.of_pixel_spread(generated.images, labels, real_spread, classes, seed=seed)
    return blocks, {
        "images": np.bincount(labels, minlength=classes),
        "judged": np.bincount(judged, minlength=classes),
        "agreement": agreement,
        "pixel_spread": pixel_spread,
    }


def _fidelity(
    extractor: Extractor,
    generated: Images,
    train: Images,
    held_out: Images,
    untrained: Images | None,
    params: Params,
    pool: Executor,
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Fidelity, its spread and its floor by their names in metrics.json, and how they were measured.

    Features of real images are kept. A pretrained extractor takes many minutes where the in-domain one takes seconds,
    and does without the `untrained` ones.
    """
    in_domain, seed = isinstance(extractor, InDomain), params.seed
    name, floor = ("fidelity", "floor") if in_domain else (extractor.label, f"{extractor.label}_floor")
    embed_real = partial(embed_once, extractor)
    ours, theirs, trained_on = (
        images.parts(translated=generated.translated) for images in (generated, held_out, train)
    )
    theirs = [part.draw(params.max_images, seed) for part in theirs]
    wanted = [one.counts_like(real) for one, real in zip(ours, theirs, strict=True)]
    sizes = [(int(counts.sum()), len(real.images)) for counts, real in zip(wanted, theirs, strict=True)]
    for parts, name_of_side in ((ours, "the generated set"), (theirs, "the test split")):
        for part in parts:
            said = f"a domain of {name_of_side}" if generated.translated else name_of_side
            fidelity.check_count(len(part.images), extractor.dimensions, said)
    for count, _ in sizes:
        fidelity.check_count(count, extractor.dimensions, "the generated set, with the real images' shares of classes,")
    references = [embed_real(part.images, pool) for part in theirs]

    def pairs(
        images: Sequence[Images], embed: Callable[[np.ndarray, Executor], np.ndarray]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """What is embedded of so many images of each part, and of the real ones that they are compared with."""
        drawn = [part.draw_like(counts, seed).images for part, counts in zip(images, wanted, strict=True)]
        return [(embed(one, pool), real) for one, real in zip(drawn, references, strict=True)]

    found = [measure(extractor, *pair, seed=seed, pool=pool) for pair in pairs(ours, extractor.embed)]
    blocks = {name: _mean([scores for scores, _ in found])}
    independent = math.sqrt(len(found))  # parts, whose errors even out in the mean
    blocks[f"{name}_spread"] = {key: value / independent for key, value in _mean([each for _, each in found]).items()}
    if all(part.have(counts) for part, counts in zip(trained_on, wanted, strict=True)):
        of_real = [floor_once(extractor, *pair, seed=seed, pool=pool) for pair in pairs(trained_on, embed_real)]
        blocks[floor] = _mean([scores for scores, _ in of_real])
    shares = "those of the real images" if all(len(counts) > 1 for counts in wanted) else "as they come"
    apart = (
        {"domains": "each by itself, then the mean of both"} if generated.translated else {"shares of classes": shares}
    )
    if untrained and in_domain:
        before = pairs(untrained.parts(translated=untrained.translated), extractor.embed)
        blocks["untrained"] = {"fid": float(np.mean([fidelity.frechet_distance(*pair) for pair in before]))}
        apart["untrained"] = f"{sum(len(features) for features, _ in before)} {untrained.description}"
    count = sum(count for count, _ in sizes)
    return blocks, {
        "generated": f"{count} of {len(generated.images)} {generated.description}",
        "real": f"{sum(real for _, real in sizes)} of {len(held_out.images)} {held_out.description}",
        **apart,
        "floor": f"{count} of {len(train.images)} {train.description}",
        **fidelity.protocol(extractor.about, sizes, seed=seed, logits=extractor.logits),
    }


Labelled = tuple[np.ndarray, np.ndarray]
"""Features (N, D) and labels (N,)."""


def _in_features(
    ours: Labelled, theirs: Labelled, known: Labelled, classes: int, params: Params, pool: Executor
) -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """What is found class by class and of copying in features, by name in metrics.json; and all classes' measures.

    Of generated, held-out and training images. Then how far from, and which, the nearest training images are.
    """
    seed = params.seed
    of_ours = pool.submit(modes.by_class, ours, theirs, classes, seed=seed)
    of_known = pool.submit(
        once,
        lambda: modes.by_class(known, theirs, classes, seed=seed),
        *("each class", classes, seed, *known, *theirs),
    )
    nearest = pool.submit(neighbours.nearest_features, ours[0], known[0])
    expected = pool.submit(
        once, lambda: {"distances": neighbours.nearest_features(theirs[0], known[0])[0]}, "nearest", theirs[0], known[0]
    )
    found = of_ours.result()
    errors = pool.submit(spread.of_classes, ours, theirs, found, seed=seed)
    alike, independent = neighbours.alike(ours[1], theirs[1])
    distances = nearest.result()[0], expected.result()["distances"][alike]
    compared, others, real = (np.bincount(labels, minlength=classes) for _, labels in (ours, known, theirs))
    enough = others >= np.minimum(compared, real)
    blocks = {
        "per_class": modes.worst(found),
        "per_class_spread": errors.result(),
        "per_class_floor": modes.worst(
            {name: np.where(enough, values, np.nan) for name, values in of_known.result().items()}
        ),
        "memorization_features": neighbours.nearer(*distances),
        "memorization_features_spread": spread.of_nearer(*distances, independent, seed=seed),
        "memorization_features_floor": neighbours.expected_nearer(independent),
    }
    return {name: block for name, block in blocks.items() if block}, found, nearest.result()


def _held_out_agreement(labels: np.ndarray, judged: np.ndarray, classes: int) -> dict[str, dict[str, float]]:
    """What judges make of held-out real images, which is the floor of their agreement with labels asked for."""
    by_class = modes.agreement(labels, judged, classes)
    errors = spread.of_agreement(labels, judged, by_class)
    return {
        "judges": {
            "held_out_accuracy": float((judged == labels).mean()),
            "held_out_worst_class": float(np.nanmin(by_class)),
        },
        "judges_spread": {"held_out_accuracy": errors["mean"], "held_out_worst_class": errors["worst_class"]},
    }


def _mean(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """By key, of the keys that all have."""
    return {key: float(np.mean([each[key] for each in scores])) for key in scores[0] if all(key in s for s in scores)}


def _nearest_once(held_out: Images, train: Images, *, translated: bool) -> tuple[np.ndarray, np.ndarray]:
    """neighbours.nearest_as_made of held-out images, as of generated ones, kept."""
    sides = held_out.images, held_out.labels, train.images, train.labels

    def find() -> dict[str, np.ndarray]:
        return dict(zip(("distances", "rows"), neighbours.nearest_as_made(*sides, translated=translated), strict=True))

    found = once(find, translated, *sides)
    return found["distances"], found["rows"]


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The mean absolute difference of images, uint8 (N, C, H, W)."""
    return float(
        np.mean([np.abs(one.astype(np.int16) - other).mean() for one, other in zip(ours, theirs, strict=True)])
    )


def _protocol(
    generated: Images,
    train: Images,
    held_out: Images,
    judges: Judges,
    params: Params,
) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    """What blocks of metrics were measured on and with; a list, which the tables of `dvc metrics` pass over."""
    extractor = {name: InDomain(judges).about[name] for name in ("extractor", "extractor_sha256")}
    shares = "standard errors of shares by Jeffreys' posterior"
    of_domain = " and of the same domain, since a translation is near to its source" if generated.translated else ""
    return [
        (
            ("agreement", "agreement_spread", "judges", "judges_spread", "modes", "modes_spread", "modes_floor"),
            {
                "generated": f"{len(generated.images)} {generated.description}",
                "real": f"{len(held_out.images)} {held_out.description}",
                "modes_against": f"{len(train.images)} {train.description}",
                "modes_floor": f"{len(generated.images)} of their labels, with replacement, as the judged ones",
                "judges": "mean probabilities of networks that trained, filtered and selected nothing"
                + (", each channel judged alone" if judges.ensemble[0].config["per_channel"] else ""),
                "judges_sha256": [judges.about["classifiers"][file]["sha256"] for file in JUDGES],
                "spread": f"{shares}, of the worst class as of any other; of the modes from labels drawn again, of "
                f"pixels from {fidelity.RESAMPLES} parts of the generated images",
                **_common(params),
            },
        ),
        (
            ("memorization", "memorization_spread", "memorization_floor"),
            {
                "generated": f"{len(generated.images)} {generated.description}",
                "real": f"nearest of {len(train.images)} {train.description}{of_domain}",
                "expected": f"the same of {len(held_out.images)} {held_out.description}, with the shares of classes "
                "of the generated ones",
                "floor": "what is expected of new real images beside as many as these are worth",
                "distance": "root mean square over pixels and channels, levels 0 to 255",
                "spread": f"{shares}, and from held-out distances drawn again",
                **_common(params),
            },
        ),
        (
            (
                "per_class",
                "per_class_spread",
                "per_class_floor",
                "memorization_features",
                "memorization_features_spread",
                "memorization_features_floor",
            ),
            {
                "generated": f"{len(generated.images)} {generated.description}",
                "real": f"{min(params.max_images, len(held_out.images))} of {len(held_out.images)} "
                f"{held_out.description}, of a class as many on both sides",
                "nearest_of": f"{min(params.max_images, len(train.images))} of {len(train.images)} {train.description}",
                "expected": "the nearness of real ones with the shares of classes of the generated ones",
                "floor": "these in the place of the generated ones, of a class that has as many",
                "precision_recall": f"{fidelity.NEIGHBOURS} nearest neighbours",
                "diversity": "mean distance of two images of a class, over that of real ones",
                "lacking": "a class of real images that none of the generated is of counts as 0",
                **extractor,
                "spread": f"of classes from {fidelity.RESAMPLES} random quarters of both sides, of the worst as of any "
                f"other; {shares} and held-out distances drawn again",
                **_common(params),
            },
        ),
    ]


def _common(params: Params) -> dict[str, Any]:
    """What every protocol ends in; those of fidelity have it of fidelity.protocol."""
    return {
        "quantization": "uint8",
        "seed": params.seed,
        "library": f"numpy {version('numpy')}, torch {version('torch')}",
    }


def _parzen_protocol(
    generated: Images, train: Images, held_out: Images, validation: Images, params: Params
) -> tuple[tuple[str, ...], dict[str, Any]]:
    chosen_on = f"{min(parzen.CHOOSING, len(validation.images))} of {len(validation.images)} {validation.description}"
    return (
        ("parzen", "parzen_real"),
        {
            "generated": f"{params.parzen_samples} of {len(generated.images)} {generated.description}",
            "real": f"{len(held_out.images)} {held_out.description}",
            "parzen_real": f"{params.parzen_samples} of {len(train.images)} {train.description} as the samples",
            "sigma": f"the best of {len(parzen.SIGMAS)} from logspace(-1, 0) on {chosen_on}",
            "unit": "nats per image, mean and standard error over the real images",
            **_common(params),
            "quantization": "uint8, then from 0 to 1",
            "historical": "after Goodfellow et al. 2014, who chose σ on 1,000 of the last 10,000 training images of "
            "MNIST; misleading, see arXiv 1511.01844",
        },
    )


def _cycle_protocol(
    generated: Images, held_out: Images, count: int, params: Params
) -> tuple[tuple[str, ...], dict[str, Any]]:
    return (
        ("cycle",),
        {
            "generated": f"{2 * count} of {len(generated.images)} {generated.description}",
            "real": f"{2 * count} of {len(held_out.images)} {held_out.description}, which these are translations of",
            "error": "between an image and what its translation is translated back to",
            "change": "between an image and its translation; without any, there would be no error either",
            "difference": "mean absolute, levels 0 to 255",
            **_common(params),
        },
    )


def run(document: Document, which: Literal["model", "synthetic"]) -> None:
    """Write out/evaluation/<which>: metrics.json and figures."""
    params = read_params(document)
    real = ImageSet.open(paths.REAL / paths.IMAGESET)
    if params.max_images < len(real.classes):
        raise document.error(
            "evaluate.max_images", f"is {params.max_images}; needed at least {len(real.classes)}, one of each class"
        )
    judges = Judges.load(paths.FEATURES)
    pretrained = Pretrained(params) if params.extractor != IN_DOMAIN else None
    # Held out is what nothing was chosen on: snapshots and the distance of copies are, on the validation split.
    train, held_out = _real(real, "train"), _real(real, "test")
    with side_by_side(params.threads) as pool:
        generated, untrained, round_trip = (
            _from_model(real, params, pool) if which == "model" else (_from_set(real, params), None, None)
        )
        found = evaluate(
            generated,
            train,
            held_out,
            pool=pool,
            classes=real.classes,
            judges=judges,
            params=params,
            pretrained=pretrained,
            untrained=untrained,
            validation=_real(real, "validation") if which == "model" and params.parzen_samples else None,
            round_trip=round_trip,
        )
    with atomic_folder(paths.EVALUATION / which) as folder:
        text = json.dumps(found.metrics, indent=2, ensure_ascii=False, allow_nan=False)
        (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
        (folder / "figures").mkdir()
        _draw(folder / "figures", found, generated, train, held_out, real.classes)


def _real(real: ImageSet, split: str) -> Images:
    images, labels = real.arrays(split)
    description = f"real images ({split} split of {real.fingerprint[:12]}, resize {real.resize or 'none'})"
    return Images(images=images, labels=labels, description=description)


def _from_model(real: ImageSet, params: Params, pool: Executor) -> tuple[Images, Images, RoundTrip | None]:
    """Samples of the trained generator, and of one like it with random weights.

    One that translates gets the held-out images to translate, and the round trip of these is the third.
    """
    model = Model.load(paths.MODEL)
    _check_alike(real, paths.MODEL, model)
    if model.translates and params.parzen_samples:
        raise UserError(
            f"params.yaml: evaluate.parzen_samples is {params.parzen_samples}; the {model.family} model translates and "
            "has no density of its own, needed 0"
        )
    model = model.with_sources(*real.arrays("test"))
    spec = ImageSpec(channels=model.channels, image_size=model.image_size, classes=len(model.classes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)
        generator = load_family(model.family).Generator(model.config, spec).eval().requires_grad_(False)
    name = f"the {model.family} model {model.sha256[:12]}"
    drawn = f"samples of {name} (seed {params.seed}, spread 1)"
    origin = f"translations of the test split by {name}" if model.translates else drawn
    before = dataclasses.replace(model, generator=generator)
    generated = _sampled(model, f"unfiltered {origin}", params, params.max_images, pool)
    untrained = _sampled(before, f"untrained {origin}", params, min(_UNTRAINED, params.max_images), pool)
    return generated, untrained, model.round_trip(len(generated.images) // 2) if model.translates else None


def _sampled(model: Model, description: str, params: Params, count: int, pool: Executor) -> Images:
    count = model.distinct(count)

    def sample(start: int) -> tuple[np.ndarray, np.ndarray]:
        return model.sample(seed=params.seed, start=start, count=min(_SAMPLED_AT_ONCE, count - start))

    parts = pool.map(sample, range(0, count, _SAMPLED_AT_ONCE))
    images, labels = map(np.concatenate, zip(*parts, strict=True))
    return Images(images=images, labels=labels, description=description, translated=model.translates)


def _from_set(real: ImageSet, params: Params) -> Images:
    synthetic = ImageSet.open(paths.SYNTHETIC / paths.IMAGESET)
    _check_alike(real, synthetic.root, synthetic)
    synthetic.check_classes_of(real)
    images, labels = synthetic.arrays("train")
    description = f"released images (drawn from {len(images)} of {synthetic.fingerprint[:12]}, seed {params.seed})"
    translated = "translated" in (synthetic.generator or {})
    released = Images(images=images, labels=labels, description=description, translated=translated)
    return released.draw(params.max_images, params.seed, every_class=True)


def _check_alike(real: ImageSet, path: Path, other: ImageSet | Model) -> None:
    """Raise UserError when the two sides cannot be compared."""
    for name in ("image_size", "channels", "classes"):
        found, needed = getattr(other, name), getattr(real, name)
        if found != needed:
            raise UserError(f"{path}: {name} is {found}; needed {needed} as in {real.root}")


def _draw(
    folder: Path, found: Evaluation, generated: Images, train: Images, held_out: Images, classes: Sequence[str]
) -> None:
    """The figures, and as CSV what `dvc plots` draws."""
    figures.sample_sheet(
        folder / "samples.png", (held_out.images, held_out.labels), (generated.images, found.labels), classes
    )
    groups = {
        "synthetic": (generated.images, *found.nearest),
        "synthetic, in features": (generated.images, *found.nearest_in_features),
        "real, held out": (held_out.images, *found.nearest_of_held_out),
    }
    figures.closest_pairs(folder / "closest.png", groups, train.images)
    alike, _ = neighbours.alike(found.labels, held_out.labels)
    figures.distances(folder / "distances.png", found.nearest[0], found.nearest_of_held_out[0][alike])
    if "agreement" in found.metrics:
        figures.shares(
            folder / "agreement.png",
            classes,
            np.array([row["agreement"] for row in found.per_class]),
            title="Judges agree with the asked-for class",
            reference=("with the labels of held-out real images", found.metrics["judges"]["held_out_accuracy"]),
        )
    names = np.array(classes)
    pairs = zip(names[found.labels], names[found.judged], strict=True)
    confusion = to_csv([{"asked": asked, "judged": judged} for asked, judged in pairs])
    (folder / "confusion.csv").write_text(confusion, encoding="utf-8")
    (folder / "per_class.csv").write_text(to_csv(found.per_class), encoding="utf-8")
