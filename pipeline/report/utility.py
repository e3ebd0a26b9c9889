"""The picture of what a synthetic set is worth: accuracy by share of the real data, and the gain with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.report.figures import FAINT, INK, REAL, SYNTHETIC, new_figure, save_figure

_ARMS = {
    "mixed": ("mixed: real and synthetic", SYNTHETIC, "-"),
    "real_long": ("real only, as many images seen", REAL, "-"),
    "real": ("real only", REAL, ":"),
}
_GAINS = {
    "gain_over_real_long": ("over real only, as many images seen", "s", INK),
    "gain_over_real": ("over real only", "o", FAINT),
}
_VERDICTS = {"helps": "#2e7d4f", "makes no difference": FAINT, "harms": "#b3372f"}


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the `rows` of utility.json, one for each share of the real data, with their 95 % intervals, as a PNG."""
    figure = new_figure(11.5, 5)
    left, right = figure.subplots(1, 2, width_ratios=[1.2, 1])
    for number, (arm, (name, colour, style)) in enumerate(_ARMS.items()):
        at = [place + 0.07 * (1 - number) for place in range(len(rows))]
        means, bars = _with_bars([row["accuracy"][arm] for row in rows])
        left.errorbar(at, means, bars, color=colour, linestyle="", elinewidth=1.2, capsize=3)
        left.plot(at, means, color=colour, linestyle=style, marker="o", markersize=5, label=name)
    alone = rows[0]["accuracy"]["synthetic"]
    left.axhspan(alone["low"], alone["high"], color=SYNTHETIC, alpha=0.12, linewidth=0)
    left.axhline(alone["mean"], color=SYNTHETIC, linestyle="--", linewidth=1, label="synthetic only")
    left.set_title("Accuracy on the real test split, %", loc="left", fontweight="bold")
    left.set_xticks(range(len(rows)), [f"{row['data']}\n{row['real_images']:,} images" for row in rows])
    left.set_xlabel("real images that the classifier has", color=FAINT)
    for number, (gain, (name, marker, colour)) in enumerate(_GAINS.items()):
        at = [place + 0.2 * (number - 0.5) for place in range(len(rows))]
        means, bars = _with_bars([row[gain] for row in rows])
        right.errorbar(means, at, xerr=bars, color=colour, linestyle="", elinewidth=1.5, capsize=4)
        right.plot(means, at, color=colour, linestyle="", marker=marker, label=name)
    right.axvline(0, color=INK, linewidth=1)
    for place, row in enumerate(rows):
        beside = right.annotate(row["verdict"], (1.03, place), xycoords=("axes fraction", "data"), va="center")
        beside.set(color=_VERDICTS[row["verdict"]], fontweight="bold")
    right.set_title("Gain of mixed, percentage points", loc="left", fontweight="bold")
    right.set_yticks(range(len(rows)), [f"{row['data']}\n{row['protocol']}" for row in rows])
    right.set_ylim(len(rows) - 0.5, -0.5)
    right.set_xlabel("paired differences, 95 % intervals over seeds", color=FAINT)
    for axes in (left, right):
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(-0.02, -0.2), ncols=2, columnspacing=1.5)
    save_figure(figure, path)


def _with_bars(intervals: Sequence[Mapping[str, float]]) -> tuple[list[float], list[list[float]]]:
    """Means, and how far the intervals reach below and above them."""
    means = [each["mean"] for each in intervals]
    below = [each["mean"] - each["low"] for each in intervals]
    above = [each["high"] - each["mean"] for each in intervals]
    return means, [below, above]
