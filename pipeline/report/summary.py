"""The small table of what was measured, with the protocol under it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline.delivery.outputs import REPORTS, protocols, read_report
from pipeline.delivery.workspace import interval

_MEASURES: dict[
    str, tuple[str, str, str | float | None]
] = {  # dotted name in metrics.json: what it is called, how it is written, its value for real images
    "fidelity.fid": ("FID, in-domain features", "{:.4f}", "floor.fid"),
    "fidelity.fid_infinity": ("… of infinitely many images", "{:.4f}", 0),
    "untrained.fid": ("… of the untrained generator", "{:.4f}", None),
    "fidelity.kid": ("KID, in-domain features", "{:.5f}", "floor.kid"),
    "fidelity.precision": ("precision", "{:.1%}", "floor.precision"),
    "per_class.worst_precision": ("… in the worst class", "{:.1%}", "per_class_floor.worst_precision"),
    "fidelity.recall": ("recall", "{:.1%}", "floor.recall"),
    "per_class.worst_recall": ("… in the worst class", "{:.1%}", "per_class_floor.worst_recall"),
    "fidelity.density": ("density", "{:.2f}", "floor.density"),
    "fidelity.coverage": ("coverage", "{:.1%}", "floor.coverage"),
    "cycle.error": ("there and back: mean error, of 255 levels", "{:.1f}", None),
    "cycle.change": ("… changed by the translation", "{:.1f}", None),
    "agreement.mean": ("judges agree with the label", "{:.2%}", "judges.held_out_accuracy"),
    "agreement.worst_class": ("… in the worst class", "{:.2%}", "judges.held_out_worst_class"),
    "modes.classes_seen": ("classes with an image", "{:.0f}", "modes_floor.classes_seen"),
    "modes.classes_covered": ("… with a tenth of their real share", "{:.0f}", "modes_floor.classes_covered"),
    "modes.kl_from_real": ("KL of the classes' shares from real", "{:.4f}", "modes_floor.kl_from_real"),
    "per_class.worst_diversity": ("diversity of the least diverse class", "{:.2f}", "per_class_floor.worst_diversity"),
    "modes.pixel_spread": ("spread of pixels, against real", "{:.2f}", 1),
    "memorization.nearer_than_median": (
        "nearer to training than half of held-out",
        "{:.1%}",
        "memorization_floor.nearer_than_median",
    ),
    "memorization.nearer_than_percentile_1": (
        "… than 99 % of held-out",
        "{:.1%}",
        "memorization_floor.nearer_than_percentile_1",
    ),
    "memorization.copies": ("copies of training images", "{}", 0),
    "memorization_features.nearer_than_median": (
        "in features nearer than half of held-out",
        "{:.1%}",
        "memorization_features_floor.nearer_than_median",
    ),
    "memorization_features.nearer_than_percentile_1": (
        "… than 99 % of held-out",
        "{:.1%}",
        "memorization_features_floor.nearer_than_percentile_1",
    ),
    "parzen.log_likelihood": ("Parzen log-likelihood, nats: historical", "{:.1f}", "parzen_real.log_likelihood"),
}
_ERRORS = {"parzen.log_likelihood": "parzen.standard_error"}  # where they do not stand in the block's own `_spread`
_SHORT = ("extractor", "judges", "distance", "library")


def summary(workspace: Path) -> list[Table]:
    """What the evaluate and utility stages left in `workspace`, for 80 columns; what was not measured is left out.

    Raises UserError when what is there is damaged, or of an older stage.
    """
    files = (REPORTS[title] for title in ("evaluation/model", "evaluation/synthetic", "utility/utility"))
    model, release, utility = (read_report(workspace, file) if (workspace / file).is_file() else {} for file in files)
    return [table for table in (_quality(model, release), _usefulness(utility)) if table.row_count]


def measures(model: dict[str, Any], release: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """What was measured, of the model's samples, of the release, and of real images, as text; empty: not measured.

    Real images get the real-versus-real floor, or what is expected of new real images. After ± stands a standard error.
    """
    for name, (title, form, real) in (_MEASURES | _of_others(model) | _of_others(release)).items():
        values = [_at(metrics, name) for metrics in (model, release)]
        if any(value is not None for value in values):
            of_real = (_at(metrics, real) if isinstance(real, str) else real for metrics in (release, model))
            values.append(next((value for value in of_real if value is not None), None))
            unfiltered, released, expected = ("" if value is None else form.format(value) for value in values)
            block, _, key = name.partition(".")
            errors = [_at(metrics, _ERRORS.get(name, f"{block}_spread.{key}")) for metrics in (model, release)]
            unfiltered, released = (
                f"{text}{'' if error is None else ' ± ' + form.format(error)}"
                for text, error in zip((unfiltered, released), errors, strict=True)
            )
            yield title, unfiltered, released, expected


def _of_others(metrics: dict[str, Any]) -> dict[str, tuple[str, str, str | float | None]]:
    """What fidelity in the features of another extractor is called."""
    labels = [
        name.removesuffix("_spread") for name in metrics if name.endswith("_spread") and name != "fidelity_spread"
    ]
    return {
        f"{label}.{key}": (f"{title}, {label.replace('_', ' ')}", "{:.3f}", f"{label}_floor.{key}")
        for label in labels
        for key, title in {"fid": "FID", "inception_score": "Inception Score"}.items()
    }


def _protocol(metrics: dict[str, Any]) -> Iterator[str]:
    """How the numbers of a metrics.json were measured, a line for each protocol, as short as a terminal needs it."""
    for blocks, said in protocols(metrics):
        line = f"{', '.join(blocks)}: {said['generated']}, against {said['real']}"
        yield "; ".join([line, *(said[key] for key in _SHORT if key in said)])


def _quality(model: dict[str, Any], release: dict[str, Any]) -> Table:
    table = _table("measured", "unfiltered", "release", "real images")
    for cells in measures(model, release):
        table.add_row(*cells)
    if lines := list(_protocol(release or model)):
        whole = "Each protocol in full, that of unfiltered samples too: in the report, and in metrics.json."
        table.caption = "\n".join([*lines, whole])
    return table


def _usefulness(utility: dict[str, Any]) -> Table:
    """How often a classifier is right on real test images, without the set and with it."""
    table = _table("share of real images", "real only", "with this set", "points gained")
    rows = utility.get("rows", [])
    for row in rows:
        gain, accuracy = row["gain_over_real_long"], row["accuracy"]
        table.add_row(
            f"{row['data']} ({row['protocol']})",
            f"{accuracy['real_long']['mean']:.2f}%",
            f"{accuracy['mixed']['mean']:.2f}%",
            interval(gain),
        )
        if "rare" in row:
            recall, gain = row["rare"]["recall"], row["rare"]["recall_gain"]["oversampled"]
            levels = (f"{recall[arm]['mean']:.2f}%" for arm in ("oversampled", "filled"))
            table.add_row("… recall of rare classes, oversampled", *levels, interval(gain))
    if rows:
        table.add_row("none, this set alone", "", f"{utility['synthetic_only_accuracy']:.2f}%", "")
    shown = ("real_long", "Intervals", *(row["protocol"] for row in rows))
    lines = [line for line in utility.get("protocol", []) if line.startswith(shown)]
    table.caption = "\n".join(lines).replace("real_long:", "real only:").replace("by mixed", "with this set")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title, box=None, pad_edge=False, caption_justify="left", caption_style="dim")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _at(metrics: dict[str, Any], name: str) -> float | None:
    block, _, key = name.partition(".")
    value: float | None = metrics.get(block, {}).get(key)
    return value
