"""What the stages left in a workspace: read, held to what its readers need of it, and where it came from."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline import paths
from pipeline.delivery.description import Lineage
from pipeline.errors import UserError
from pipeline.imageset import ImageSet
from pipeline.params import Document

LOCK = Path("dvc.lock")
AGAIN = "needed what all stages wrote, run 'dvc repro' first"
REPORTS = {
    "augment": paths.SYNTHETIC / "report.json",
    "evaluation/model": paths.EVALUATION / "model" / "metrics.json",
    "evaluation/synthetic": paths.EVALUATION / "synthetic" / "metrics.json",
    "model": paths.MODEL / "model.json",
    "utility/utility": paths.UTILITY / "utility.json",
    "validation/real": paths.VALIDATION / "real" / "report.json",
    "validation/synthetic": paths.VALIDATION / "synthetic" / "report.json",
}

# What readers need, as _lack reads it: keys that end in ? may be missing, those not named here are nobody's business.
_BASELINES = ("real", "real_long", "oversampled", "weighted")  # what filling up rare classes is compared with
_NUMBER = (int, float)
_INTERVAL = {"mean": _NUMBER, "low": _NUMBER, "high": _NUMBER}
_RARE = {
    "images": {...: int},
    "verdict": str,
    "advised_share": _NUMBER,
    **{name: dict.fromkeys((*_BASELINES, "filled"), _INTERVAL) for name in ("recall", "balanced_accuracy")},
    **{f"{name}_gain": dict.fromkeys(_BASELINES, _INTERVAL) for name in ("recall", "balanced_accuracy")},
}
_ROW = {
    "data": str,
    "real_images": int,
    "protocol": str,
    "verdict": str,
    "advised_share": _NUMBER,
    "accuracy": {arm: {"mean": _NUMBER} for arm in ("real_long", "mixed")},
    "gain_over_real": _INTERVAL,
    "gain_over_real_long": _INTERVAL,
    "class_gain_over_real_long": {...: (_INTERVAL, None)},
    "rare?": _RARE,
}
_METRICS = {
    "protocol": [{"measures": [str], "generated": str, "real": str, ...: (str, [str], *_NUMBER, None)}],
    "images?": int,
    ...: {...: (*_NUMBER, None)},
}
_CANDIDATE = {
    **dict.fromkeys(("spread", "min_confidence", "manifold_neighbours"), _NUMBER),
    "surprise": (*_NUMBER, None),
    "chosen": bool,
}
_VALIDATION = {"expectations": {"evaluated": int, "failed": int}}
_NEEDED: dict[Path, Any] = {
    paths.SYNTHETIC / "report.json": {
        "drawn": int,
        "kept": int,
        "dropped": {...: int},
        "search": [_CANDIDATE],
        "params": {"seed": int},
    },
    paths.EVALUATION / "model" / "metrics.json": _METRICS,
    paths.EVALUATION / "synthetic" / "metrics.json": _METRICS
    | {
        "images": int,
        "memorization": {"copies": int, "nearer_than_percentile_1": _NUMBER},
        "memorization_spread": {"nearer_than_percentile_1": _NUMBER},
        "memorization_floor": {"nearer_than_percentile_1": _NUMBER},
    },
    paths.MODEL / "model.json": {
        "family": str,
        "images_seen": int,
        "data_fingerprint": str,
        "selection": {"metric": str},
    },
    paths.UTILITY / "utility.json": {"rows": [_ROW], "synthetic_only_accuracy": _NUMBER, "protocol": [str]},
    paths.VALIDATION / "real" / "report.json": _VALIDATION,
    paths.VALIDATION / "synthetic" / "report.json": _VALIDATION,
    paths.TRAINING / "game.json": {
        "held_out": str,
        "objective": str,
        "images": int,
        "calibration_error?": _NUMBER,
        **dict.fromkeys(("train_accuracy", "held_out_accuracy", "fake_accuracy"), _NUMBER),
        **dict.fromkeys(("train_over_held_out", "held_out_over_fake"), _NUMBER),
    },
}
_STAGE = {"deps?": [{"path": str, "size?": int}], "params?": {...: {...: object}}}


def read_output(path: Path) -> bytes:
    """What a stage wrote. Raises UserError where it is not there."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: is not there; {AGAIN}") from None


