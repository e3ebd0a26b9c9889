"""The report: one self-contained HTML page, the verdict first, for whoever decides whether to use the set."""

from __future__ import annotations

import base64
import csv
import html
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import paths
from pipeline.delivery.outputs import (
    AGAIN,
    LOCK,
    REPORTS,
    lineage_of,
    params_of,
    protocols,
    read_output,
    read_report,
    read_stages,
)
from pipeline.delivery.settings import read_publish_settings
from pipeline.delivery.workspace import RARE_ARMS, class_gains, drawn, headline, secrecy, titled
from pipeline.errors import UserError
from pipeline.imageset import ImageSet
from pipeline.imageset.files import write_atomically
from pipeline.params import Document
from pipeline.report.figures import curves
from pipeline.report.summary import measures

_INTERVAL = r"\[[+-][\d.]+, [+-][\d.]+\]"
REPORT = paths.OUT / "report.html"
CURVES = paths.OUT / "curves.png"  # the one picture that no stage draws
_GAME = paths.TRAINING / "game.json"  # not of every family
_FIGURES = paths.EVALUATION / "synthetic" / "figures"
_PICTURES = {
    "samples": _FIGURES / "samples.png",
    "agreement": _FIGURES / "agreement.png",
    "closest": _FIGURES / "closest.png",
    "distances": _FIGURES / "distances.png",
    "utility": paths.UTILITY / "figures" / "utility.png",
    "search": paths.SYNTHETIC / "search.png",
    "interpolation": paths.TRAINING / "interpolation.png",
    "translations": paths.TRAINING / "samples.png",
}
_WORST = 5  # classes that are named for their gaps


def write_report(workspace: Path) -> Path:
    """Write out/report.html of what the stages left in `workspace`; its path. Raises UserError before evaluation.

    And beside it, for `dvc plots`, the picture of the curves in it, where the model has curves.
    """
    picture = _curves(workspace)
    text = _render(workspace, picture)
    if picture is not None:
        write_atomically(workspace / CURVES, picture)
    write_atomically(workspace / REPORT, text.encode())
    return REPORT


def page(workspace: Path) -> str:
    """The page, with all pictures inside. Equal outputs of the stages give an equal page."""
    return _render(workspace, _curves(workspace))


def _render(workspace: Path, curves_picture: bytes | None) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pipeline.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(_content(workspace, curves_picture))


def _content(workspace: Path, curves_picture: bytes | None) -> dict[str, Any]:
    reports = {title: read_report(workspace, path) for title, path in REPORTS.items()}
    unfiltered, release = (reports[f"evaluation/{which}"] for which in ("model", "synthetic"))
    augmented, utility = reports["augment"], reports["utility/utility"]
    synthetic = ImageSet.open(workspace / paths.SYNTHETIC / paths.IMAGESET)
    searched = [each for each in augmented["search"] if each["surprise"] is not None]
    pictures = {
        name: (workspace / path).read_bytes() for name, path in _PICTURES.items() if (workspace / path).is_file()
    }
    if curves_picture is not None:
        pictures["curves"] = curves_picture
    if not searched:  # there is nothing to compare in it
        pictures.pop("search", None)
    gains = class_gains(utility)
    return {
        "title": _title(workspace),
        "headline": re.sub(_INTERVAL, r"<small>\g<0></small>", html.escape(headline(utility))),
        "rows": utility["rows"],
        "rare_rows": [row for row in utility["rows"] if "rare" in row],
        "rare_arms": RARE_ARMS,
        "set": synthetic,
        "images": sum(map(sum, synthetic.counts.values())),
        "augmented": augmented,
        "drawn": drawn(synthetic, augmented["drawn"]),
        "searched": searched,
        "secrecy": secrecy(synthetic),
        "dropped": ", ".join(
            f"{reason.replace('_', ' ')} {count:,}" for reason, count in augmented["dropped"].items() if count
        ),
        "measures": list(measures(unfiltered, release)),
        "release": release,
        "least_seen": _least_seen(workspace),
        "least_gained": gains[:_WORST],
        "losing": sum(each.loses for each in gains),
        "compared": sum(
            gain is not None for row in utility["rows"] for gain in row["class_gain_over_real_long"].values()
        ),
        "validation": {which: reports[f"validation/{which}"] for which in ("real", "synthetic")},
        "model": reports["model"],
        "game": read_report(workspace, _GAME) if (workspace / _GAME).is_file() else None,
        "lineage": lineage_of(workspace, synthetic, reports),
        "params": params_of(read_stages(workspace)) if (workspace / LOCK).is_file() else {},
        "protocols": {"this set": protocols(release), "model, unfiltered": protocols(unfiltered)},
        "utility_protocol": utility["protocol"],
        "pictures": {
            name: f"data:image/png;base64,{base64.b64encode(each).decode()}" for name, each in pictures.items()
        },
    }


def _title(workspace: Path) -> str:
    """The name that params.yaml gives the set, where there is one."""
    path = workspace / paths.PARAMS
    document = Document.load(path) if path.is_file() else Document({})
    return titled(read_publish_settings(document).name) if "publish" in document.content else "Synthetic images"


def _least_seen(workspace: Path) -> list[tuple[str, float]]:
    """The classes that the judges see least well in the set, worst first, with their agreement in [0, 1]."""
    path = workspace / _FIGURES / "per_class.csv"
    table = _table(path, "class", "agreement")
    rows = [(row["class"], _number(path, row, "agreement")) for row in table if row["agreement"]]
    return sorted(rows, key=lambda each: each[1])[:_WORST]


def _curves(workspace: Path) -> bytes | None:
    """A PNG of the curves of training; None of a model that has none."""
    path = workspace / paths.TRAINING / "curves.csv"
    if not path.is_file():
        return None
    table = _table(path, "images_seen")
    rows = [{name: _number(path, row, name) for name, value in row.items() if value} for row in table]
    picture = io.BytesIO()
    curves(picture, rows)
    return picture.getvalue()


def _table(path: Path, *needed: str) -> list[dict[str, str]]:
    """The rows of a CSV file.

    Raises UserError where it is not there, lacks one of the `needed` columns, or has rows of another length.
    """
    reader = csv.DictReader(io.StringIO(read_output(path).decode(errors="replace"), newline=""))
    if lacking := [name for name in needed if name not in (reader.fieldnames or [])]:
        raise UserError(f"{path}: has no column {lacking[0]}; {AGAIN}")
    rows = list(reader)
    if any(None in row or None in row.values() for row in rows):
        raise UserError(f"{path}: has a row that is not as long as the first; {AGAIN}")
    return rows


def _number(path: Path, row: Mapping[str, str], name: str) -> float:
    """What a row of the CSV file has in the column. Raises UserError where that is no number."""
    try:
        return float(row[name])
    except ValueError:
        raise UserError(f"{path}: {name} is '{row[name]}'; needed a number, {AGAIN}") from None
