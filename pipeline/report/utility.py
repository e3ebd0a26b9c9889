"""The picture of what a synthetic set is worth: accuracy by share of the real data, and the gain with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.report.figures import FAINT, INK, REAL, SYNTHETIC, new_figure, save_figure

_ARMS = {
    "real": ("real only", REAL, ":"),
    "real_long": ("real only, as many images seen as mixed", REAL, "-"),
    "mixed": ("mixed: real and synthetic", SYNTHETIC, "-"),
}
_GAINS = {
    "gain_over_real": ("over real only", "o"),
    "gain_over_real_long": ("over real only, as many images seen", "s"),
}
_VERDICTS = {"helps": "#2e7d4f", "makes no difference": FAINT, "harms": "#b3372f"}


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the `rows` of utility.json, one for each share of the real data, with their 95 % intervals, as a PNG."""
    picture = new_figure(11, 4.8)
    left, right = picture.subplots(1, 2, width_ratios=[1.15, 1])
    for number, (arm, (label, colour, style)) in enumerate(_ARMS.items()):
        at = [place + 0.07 * (number - 1) for place in range(len(rows))]
        means, bars = _with_bars([row["accuracy"][arm] for row in rows])
        left.errorbar(at, means, bars, color=colour, linestyle=style, marker="o", markersize=5, capsize=3, label=label)
    alone = rows[0]["accuracy"]["synthetic"]
    left.axhspan(alone["low"], alone["high"], color=SYNTHETIC, alpha=0.15, linewidth=0)
    left.axhline(alone["mean"], color=SYNTHETIC, linestyle="--", linewidth=1, label="synthetic only")
    left.set_title("Accuracy on the real test split, %", loc="left", fontweight="bold")
    left.set_xticks(range(len(rows)), [f"{row['data']}\n{row['real_images']:,} images" for row in rows])
    left.set_xlabel("real images that the classifier has")
    left.legend(frameon=False, loc="lower right")

    for number, (gain, (label, marker)) in enumerate(_GAINS.items()):
        means, bars = _with_bars([row[gain] for row in rows])
        at = [place + 0.16 * (number - 0.5) for place in range(len(rows))]
        right.errorbar(means, at, xerr=bars, color=INK, linestyle="", marker=marker, capsize=3, label=label)
    right.axvline(0, color=INK, linewidth=1)
    for place, row in enumerate(rows):
        text = f"{row['gain_over_real_long']['mean']:+.2f}  {row['verdict']}"
        right.annotate(
            text,
            (1.02, place),
            xycoords=("axes fraction", "data"),
            color=_VERDICTS[row["verdict"]],
            va="center",
            fontweight="bold",
        )
    right.set_yticks(range(len(rows)), [f"{row['data']}\n{row['protocol']}" for row in rows])
    right.set_ylim(len(rows) - 0.5, -0.5)
    right.set_title("Gain of mixed, percentage points", loc="left", fontweight="bold")
    right.set_xlabel("paired differences, 95 % interval over seeds")
    right.legend(frameon=False, loc="lower right")
    save_figure(picture, path)


def _with_bars(intervals: Sequence[Mapping[str, float]]) -> tuple[list[float], list[list[float]]]:
    """Means, and how far the intervals reach below and above them."""
    means = [each["mean"] for each in intervals]
    return means, [
        [each["mean"] - each["low"] for each in intervals],
        [each["high"] - each["mean"] for each in intervals],
    ]