def read_report(workspace: Path, path: Path) -> dict[str, Any]:
    """The JSON object that a stage wrote to `path` in the workspace.

    Raises UserError where it is not there, or lacks what reports and cards say of it, as one of an older stage may.
    """
    where = workspace / path
    try:
        content = json.loads(read_output(where), parse_constant=lambda word: None)  # a NaN is nothing that was measured
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{where}: is not a JSON object; {AGAIN}")
    _check(content, _NEEDED[path], where)
    return content


def read_stages(workspace: Path) -> dict[str, Any]:
    """The stages of dvc.lock: of each what it read, and the settings that it ran with."""
    lock = workspace / LOCK
    stages = dict(Document.load(lock).mapping("stages"))
    _check(stages, {...: _STAGE}, lock, "stages")
    return stages


def params_of(stages: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Dotted key: value, of each stage as it ran; not what params.yaml has become since."""
    found = {
        name: {key: value for values in stage.get("params", {}).values() for key, value in values.items()}
        for name, stage in stages.items()
    }
    return {name: settings for name, settings in found.items() if settings}


def lineage_of(workspace: Path, images: ImageSet, reports: Mapping[str, Mapping[str, Any]]) -> Lineage:
    """What the set `images` came from, by the stages' `reports`, titled as in REPORTS; dvc.lock may be missing."""
    lock = workspace / LOCK
    stages = read_stages(workspace) if lock.is_file() else {}
    return Lineage(
        model=str((images.generator or {}).get("model_sha256", "unknown")),
        params={key: value for settings in params_of(stages).values() for key, value in settings.items()},
        seed=reports["augment"]["params"]["seed"],
        data_fingerprint=reports["model"]["data_fingerprint"],
        dvc_lock=hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else None,
        git_commit=_git_commit(workspace),
        metrics={title: reports[title] for title in ("evaluation/model", "evaluation/synthetic", "utility/utility")},
        validation={title: reports[title] for title in ("validation/real", "validation/synthetic")},
    )


def protocols(metrics: Mapping[str, Any]) -> list[tuple[list[str], dict[str, str]]]:
    """For each protocol of a metrics.json the blocks that were measured by it, and all that it says, key by key.

    Of a hash the first 12 digits stand there.
    """
    return [
        (
            block["measures"],
            {
                key.replace("_", " "): re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", listed(value))
                for key, value in block.items()
                if key != "measures"
            },
        )
        for block in metrics.get("protocol", [])
    ]


def listed(value: object) -> str:
    """A text as it is, a list with commas."""
    return ", ".join(map(str, value)) if isinstance(value, Iterable) and not isinstance(value, str) else str(value)


def _check(value: Any, needed: Any, path: Path, key: str = "") -> None:
    """Raise UserError that names what `value`, of the file `path`, lacks."""
    if (lacking := _lack(value, needed, key)) is not None:
        raise UserError(f"{path}: {lacking} is missing, empty or of another kind; {AGAIN}")


def _lack(value: Any, needed: Any, key: str) -> str | None:
    """The dotted key in `value` of the first thing that is not as `needed`; None where all is.

    Needed is a type, None, one (of, several), a list [of] at least one, or a dict {name: of, ...: of all others}.
    """
    match needed:
        case tuple():
            return None if any(_lack(value, one, key) is None for one in needed) else key
        case list():
            if not isinstance(value, list) or not value:
                return key
            inner = ((item, needed[0], f"{key}[{place}]") for place, item in enumerate(value))
        case dict():
            if not isinstance(value, dict):
                return key
            begin = f"{key}." if key else ""
            named = {str(name).removesuffix("?"): of for name, of in needed.items() if name is not ...}
            optional = {name.removesuffix("?") for name in needed if name is not ... and name.endswith("?")}
            if missing := [name for name in named if name not in value and name not in optional]:
                return begin + missing[0]
            inner = ((item, named.get(name, needed.get(..., object)), f"{begin}{name}") for name, item in value.items())
        case None:
            return None if value is None else key
        case _:
            fits = isinstance(value, needed) and (needed is object or needed is bool or not isinstance(value, bool))
            return None if fits else key
    return next((lacking for each in inner if (lacking := _lack(*each)) is not None), None)


def _git_commit(workspace: Path) -> str | None:
    """HEAD, with `-dirty` where other files than dvc.lock differ from it; None where git does not know."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(workspace), *words], capture_output=True, text=True)

    try:
        head = git("rev-parse", "--verify", "HEAD")
        clean = git("diff", "--quiet", "HEAD", "--", ".", f":(exclude){LOCK}")
    except FileNotFoundError:
        return None
    return None if head.returncode else head.stdout.strip() + ("" if clean.returncode == 0 else "-dirty")
