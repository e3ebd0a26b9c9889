"""Publishing what the stages left in a workspace, with a card written from their reports."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import paths
from pipeline.delivery.description import Advice, Description, Lineage, Metric
from pipeline.delivery.pointer import LATEST
from pipeline.delivery.release import Published, publish
from pipeline.delivery.stores import Store, open_store
from pipeline.errors import FailedError, UserError
from pipeline.imageset import ImageSet, png
from pipeline.params import Document

_LOCK = Path("dvc.lock")
_REPORTS = {
    "augment": paths.SYNTHETIC / "report.json",
    "evaluation/model": paths.EVALUATION / "model" / "metrics.json",
    "evaluation/synthetic": paths.EVALUATION / "synthetic" / "metrics.json",
    "model": paths.MODEL / "model.json",
    "utility/utility": paths.UTILITY / "utility.json",
    "validation/real": paths.VALIDATION / "real" / "report.json",
    "validation/synthetic": paths.VALIDATION / "synthetic" / "report.json",
}
_MEASURED = {
    "fidelity.fid": "FID, lower is better",
    "floor.fid": "FID of real training images in the place of this set",
    "fidelity.precision": "precision: looks real",
    "fidelity.recall": "recall: covers the real images",
    "agreement.mean": "judges see the class that was asked for",
    "agreement.worst_class": "… in the worst class",
    "judges.held_out_accuracy": "judges see the class of held-out real images",
    "modes.pixel_spread": "spread of pixels within a class, as a part of the real one",
    "memorization.nearer_than_percentile_1": "nearer to a training image than 99 % of held-out real images are",
    "memorization.copies": "exact copies of training images",
}
_RARE_BASELINES = {
    "real_long": "these only, seen as often",
    "oversampled": "these only, rare classes oversampled",
    "weighted": "these only, losses weighted by class",
}
_GRID_CLASSES, _GRID_COLUMNS, _GRID_CELL = 20, 10, 48
_AGAIN = "needed what all stages wrote, run 'dvc repro' first"


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
    documents = {f"{title}.json": read_output(workspace / path) for title, path in _REPORTS.items()}
    documents[_LOCK.name] = read_output(workspace / _LOCK)
    weights = read_output(workspace / paths.MODEL / "weights.safetensors")
    stages = Document.load(workspace / _LOCK).mapping("stages")
    images = ImageSet.open(workspace / paths.SYNTHETIC / paths.IMAGESET)
    reports = {title: parse_report(documents[f"{title}.json"], workspace / path) for title, path in _REPORTS.items()}
    model = hashlib.sha256(weights + documents["model.json"]).hexdigest()
    if (images.generator or {}).get("model_sha256") != model:
        raise UserError(f"{images.root}: was drawn by another model than {workspace / paths.MODEL}; {_AGAIN}")
    _check_inputs(workspace, stages)
    if harms(reports["utility/utility"]) and not harmful:
        raise FailedError(
            f"{name}: is not published, as it harms. {headline(reports['utility/utility'])} Needed a better set, or "
            "publish.harmful: true, here 'forgeline publish --harmful', to publish it with these words"
        )
    lineage = Lineage(
        model=model,
        params=_params(stages),
        seed=reports["augment"]["params"]["seed"],
        data_fingerprint=reports["model"]["data_fingerprint"],
        dvc_lock=hashlib.sha256(documents[_LOCK.name]).hexdigest(),
        git_commit=_git_commit(workspace),
        metrics={title: reports[title] for title in ("evaluation/model", "evaluation/synthetic", "utility/utility")},
        validation={title: reports[title] for title in ("validation/real", "validation/synthetic")},
    )
    store = open_workspace_store(workspace, url)
    description = _describe(name, images, reports, lineage)
    return publish(
        store, name, images.root, description=description, documents=documents, key=key, channel=channel, why=why
    )


def open_workspace_store(workspace: Path, url: str) -> Store:
    """The store at `url`; a folder is relative to the workspace. Nothing is read or written yet."""
    return open_store(url if "://" in url else str(workspace / url))


def read_output(path: Path) -> bytes:
    """What a stage wrote. Raises UserError where it is not there."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: is not there; {_AGAIN}") from None


