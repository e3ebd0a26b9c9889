"""utility: does the synthetic set help a classifier? → out/utility: utility.json, table.csv, choices.csv, figures/.

All classifiers are trained first. For each fraction of the real images, the learning rate (with real images only) and
the share of synthetic images are chosen on the validation split; then the chosen ones meet the test split, once.
Where classes are rare, there are also classifiers that are told of it, with real images only and with synthetic ones.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import chain
from math import ceil, inf
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import paths
from pipeline.errors import FailedError, UserError
from pipeline.imageset import ImageSet
from pipeline.imageset.files import atomic_folder
from pipeline.imageset.imageset import named
from pipeline.imageset.subset import rare_labels
from pipeline.metrics.classifier import NARROWEST, load, predict, recipe, save
from pipeline.metrics.utility import (
    ADVISED,
    ARMS,
    BASELINES,
    PROTOCOLS,
    RARE_ARMS,
    RARE_BASELINES,
    RARE_CLASSES,
    Arm,
    Data,
    Interval,
    Protocol,
    Training,
    intervals,
    listed,
    percent,
    protocol_of,
    rare_sentence,
    rare_verdict,
    sentence,
    t_interval,
    train,
    validation_score,
    verdict,
)
from pipeline.params import Document, within
from pipeline.progress import ProgressLine
from pipeline.report.tables import to_csv


@dataclass(frozen=True, kw_only=True)
class Params:
    """The `utility` section of params.yaml.

    `fractions` are of the real training split. Every classifier sees `images_seen` images, those of the arm `real` half
    as many. For each fraction one of `learning_rates` is chosen with real images only, and all arms use it; and one of
    `synthetic_shares` of the images that the arm `mixed` sees. Where classes are rare, the arms that are told of it
    choose among the same. The first `choosing_seeds` of the `seeds` choose.
    """

    fractions: tuple[float, ...] = (0.05, 0.1, 0.2, 1.0)
    seeds: int = 5
    choosing_seeds: int = 2
    images_seen: int = 20_000
    learning_rates: tuple[float, ...] = (0.005, 0.02)
    synthetic_shares: tuple[float, ...] = (0.3, 0.7)
    width: int = 16  # channels of the first layer
    flip: bool = False  # whether a mirror image keeps its class

    def __post_init__(self) -> None:
        for name in ("fractions", "learning_rates", "synthetic_shares"):
            values = getattr(self, name)
            if not values or sorted(set(values)) != list(values) or not 0 < values[0] <= values[-1] <= 1:
                raise ValueError(f"{name} is {list(values)}; needed numbers above 0 and at most 1, in ascending order")
        if self.synthetic_shares[-1] == 1:
            raise ValueError("synthetic_shares has 1; needed shares below 1, all synthetic is an arm of its own")
        within(self, seeds=(2, inf), choosing_seeds=(1, inf), images_seen=(1000, inf), width=(NARROWEST, inf))
        if self.choosing_seeds > self.seeds:
            raise ValueError(f"choosing_seeds is {self.choosing_seeds}; needed at most seeds, {self.seeds}")

    def training(self, arm: Arm, fraction: float, seed: int, learning_rate: float, share: float = 0.0) -> Training:
        return Training(
            arm=arm,
            fraction=fraction,
            seed=seed,
            images_seen=self.images_seen // 2 if arm == "real" else self.images_seen,
            learning_rate=learning_rate,
            synthetic_share=share,
            width=self.width,
            flip=self.flip,
        )

    def all_images_seen(self, *, imbalanced: bool = False) -> int:
        """By all classifiers together."""
        rates, shares = (
            len(grid) * self.choosing_seeds + self.seeds - self.choosing_seeds
            for grid in (self.learning_rates, self.synthetic_shares)
        )
        long = len(self.fractions) * (rates + shares + imbalanced * (2 * rates + shares)) + rates
        return long * self.images_seen + len(self.fractions) * self.seeds * (self.images_seen // 2)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Which real training images `ingest` kept, for generator and classifiers alike."""

    train_fraction: float = 1.0
    class_counts: dict[str, int] = field(default_factory=dict)

    def share(self, fraction: float) -> str:
        """What `fraction` of these is of the data, in words."""
        thinned = f" ({named(list(self.class_counts))} thinned out)" if self.class_counts else ""
        return f"{percent(fraction * self.train_fraction)} of the data{thinned}"


def read_params(document: Document) -> tuple[Params, Kept]:
    """`utility`, and those settings of `ingest` that matter here."""
    section = document.mapping("ingest") if "ingest" in document.content else {}
    known = {name: section[name] for name in ("train_fraction", "class_counts") if name in section}
    return document.section("utility", Params), document.build("ingest", known, Kept)


