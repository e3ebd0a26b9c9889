"""The picture of what `augment` has tried: how well images of each spread and filter teach the held-out ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.report.figures import FAINT, INK, SYNTHETIC, new_figure, save_figure


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the rows of search.csv, a line for each filter, as a PNG; what has no score is left out."""
    figure = new_figure(7.2, 3.8)
    axes = figure.subplots()
    filters = sorted({(row["min_confidence"], row["manifold_neighbours"]) for row in rows})
    for number, (least, neighbours) in enumerate(filters):
        line = [
            row
            for row in rows
            if (row["min_confidence"], row["manifold_neighbours"]) == (least, neighbours)
            and row["surprise"] is not None
        ]
        axes.plot(
            [row["spread"] for row in line],
            [row["surprise"] for row in line],
            marker="o",
            color=SYNTHETIC,
            alpha=(number + 1) / len(filters),
            label=f"confidence at least {least:g}" + (f", on the manifold of {neighbours}" if neighbours else ""),
        )
    for row in rows:
        if row["chosen"] and row["surprise"] is not None:
            axes.plot(row["spread"], row["surprise"], "o", markersize=15, fillstyle="none", color=INK, label="chosen")
    if all(row["surprise"] is None for row in rows):
        axes.text(0.5, 0.5, "nothing to compare", transform=axes.transAxes, ha="center", color=FAINT)
    axes.set_title("Surprise by validation images, nats: the less the better", loc="left", fontweight="bold", color=INK)
    axes.set_xlabel("spread of the latents", color=FAINT)
    axes.set_xticks(sorted({row["spread"] for row in rows}))
    axes.legend(frameon=False)
    save_figure(figure, path)
