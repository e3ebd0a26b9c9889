"""Publishing what the stages left in a workspace, with a card written from their reports."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import paths
from pipeline.delivery.description import Advice, Description, Lineage, Metric
from pipeline.delivery.outputs import (
    AGAIN,
    LOCK,
    REPORTS,
    lineage_of,
    listed,
    protocols,
    read_output,
    read_report,
    read_stages,
)
from pipeline.delivery.pointer import LATEST
from pipeline.delivery.release import Published, publish
from pipeline.delivery.stores import Store, open_store
from pipeline.errors import FailedError, UserError
from pipeline.imageset import ImageSet, png

_MEASURED = {
    "fidelity.fid": "FID, lower is better",
    "floor.fid": "FID of real training images in the place of this set",
    "fidelity.precision": "precision: looks real",
    "fidelity.recall": "recall: covers the real images",
    "fidelity.coverage": "coverage: real images with one near by",
    "agreement.mean": "judges see the class that was asked for",
    "agreement.worst_class": "… in the worst class",
    "judges.held_out_accuracy": "judges see the class of held-out real images",
    "modes.classes_covered": "classes with at least a tenth of their real share",
    "modes.kl_from_real": "KL divergence of the shares of the classes from the real ones, nats",
    "modes_floor.kl_from_real": "… of as many real labels drawn at random",
    "modes.pixel_spread": "spread of pixels within a class, as a part of the real one",
    "memorization.nearer_than_median": "nearer to a training image than half of held-out real images are",
    "memorization.nearer_than_percentile_1": "… than 99 % of them are",
    "memorization.copies": "exact copies of training images",
    "memorization_features.nearer_than_median": "in features nearer to a training image than half of held-out ones are",
    "memorization_features.nearer_than_percentile_1": "… than 99 % of them are",
}
RARE_ARMS = {  # how rare classes are dealt with, as utility.json names it
    "filled": "rare classes filled up",
    "real": "real images only",
    "real_long": "real images only, seen as often",
    "oversampled": "real images only, rare classes oversampled",
    "weighted": "real images only, losses weighted by class",
}
_GRID_CLASSES, _GRID_COLUMNS, _GRID_CELL = 20, 10, 48
_NAMED = 5  # classes in a sentence


def publish_workspace(
    workspace: Path,
    url: str,
    name: str,
    *,
    key: Path | None = None,
    harmful: bool = False,
    channel: str = LATEST,
    why: str = "",
) -> Published:
    """Publish the synthetic set of `workspace` to the store at `url`, for the channel to name it, `why` in its history.

    A set that harms and helps nobody is published only when `harmful`, and its card begins with that.

    The params of the version are those that dvc.lock has of each stage, not what params.yaml has become since. Raises
    UserError when outputs are missing or have changed since another stage read them, FailedError when the set harms.
    """
    documents = {f"{title}.json": read_output(workspace / path) for title, path in REPORTS.items()}
    documents[LOCK.name] = read_output(workspace / LOCK)
    weights = read_output(workspace / paths.MODEL / "weights.safetensors")
    images = ImageSet.open(workspace / paths.SYNTHETIC / paths.IMAGESET)
    reports = {title: read_report(workspace, path) for title, path in REPORTS.items()}
    model = hashlib.sha256(weights + documents["model.json"]).hexdigest()
    if (images.generator or {}).get("model_sha256") != model:
        raise UserError(f"{images.root}: was drawn by another model than {workspace / paths.MODEL}; {AGAIN}")
    _check_inputs(workspace, read_stages(workspace))
    if harms(reports["utility/utility"]) and not harmful:
        raise FailedError(
            f"{name}: is not published, as it harms. {headline(reports['utility/utility'])} Needed a better set, or "
            "publish.harmful: true, here 'forgeline publish --harmful', to publish it with these words"
        )
    store = open_workspace_store(workspace, url)
    description = _describe(name, images, reports, lineage_of(workspace, images, reports))
    return publish(
        store, name, images.root, description=description, documents=documents, key=key, channel=channel, why=why
    )


def open_workspace_store(workspace: Path, url: str) -> Store:
    """The store at `url`; a folder is relative to the workspace. Nothing is read or written yet."""
    return open_store(url if "://" in url else str(workspace / url))


def _check_inputs(workspace: Path, stages: Mapping[str, Any]) -> None:
    """Raise UserError when a stage read another output of an earlier one than is there now; told by the size."""
    for name, stage in stages.items():
        for dependency in stage.get("deps", []):
            path = workspace / dependency["path"]
            if not Path(dependency["path"]).is_relative_to(paths.OUT):
                continue
            files = path.rglob("*") if path.is_dir() else [path]
            if sum(file.stat().st_size for file in files if file.is_file()) != dependency.get("size"):
                raise UserError(f"{path}: is not what stage '{name}' has read; {AGAIN}")


def _describe(name: str, images: ImageSet, reports: Mapping[str, Mapping[str, Any]], lineage: Lineage) -> Description:
    augment, utility = reports["augment"], reports["utility/utility"]
    dropped = ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in augment["dropped"].items())
    model = reports["model"]
    return Description(
        title=titled(name),
        licence=str(images.source.get("licence") or "unknown"),
        source=str(images.source.get("description", "")),
        verdict=("Published although it harms. " if harms(utility) else "") + headline(utility),
        measured=(*_gains(utility), *_measures(reports["evaluation/synthetic"])),
        mixing=tuple(Advice(real=_whose(row), share=row["advised_share"]) for row in utility["rows"]),
        filling=tuple(
            Advice(real=_whose(row), share=row["rare"]["advised_share"]) for row in utility["rows"] if "rare" in row
        ),
        not_good_for=(
            *_measured_to_harm(utility),
            "Measuring a classifier: only real images tell how good it is.",
            f"What the real images do not show: there are {len(images.classes)} classes of {images.image_size}×"
            f"{images.image_size} images here, and a rare case that the real ones lack is not among them.",
            f"Keeping the real images secret: {secrecy(images)}.",
        ),
        how_made=(
            f"A `{model['family']}` model that saw {model['images_seen']:,} images in training "
            f"{drawn(images, augment['drawn'])}, of which {augment['kept']:,} were kept (dropped: {dropped}). The "
            "classifiers that judge the set took no part in training or choosing it."
        ),
        grid=_grid(images),
        lineage=lineage,
    )


def titled(name: str) -> str:
    """What the set of this name is called in a heading."""
    return f"{name.replace('-', ' ').replace('_', ' ').capitalize()}: synthetic images"


def drawn(images: ImageSet, count: int) -> str:
    """What the generator of this set did to make so many images."""
    return f"translated {count:,} of its training images" if _translated(images) else f"drew {count:,} samples"


def secrecy(images: ImageSet) -> str:
    """How far the set keeps its generator's training images secret."""
    if _translated(images):
        return "each image is a translation of a training image, which `source` names, and shows its scene"
    return "near-copies were dropped, which is no proof that nothing of a training image can be recovered"