def run(document: Document) -> None:
    """Write out/utility, whole or not at all. Raises UserError when the two sets do not fit each other."""
    from pipeline.report.utility import draw, draw_choices

    params, kept = read_params(document)
    roots = (paths.REAL / paths.IMAGESET, paths.SYNTHETIC / paths.IMAGESET)
    real, synthetic = map(ImageSet.open, roots)
    if (len(synthetic.classes), synthetic.shape) != (len(real.classes), real.shape):
        raise UserError(
            f"{synthetic.root}: has {len(synthetic.classes)} classes of shape {synthetic.shape}; needed the "
            f"{len(real.classes)} classes and the shape {real.shape} of {real.root}"
        )
    for label, (name, needed) in enumerate(zip(synthetic.classes, real.classes, strict=True)):
        if name != needed:
            raise UserError(f"{synthetic.root}: calls class {label} '{name}'; needed '{needed}' as in {real.root}")
    synthetic.check_classes_of(real)
    with TemporaryDirectory() as folder, workers(*roots) as pool:
        outcome = measure(params, pool, Path(folder), imbalanced=bool(_rare_labels(real)))
    report = describe(outcome, params, real, synthetic, kept)
    with atomic_folder(paths.UTILITY) as folder:
        (folder / "figures").mkdir()
        (folder / "table.csv").write_text(table(report["rows"]), encoding="utf-8")
        (folder / "choices.csv").write_text(to_csv(report["choices"]), encoding="utf-8")
        text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
        (folder / "utility.json").write_text(text + "\n", encoding="utf-8")
        draw(folder / "figures" / "utility.png", report["rows"])
        draw_choices(folder / "figures" / "choices.png", report["choices"])
    for row in report["rows"]:
        print(f"utility: {row['sentence']}")
        if "rare" in row:
            print(f"utility: {row['rare']['sentence']}")


Setting = tuple[Training, ...]  # one training for each seed, alike in all else


@dataclass(kw_only=True)
class Outcome:
    """What was found, by (fraction of the real images, arm)."""

    choosing_seeds: int
    candidates: dict[tuple[float, Arm], list[Setting]] = field(default_factory=dict)
    chosen: dict[tuple[float, Arm], Setting] = field(default_factory=dict)
    validation: dict[Training, float] = field(default_factory=dict)  # what is chosen by, percent
    test_labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    test_right: dict[Training, NDArray[np.bool_]] = field(default_factory=dict)  # which test images; of chosen ones

    def validated(self, setting: Setting) -> float:
        """Mean accuracy on the validation split over the seeds that choose, percent; of RARE_ARMS the balanced one."""
        known = [self.validation[training] for training in setting[: self.choosing_seeds]]
        return round(float(np.mean(known)), 9)

    def gain(self, fraction: float, arm: Arm, without: Arm, label: int | None = None) -> Interval:
        """Of `tested`, of the one over the other."""
        images = len(self.test_labels) if label is None else int((self.test_labels == label).sum())
        return t_interval(self.tested(fraction, arm, label) - self.tested(fraction, without, label), 100 / images)

    def advised_share(self, fraction: float, arm: Arm, without: Arm, step: float) -> float:
        """The synthetic part of `arm` to mix in: 0 where no gain over `without` is seen on the validation split.

        `step` is what one image of that split counts.
        """
        chosen, baseline = self.chosen[fraction, arm], self.chosen[fraction, without]
        gains = [self.validation[one] - self.validation[other] for one, other in zip(chosen, baseline, strict=True)]
        return chosen[0].synthetic_share if t_interval(gains, step).low > 0 else 0.0

    def tested(self, fraction: float, arm: Arm, label: int | None = None) -> NDArray[np.float64]:
        """Accuracy on the test split, or on its images of one class, of which it has some, by seed (S,), percent."""
        of_class = self.test_labels == label if label is not None else slice(None)
        return np.array([100 * self.test_right[training][of_class].mean() for training in self.chosen[fraction, arm]])


