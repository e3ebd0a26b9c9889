"""The report: one self-contained HTML page, the verdict first, for whoever decides whether to use the set."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import paths
from pipeline.delivery.workspace import drawn, headline, parse_report, read_output, secrecy
from pipeline.imageset import ImageSet
from pipeline.imageset.files import write_atomically
from pipeline.report.figures import curves
from pipeline.report.summary import measures, protocol

REPORT = paths.OUT / "report.html"
_GAME = paths.TRAINING / "game.json"  # not of every family
_FIGURES = paths.EVALUATION / "synthetic" / "figures"
_PICTURES = {
    "samples": _FIGURES / "samples.png",
    "agreement": _FIGURES / "agreement.png",
    "closest": _FIGURES / "closest.png",
    "distances": _FIGURES / "distances.png",
    "utility": paths.UTILITY / "figures" / "utility.png",
    "interpolation": paths.TRAINING / "interpolation.png",
    "translations": paths.TRAINING / "samples.png",
}
_WORST = 5  # classes that are named for their gaps


def write_report(workspace: Path) -> Path:
    """Write out/report.html of what the stages left in `workspace`; its path. Raises UserError before evaluation."""
    write_atomically(workspace / REPORT, page(workspace).encode())
    return REPORT


def page(workspace: Path) -> str:
    """The page, with all pictures inside. Equal outputs of the stages give an equal page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pipeline.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(_content(workspace))


def _content(workspace: Path) -> dict[str, Any]:
    model = _json(workspace, paths.MODEL / "model.json")
    augmented = _json(workspace, paths.SYNTHETIC / "report.json")
    unfiltered, release = (
        _json(workspace, paths.EVALUATION / which / "metrics.json") for which in ("model", "synthetic")
    )
    utility = _json(workspace, paths.UTILITY / "utility.json")
    synthetic = ImageSet.open(workspace / paths.SYNTHETIC / paths.IMAGESET)
    pictures = {
        name: _embedded((workspace / path).read_bytes())
        for name, path in _PICTURES.items()
        if (workspace / path).is_file()
    }
    if (workspace / paths.TRAINING / "curves.csv").is_file():
        pictures["curves"] = _embedded(_curves(workspace / paths.TRAINING / "curves.csv"))
    return {
        "headline": headline(utility),
        "rows": utility["rows"],
        "set": synthetic,
        "images": sum(map(sum, synthetic.counts.values())),
        "augmented": augmented,
        "drawn": drawn(synthetic, augmented["drawn"]),
        "secrecy": secrecy(synthetic),
        "dropped": ", ".join(
            f"{reason.replace('_', ' ')} {count:,}" for reason, count in augmented["dropped"].items() if count
        ),
        "measures": list(measures(unfiltered, release)),
        "memorization": release["memorization"],
        "gaps": _gaps(workspace, utility),
        "validation": {
            which: _json(workspace, paths.VALIDATION / which / "report.json") for which in ("real", "synthetic")
        },
        "model": model,
        "game": _json(workspace, _GAME) if (workspace / _GAME).is_file() else None,
        "params": _params(workspace),
        "protocol": [*protocol(release), *utility["protocol"]],
        "pictures": pictures,
    }


def _json(workspace: Path, path: Path) -> dict[str, Any]:
    return parse_report(read_output(workspace / path), workspace / path)


def _gaps(workspace: Path, utility: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The classes that the judges see least well in the set, worst first, with what they gain from it."""
    table = read_output(workspace / _FIGURES / "per_class.csv").decode()
    rows = [row for row in csv.DictReader(io.StringIO(table, newline="")) if row["agreement"]]
    gains = utility["rows"][0]["class_gain_over_real_long"]
    rows.sort(key=lambda row: float(row["agreement"]))
    return [
        {"name": row["class"], "agreement": float(row["agreement"]), "gain": gains.get(row["class"])}
        for row in rows[:_WORST]
    ]


def _params(workspace: Path) -> dict[str, dict[str, Any]]:
    """By stage as dvc.lock has it: the settings that made these outputs, not what params.yaml has become since."""
    from pipeline.params import Document

    lock = workspace / "dvc.lock"
    stages = Document.load(lock).mapping("stages") if lock.is_file() else {}
    found = {
        name: {key: value for file in stage.get("params", {}).values() for key, value in file.items()}
        for name, stage in stages.items()
    }
    return {name: settings for name, settings in found.items() if settings}


def _curves(path: Path) -> bytes:
    with path.open(encoding="utf-8", newline="") as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    picture = io.BytesIO()
    curves(picture, rows)
    return picture.getvalue()


def _embedded(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"