def parse_report(data: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in `data`, which are of `path`. Raises UserError where they are none."""
    try:
        content = json.loads(data, parse_constant=lambda word: None)  # a NaN is nothing that was measured
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a JSON object; {_AGAIN}")
    return content


def _check_inputs(workspace: Path, stages: Mapping[str, Any]) -> None:
    """Raise UserError when a stage read another output of an earlier one than is there now; told by the size."""
    for name, stage in stages.items():
        for dependency in stage.get("deps", []):
            path = workspace / dependency["path"]
            if not Path(dependency["path"]).is_relative_to(paths.OUT):
                continue
            files = path.rglob("*") if path.is_dir() else [path]
            if sum(file.stat().st_size for file in files if file.is_file()) != dependency["size"]:
                raise UserError(f"{path}: is not what stage '{name}' has read; {_AGAIN}")


def _params(stages: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key: value, of every stage as it ran."""
    return {
        key: value
        for stage in stages.values()
        for values in stage.get("params", {}).values()
        for key, value in values.items()
    }


def _git_commit(workspace: Path) -> str | None:
    """HEAD, with `-dirty` where other files than dvc.lock differ from it; None where git does not know."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(workspace), *words], capture_output=True, text=True)

    try:
        head = git("rev-parse", "--verify", "HEAD")
        clean = git("diff", "--quiet", "HEAD", "--", ".", f":(exclude){_LOCK}")
    except FileNotFoundError:
        return None
    return None if head.returncode else head.stdout.strip() + ("" if clean.returncode == 0 else "-dirty")


def _describe(name: str, images: ImageSet, reports: Mapping[str, Mapping[str, Any]], lineage: Lineage) -> Description:
    augment, utility = reports["augment"], reports["utility/utility"]
    dropped = ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in augment["dropped"].items())
    model = reports["model"]
    return Description(
        title=f"{name.replace('-', ' ').replace('_', ' ').capitalize()}: synthetic images",
        licence=str(images.source.get("licence") or "unknown"),
        source=str(images.source.get("description", "")),
        verdict=("Published although it harms. " if harms(utility) else "") + headline(utility),
        measured=(*_gains(utility), *_measures(reports["evaluation/synthetic"])),
        mixing=tuple(
            Advice(
                real=f"{row['real_images']:,} ({row['data']}), {row['protocol']}",
                share=row["advised_share"],
            )
            for row in utility["rows"]
        ),
        not_good_for=(
            *(["Training a classifier: one was measured to be worse with this set."] if harms(utility) else []),
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
    verdicts = {each["verdict"] for row in utility["rows"] for each in (row, row.get("rare", row))}
    return "harms" in verdicts and "helps" not in verdicts


def headline(utility: Mapping[str, Any]) -> str:
    """The verdict of utility.json in one sentence for each question."""
    rows = utility["rows"]
    words = f"Added to real images, this set {_by_share((row['verdict'], row) for row in rows)}."
    if rare := [row for row in rows if "rare" in row]:
        names = list(rare[0]["rare"]["images"])
        shown = _listed(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        filled = _by_share((row["rare"]["verdict"], row) for row in rare)
        words += f" Filling up the rare classes ({shown}) with it {filled}."
    alone = f"{utility['synthetic_only_accuracy']:.1f} % of real test images"
    return f"{words} Trained on this set alone, a classifier is right on {alone}."


def _by_share(verdicts: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """Verdicts, each with the shares of the real images that it holds for."""
    found: dict[str, list[str]] = {}
    for verdict, row in verdicts:
        found.setdefault(f"{verdict} with {{}} of them ({row['protocol']})", []).append(row["data"])
    return "; ".join(words.format(_listed(data)) for words, data in found.items())


def _gains(utility: Mapping[str, Any]) -> Iterator[Metric]:
    """How many points a classifier gains, by share of the real images."""
    for row in utility["rows"]:
        protocol = [line for line in utility["protocol"] if line.startswith((row["protocol"], "Intervals"))]
        for key, over in {"gain_over_real": "only", "gain_over_real_long": "only, seen as often"}.items():
            gain = row[key]
            yield Metric(
                name=f"gain with {row['data']} of the real images ({row['real_images']:,}) over these {over}",
                value=f"{gain['mean']:+.2f} points [{gain['low']:+.2f}, {gain['high']:+.2f}]",
                protocol=" ".join(protocol),
            )
        if rare := row.get("rare"):
            told = ("filled:", *(f"{arm}:" for arm in _RARE_BASELINES), "Rare")
            protocol += [line for line in utility["protocol"] if line.startswith(told)]
            for arm, over in _RARE_BASELINES.items():
                gain = rare["recall_gain"][arm]
                yield Metric(
                    name=f"recall of rare classes filled up, with {row['data']} of the real images, over {over}",
                    value=f"{gain['mean']:+.2f} points [{gain['low']:+.2f}, {gain['high']:+.2f}]",
                    protocol=" ".join(protocol),
                )


def _measures(metrics: Mapping[str, Any]) -> Iterator[Metric]:
    for block in metrics["protocol"]:
        texts = {key: value if isinstance(value, str) else _listed(value) for key, value in block.items()}
        protocol = "; ".join(f"{key.replace('_', ' ')}: {text}" for key, text in texts.items() if key != "measures")
        for dotted, title in _MEASURED.items():
            section, _, key = dotted.partition(".")
            if section in block["measures"] and key in metrics.get(section, {}):
                short = re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", protocol)
                yield Metric(name=title, value=f"{metrics[section][key]:.4g}", protocol=short)


def _listed(items: Iterable[object] | int) -> str:
    return ", ".join(map(str, items)) if isinstance(items, Iterable) else str(items)


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