def measure(params: Params, pool: Executor, folder: Path, *, imbalanced: bool = False) -> Outcome:
    """Train and choose; only then test. `folder` keeps the classifiers in between; RARE_ARMS are for `imbalanced`."""
    told: tuple[Arm, ...] = ("oversampled", "weighted") if imbalanced else ()
    outcome, files = Outcome(choosing_seeds=params.choosing_seeds), dict[Training, Path]()
    line = ProgressLine("utility", params.all_images_seen(imbalanced=imbalanced), "images")

    def setting(arm: Arm, fraction: float, learning_rate: float, share: float = 0.0) -> Setting:
        return tuple(params.training(arm, fraction, seed, learning_rate, share) for seed in range(params.seeds))

    def train_all(trainings: Iterable[Training]) -> None:
        running = {}
        for training in trainings:
            files[training] = folder / f"{len(files)}.safetensors"
            running[pool.submit(_train, training, files[training])] = training
        for future in as_completed(running):
            outcome.validation[running[future]] = future.result()
            line.update(sum(training.images_seen for training in outcome.validation))

    def settle(candidates: Mapping[tuple[float, Arm], list[Setting]]) -> None:
        """Choose among the candidates of each key on the validation split, of equals the first."""
        settings = list(chain.from_iterable(candidates.values()))
        train_all(training for setting in settings for training in setting[: params.choosing_seeds])
        chosen = {key: max(settings, key=outcome.validated) for key, settings in candidates.items()}
        train_all(training for setting in chosen.values() for training in setting[params.choosing_seeds :])
        outcome.candidates |= candidates
        outcome.chosen |= chosen

    settle(
        {
            (fraction, arm): [setting(arm, fraction, rate) for rate in params.learning_rates]
            for fraction in params.fractions
            for arm in ("real_long", *told)
        }
        | {(0.0, "synthetic"): [setting("synthetic", 0.0, rate, 1.0) for rate in params.learning_rates]}
    )

    def rates_of(arm: Arm) -> dict[float, float]:
        return {fraction: outcome.chosen[fraction, arm][0].learning_rate for fraction in params.fractions}

    rates, filling = rates_of("real_long"), rates_of("oversampled") if imbalanced else {}
    settle(
        {(fraction, "real"): [setting("real", fraction, rate)] for fraction, rate in rates.items()}
        | {
            (fraction, "mixed"): [setting("mixed", fraction, rate, share) for share in params.synthetic_shares]
            for fraction, rate in rates.items()
        }
        | {
            (fraction, "filled"): [setting("filled", fraction, rate, share) for share in params.synthetic_shares]
            for fraction, rate in filling.items()
        }
    )
    chosen = [training for setting in outcome.chosen.values() for training in setting]
    # Every choice is made: from here on the test split is known.
    outcome.test_labels, right = pool.submit(_test, [files[training] for training in chosen]).result()
    outcome.test_right = dict(zip(chosen, right, strict=True))
    return outcome


@contextmanager
def workers(real: Path, synthetic: Path) -> Iterator[Executor]:
    """A process for each core, each with both ImageSets open and torch on one thread: results know no core count."""
    context = multiprocessing.get_context("spawn")
    watched, held = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        len(os.sched_getaffinity(0)), mp_context=context, initializer=_begin, initargs=(watched, real, synthetic)
    )
    try:
        yield pool
    except BaseException as error:
        held.close()
        if isinstance(error, BrokenProcessPool):
            raise FailedError("utility: a worker was killed, which is what a machine out of memory does") from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)


_sets: tuple[ImageSet, ImageSet]  # of a worker: real and synthetic


def _begin(watched: Connection, real: Path, synthetic: Path) -> None:
    """Begin a worker. It ends at once when the other end of `watched` is closed, also by the death of its holder."""

    def end_with_parent() -> None:
        with suppress(EOFError):
            watched.recv()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    torch.set_num_threads(1)
    global _sets
    _sets = ImageSet.open(real), ImageSet.open(synthetic)


def _train(training: Training, file: Path) -> float:
    """Train, save to `file`, and return the `validation_score`."""
    real, synthetic = _sets
    contents = real.table("train", ["content"])["content"].to_pylist()
    data = Data(
        real=real.arrays("train"), contents=contents, synthetic=synthetic.arrays("train"), classes=len(real.classes)
    )
    classifier = train(training, data)
    save(classifier, file)
    images, labels = real.arrays("validation")
    return validation_score(training.arm, predict(classifier, images).argmax(axis=1) == labels, labels)


def _test(files: Sequence[Path]) -> tuple[NDArray[np.int64], list[NDArray[np.bool_]]]:
    """The labels of the test split, and which images each classifier gets right. Nothing else reads this split."""
    images, labels = _sets[0].arrays("test")
    return labels, [predict(load(file), images).argmax(axis=1) == labels for file in files]