def _translated(images: ImageSet) -> bool:
    return "translated" in (images.generator or {})


def harms(utility: Mapping[str, Any]) -> bool:
    """Whether the set harms with some share of the real images, and helps with none.

    What helps who has few images, and harms who has many, is worth publishing: its verdict says both.
    """
    found = {verdict for verdict, _ in verdicts(utility)}
    return "harms" in found and "helps" not in found


def verdicts(utility: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each verdict of utility.json, and what it is on."""
    for row in utility["rows"]:
        yield row["verdict"], f"with {row['data']}"
        if "rare" in row:
            yield row["rare"]["verdict"], f"filling up rare classes with {row['data']}"


@dataclass(frozen=True, kw_only=True)
class ClassGain:
    """What a class gains in accuracy from the set, in points, with a share of the real images: `row` of utility.json.

    `loses` where the whole interval lies below zero.
    """

    name: str
    row: Mapping[str, Any]
    gain: Mapping[str, float]

    @property
    def loses(self) -> bool:
        return self.gain["high"] < 0


def class_gains(utility: Mapping[str, Any]) -> list[ClassGain]:
    """Of each class the share with which it fares worst, those that lose first; then by how little they gain."""

    def rank(each: ClassGain) -> tuple[bool, float]:
        return not each.loses, each.gain["mean"]

    worst: dict[str, ClassGain] = {}
    for row in utility["rows"]:
        for name, gain in row["class_gain_over_real_long"].items():
            if gain is not None:  # a class without test images
                here = ClassGain(name=name, row=row, gain=gain)
                worst[name] = min(worst.get(name, here), here, key=rank)
    return sorted(worst.values(), key=rank)


def headline(utility: Mapping[str, Any]) -> str:
    """The verdict of utility.json in one sentence for each question.

    What is gained is accuracy over real images alone, seen as often; of rare classes, recall over oversampling them.
    """
    rows = utility["rows"]
    added = _by_share((row["verdict"], row["gain_over_real_long"], row) for row in rows)
    words = f"Added to real images, this set {added}."
    if rare := [row for row in rows if "rare" in row]:
        shown = _few(list(rare[0]["rare"]["images"]))
        filled = _by_share((row["rare"]["verdict"], row["rare"]["recall_gain"]["oversampled"], row) for row in rare)
        words += f" Filling up the rare classes ({shown}) with it {filled}."
    alone = f"{utility['synthetic_only_accuracy']:.1f} % of real test images"
    return f"{words} Trained on this set alone, a classifier is right on {alone}."


def _measured_to_harm(utility: Mapping[str, Any]) -> Iterator[str]:
    """With which shares of the real images a classifier was worse, and which classes were."""
    for row in utility["rows"]:
        with_share = f"with {row['data']} of the real images ({row['protocol']})"
        if row["verdict"] == "harms":
            yield f"Training a classifier {with_share}: it was measured to be worse with this set."
        if "rare" in row and row["rare"]["verdict"] == "harms":
            yield f"Filling up the rare classes {with_share}: that was measured to harm."
    if losing := [each for each in class_gains(utility) if each.loses]:
        told = [f"'{each.name}' ({points(each.gain)} with {each.row['data']} of the real images)" for each in losing]
        yield (
            f"Recognizing {_few(told)}: a classifier was measured to do so less often with this set than without, real "
            "images being seen as often. Each interval stands for itself: none is corrected for how many classes and "
            "shares there are."
        )


def points(gain: Mapping[str, float]) -> str:
    """`+1.20 points [+0.80, +1.60]`."""
    return interval(gain).replace(" ", " points ", 1)


def interval(gain: Mapping[str, float]) -> str:
    """`+1.20 [+0.80, +1.60]`."""
    return f"{gain['mean']:+.2f} [{gain['low']:+.2f}, {gain['high']:+.2f}]"


def _few(names: Sequence[str]) -> str:
    """Names for a sentence, of many the first."""
    return listed(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _whose(row: Mapping[str, Any]) -> str:
    """The real images that a classifier has, and by which protocol."""
    return f"{row['real_images']:,} ({row['data']}), {row['protocol']}"


def _by_share(verdicts: Iterable[tuple[str, Mapping[str, float], Mapping[str, Any]]]) -> str:
    """Verdicts, each with the shares of the real images that it holds for, and what is gained there."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for verdict, gain, row in verdicts:
        found.setdefault((verdict, row["protocol"]), []).append((row["data"], interval(gain)))
    return "; ".join(
        f"{verdict} with {listed([data for data, _ in rows])} of them ({protocol}: "
        f"{', '.join(gain for _, gain in rows)} points)"
        for (verdict, protocol), rows in found.items()
    )


def _gains(utility: Mapping[str, Any]) -> Iterator[Metric]:
    """How many points a classifier gains, by share of the real images."""
    for row in utility["rows"]:
        protocol = [line for line in utility["protocol"] if line.startswith((row["protocol"], "Intervals"))]
        for key, over in {"gain_over_real": "only", "gain_over_real_long": "only, seen as often"}.items():
            gain = row[key]
            yield Metric(
                name=f"gain with {row['data']} of the real images ({row['real_images']:,}) over these {over}",
                value=points(gain),
                protocol=" ".join(protocol),
            )
        if rare := row.get("rare"):
            told = ("filled:", "oversampled:", "weighted:", "Rare")
            protocol += [line for line in utility["protocol"] if line.startswith(told)]
            measures = {"recall": "recall of rare classes", "balanced_accuracy": "balanced accuracy"}
            for measure, title in measures.items():
                for arm, words in RARE_ARMS.items():
                    level, gain = rare[measure][arm], rare[f"{measure}_gain"].get(arm)
                    over = f"; filling up gains {points(gain)} over it" if gain else ""
                    yield Metric(
                        name=f"{title} with {row['data']} of the real images, {words}",
                        value=f"{level['mean']:.2f} % [{level['low']:.2f}, {level['high']:.2f}]{over}",
                        protocol=" ".join(protocol),
                    )


def _measures(metrics: Mapping[str, Any]) -> Iterator[Metric]:
    for blocks, said in protocols(metrics):
        protocol = "; ".join(f"{key}: {text}" for key, text in said.items())
        for dotted, title in _MEASURED.items():
            section, _, key = dotted.partition(".")
            value = metrics.get(section, {}).get(key)
            if section in blocks and value is not None:
                yield Metric(name=title, value=f"{value:.4g}", protocol=protocol)


def _grid(images: ImageSet) -> bytes:
    """A PNG of the first images of each class, a row for a class; only rows that this needs are read."""
    found: list[list[NDArray[np.uint8]]] = [[] for _ in images.classes[:_GRID_CLASSES]]
    for shard in images.shards:
        with pq.ParquetFile(images.root / shard.path) as parquet:
            for batch in parquet.iter_batches(batch_size=100, columns=["image.bytes", "label"]):
                for label, data in zip(batch["label"].to_pylist(), batch["image"].field("bytes"), strict=True):
                    if label < len(found) and len(found[label]) < _GRID_COLUMNS:
                        found[label].append(png.decode(data.as_py(), images.shape))
                if all(len(row) == _GRID_COLUMNS for row in found):
                    break
    side = images.image_size + 1
    picture = np.full((images.channels, len(found) * side, _GRID_COLUMNS * side), 255, np.uint8)
    for top, row in enumerate(found):
        for left, image in enumerate(row):
            picture[:, top * side : (top + 1) * side - 1, left * side : (left + 1) * side - 1] = image
    scale = max(1, round(_GRID_CELL / side))
    return png.encode(picture[:, :-1, :-1].repeat(scale, axis=1).repeat(scale, axis=2))