def describe(outcome: Outcome, params: Params, real: ImageSet, synthetic: ImageSet, kept: Kept) -> dict[str, Any]:
    """What utility.json holds. `dvc metrics show` shows what is outside of lists; these are for people and reports."""
    generator = synthetic.generator or {}
    same_set = generator.get("data_fingerprint") == real.fingerprint and "parent_sha256" not in generator
    rows = [_row(outcome, fraction, real, kept, same_set=same_set) for fraction in params.fractions]
    imbalanced = "rare" in rows[0]
    gains = {
        row["data"]: {arm: gain["mean"] for arm, gain in row["rare"]["recall_gain"].items()}
        for row in rows
        if imbalanced
    }
    return {
        "synthetic_only_accuracy": t_interval(outcome.tested(0.0, "synthetic")).mean,
        "gain_over_real": {row["data"]: row["gain_over_real"]["mean"] for row in rows},
        "gain_over_real_long": {row["data"]: row["gain_over_real_long"]["mean"] for row in rows},
        **({"rare_recall_gain": gains} if imbalanced else {}),
        "rows": rows,
        "choices": [
            {
                "arm": arm,
                "fraction": fraction,
                "learning_rate": setting[0].learning_rate,
                "synthetic_share": setting[0].synthetic_share,
                "images_seen": setting[0].images_seen,
                "validation_accuracy": outcome.validated(setting),
                "chosen": setting == outcome.chosen[fraction, arm],
            }
            for (fraction, arm), settings in outcome.candidates.items()
            for setting in settings
        ],
        "protocol": _protocol(params, real, synthetic, kept, imbalanced=imbalanced),
    }


def _protocol(params: Params, real: ImageSet, synthetic: ImageSet, kept: Kept, *, imbalanced: bool) -> list[str]:
    """How it was measured, on what and with what, a line for each thing."""
    images = {split: sum(counts) for split, counts in real.counts.items()}
    untested = [name for name, count in zip(real.classes, real.counts["test"], strict=True) if not count]
    learned_from = str((synthetic.generator or {}).get("data_fingerprint", "unknown data"))
    rates, shares = (
        ", ".join(f"{value:g}" for value in grid) for grid in (params.learning_rates, params.synthetic_shares)
    )
    return [
        *PROTOCOLS.values(),
        *(f"{arm}: {meaning}." for arm, meaning in (ARMS | RARE_ARMS if imbalanced else ARMS).items()),
        intervals(params.seeds, images["test"]),
        ADVISED,
        *([RARE_CLASSES] if imbalanced else []),
        *([f"Without a test image, and so in no figure of a class: {named(untested)}."] if untested else []),
        f"Each classifier is {recipe(width=params.width, flip=params.flip)}.",
        f"Each saw {params.images_seen:,} images, of the arm real {params.images_seen // 2:,}. Learning rates are of "
        f"{rates}, synthetic parts of {shares}, chosen by {params.choosing_seeds} of the {params.seeds} seeds on "
        f"{images['validation']:,} validation images.",
        f"Real images: {images['train']:,} for training, of {real.fingerprint[:12]}, resize {real.resize or 'none'}. "
        f"Synthetic images: {sum(synthetic.counts['train']):,}, of {synthetic.fingerprint[:12]}, whose generator "
        f"learned from {learned_from[:12]}.",
        *([f"Thinned out by ingest.class_counts: {listed(kept.class_counts)}."] if kept.class_counts else []),
        f"Library: numpy {version('numpy')}, scipy {version('scipy')}, torch {version('torch')}.",
    ]


def _rare_labels(real: ImageSet) -> list[int]:
    """The labels of the classes that are rare and have test images: of the others nothing can be measured."""
    return [label for label in rare_labels(real.counts["train"]) if real.counts["test"][label]]


def _row(outcome: Outcome, fraction: float, real: ImageSet, kept: Kept, *, same_set: bool) -> dict[str, Any]:
    """What holds for classifiers with `fraction` of the real training split; accuracies and gains are in percent."""
    accuracy = {arm: outcome.tested(0.0 if arm == "synthetic" else fraction, arm) for arm in ARMS}
    gains = {arm: outcome.gain(fraction, "mixed", arm) for arm in BASELINES}
    protocol = protocol_of(fraction, same_set=same_set)
    data = kept.share(fraction)
    generator_data = f"{percent(kept.train_fraction)} of it" if same_set else "other data"
    by_class = {
        name: asdict(outcome.gain(fraction, "mixed", "real_long", label)) if count else None
        for label, (name, count) in enumerate(zip(real.classes, real.counts["test"], strict=True))
    }
    chosen = outcome.chosen[fraction, "mixed"]
    return {
        "data": percent(fraction * kept.train_fraction),
        "data_fraction": round(fraction * kept.train_fraction, 9),
        "real_images": sum(ceil(round(fraction * count, 9)) for count in real.counts["train"]),
        "protocol": protocol,
        "verdict": verdict(list(gains.values())),
        "sentence": sentence(protocol, data, generator_data, gains["real"], gains["real_long"], len(chosen)),
        "gain_over_real": asdict(gains["real"]),
        "gain_over_real_long": asdict(gains["real_long"]),
        "accuracy": {arm: asdict(t_interval(values)) for arm, values in accuracy.items()},
        "accuracy_by_seed": {arm: [round(value, 4) for value in values.tolist()] for arm, values in accuracy.items()},
        "class_gain_over_real_long": by_class,
        "learning_rate": chosen[0].learning_rate,
        "synthetic_share": chosen[0].synthetic_share,
        "advised_share": outcome.advised_share(fraction, "mixed", "real_long", 100 / sum(real.counts["validation"])),
        **_rare(outcome, fraction, real, protocol, data, generator_data),
    }


def _rare(
    outcome: Outcome, fraction: float, real: ImageSet, protocol: Protocol, data: str, generator_data: str
) -> dict[str, Any]:
    """What a row has more where classes are rare: their recall, and what is gained by filling them up, in percent."""
    if not (labels := _rare_labels(real)):
        return {}
    rare = {real.classes[label]: ceil(round(fraction * real.counts["train"][label], 9)) for label in labels}
    images = {label: count for label, count in enumerate(real.counts["test"]) if count}  # of a class, in the test split
    by_class = {  # of each class that has test images, by seed
        arm: {label: outcome.tested(0.0 if arm == "synthetic" else fraction, arm, label) for label in images}
        for arm in ARMS | RARE_ARMS
    }
    recall, balanced = (
        {arm: np.mean([values[label] for label in those], axis=0) for arm, values in by_class.items()}
        for those in (labels, images)
    )
    # One image counts most in the smallest class, and least in the largest: so fewer sets are said to help.
    of_rare = [images[label] for label in labels]
    steps = [100 / (len(of_rare) * min(of_rare)), 100 / (len(images) * max(images.values()))]
    recall_gain, balanced_gain = (
        {arm: t_interval(values["filled"] - values[arm], step) for arm in RARE_BASELINES}
        for values, step in zip((recall, balanced), steps, strict=True)
    )
    chosen = outcome.chosen[fraction, "filled"]
    validated = [count for count in real.counts["validation"] if count]
    found = {
        "images": rare,
        "verdict": rare_verdict(recall_gain, balanced_gain),
        "sentence": rare_sentence(protocol, data, generator_data, rare, recall_gain, balanced_gain, len(chosen)),
        "recall_gain": _as_dicts(recall_gain),
        "balanced_accuracy_gain": _as_dicts(balanced_gain),
        "recall": _as_dicts({arm: t_interval(values) for arm, values in recall.items()}),
        "balanced_accuracy": _as_dicts({arm: t_interval(values) for arm, values in balanced.items()}),
        "recall_by_seed": {arm: [round(value, 4) for value in values.tolist()] for arm, values in recall.items()},
        "recall_by_class": {
            name: {arm: round(float(values[label].mean()), 4) for arm, values in by_class.items()}
            if label in images
            else None
            for label, name in enumerate(real.classes)
        },
        "learning_rate": chosen[0].learning_rate,
        "synthetic_share": chosen[0].synthetic_share,
        "advised_share": outcome.advised_share(
            fraction, "filled", "oversampled", 100 / (len(validated) * min(validated))
        ),
    }
    return {"rare": found}


def _as_dicts(intervals: Mapping[Any, Interval]) -> dict[str, dict[str, float]]:
    return {arm: asdict(interval) for arm, interval in intervals.items()}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as CSV for `dvc plots`: one line per fraction, for each arm and gain its mean and interval."""
    flat = []
    for row in rows:
        line = {name: row[name] for name in ("data_fraction", "protocol", "real_images", "verdict")}
        intervals = row["accuracy"] | {name: row[name] for name in row if name.startswith("gain_")}
        if rare := row.get("rare"):
            intervals |= {f"rare_recall_{arm}": interval for arm, interval in rare["recall"].items()}
            intervals |= {f"rare_recall_gain_over_{arm}": interval for arm, interval in rare["recall_gain"].items()}
            intervals |= {f"balanced_accuracy_{arm}": each for arm, each in rare["balanced_accuracy"].items()}
        for name, interval in intervals.items():
            line |= {name: interval["mean"], f"{name}_low": interval["low"], f"{name}_high": interval["high"]}
        flat.append(line)
    return to_csv(flat)
