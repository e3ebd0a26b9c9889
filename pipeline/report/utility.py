"""Pictures of what a synthetic set is worth, by share of the real data, and of how much of it was mixed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.report.figures import FAINT, INK, REAL, SYNTHETIC, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ARMS = {
    "mixed": ("mixed: real and synthetic", SYNTHETIC, "-"),
    "real_long": ("real only, as many images seen", REAL, "-"),
    "real": ("real only", REAL, ":"),
    "synthetic": ("synthetic only", SYNTHETIC, "--"),
}
_GAINS = {
    "gain_over_real_long": ("over real only, as many images seen", "s", INK),
    "gain_over_real": ("over real only", "o", FAINT),
}
_RARE_ARMS = {
    "filled": ("filled up with synthetic images", SYNTHETIC, "-"),
    "oversampled": ("real only, rare classes oversampled", REAL, "-"),
    "weighted": ("real only, losses weighted by class", REAL, "--"),
    "real_long": ("real only, as many images seen", REAL, ":"),
}
_RARE_GAINS = {
    "oversampled": ("over oversampling", "s", INK),
    "weighted": ("over class weights", "D", INK),
    "real_long": ("over real only, as many images seen", "o", FAINT),
}
_CHOICES = {  # the arm whose synthetic part is chosen, and the arm that has none: what they are chosen by
    ("mixed", "real_long"): ("Accuracy on validation images, %", "part of the images seen that is synthetic"),
    ("filled", "oversampled"): (
        "Filling up: balanced accuracy on validation images, %",
        "part that is synthetic of a class as good as without real images",
    ),
}
_VERDICTS = {"helps": "#2e7d4f", "makes no difference": FAINT, "harms": "#b3372f"}


def draw(path: Path, rows: Sequence[Mapping[str, Any]], sets: Sequence[Sequence[Mapping[str, Any]]] = ()) -> None:
    """Draw the `rows` of utility.json, one for each share of the real data, with their 95 % intervals, as a PNG.

    Where classes are rare, their recall stands below. `sets` are the rows that each of `rows` is of: where they are of
    several generators, the intervals are over them, and what each set gains is marked.
    """
    several = any(len(each) > 1 for each in sets)
    told = [row for row in rows if "rare" in row]
    rare = [row["rare"] for row in told]
    figure = new_figure(11.5, 10 if rare else 5)
    axes = figure.subplots(2 if rare else 1, 2, width_ratios=[1.2, 1], squeeze=False)
    left, right = axes[0]
    _values(left, {arm: [row["accuracy"][arm] for row in rows] for arm in _ARMS}, _ARMS)
    left.set_title("Accuracy on the real test split, %", loc="left", fontweight="bold")
    _gains(right, {gain: [row[gain] for row in rows] for gain in _GAINS}, _GAINS, [row["verdict"] for row in rows])
    right.set_title("Gain of mixed, percentage points", loc="left", fontweight="bold")
    if several:
        points = [(row["gain_over_real_long"]["mean"], place) for place, each in enumerate(sets) for row in each]
        each_set, at = zip(*points, strict=True)
        right.plot(each_set, at, "|", color=SYNTHETIC, markersize=10, label="of each generator, as many images seen")
    if rare:
        left, right = axes[1]
        _values(left, {arm: [each["recall"][arm] for each in rare] for arm in _RARE_ARMS}, _RARE_ARMS)
        names = list(rare[0]["images"])
        shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        left.set_title(f"Recall of the rare classes ({shown}), %", loc="left", fontweight="bold")
        gains = {arm: [each["recall_gain"][arm] for each in rare] for arm in _RARE_GAINS}
        _gains(right, gains, _RARE_GAINS, [each["verdict"] for each in rare])
        right.set_title("Gain in it of filling up, percentage points", loc="left", fontweight="bold")
    for (left, right), those in zip(axes, (rows, told), strict=False):
        left.set_xticks(range(len(those)), [f"{row['data']}\n{row['real_images']:,} images" for row in those])
        left.set_xlabel("real images that the classifier has", color=FAINT)
        right.set_yticks(range(len(those)), [f"{row['data']}\n{row['protocol']}" for row in those])
        right.set_ylim(len(those) - 0.5, -0.5)
        over = "generators" if several else "seeds"
        right.set_xlabel(f"paired differences, 95 % intervals over {over}", color=FAINT)
        for each, columns in ((left, 2), (right, 1)):  # on the right a second one would be cut off
            each.legend(frameon=False, loc="upper left", bbox_to_anchor=(-0.02, -0.2), ncols=columns, columnspacing=1.5)
    save_figure(figure, path)


def draw_choices(path: Path, choices: Sequence[Mapping[str, Any]]) -> None:
    """Draw the `choices` of utility.json as a PNG: what the synthetic part was chosen by, a line for each fraction.

    Each line begins at 0, with real images only.
    """
    shown = {arms: words for arms, words in _CHOICES.items() if any(each["arm"] == arms[0] for each in choices)}
    figure = new_figure(7 * len(shown), 5)
    all_axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, ((arm, without), (title, part)) in zip(all_axes, shown.items(), strict=True):
        fractions = sorted({each["fraction"] for each in choices if each["arm"] == arm})
        for number, fraction in enumerate(fractions, start=1):
            of_fraction = [each for each in choices if each["fraction"] == fraction]
            alone = [each for each in of_fraction if each["arm"] == without and each["chosen"]]
            added = [each for each in of_fraction if each["arm"] == arm]
            beside = 0.015 * (number - (len(fractions) + 1) / 2)  # that points of equal accuracy can be told apart
            points = [(each["synthetic_share"] + beside, each["validation_accuracy"]) for each in (*alone, *added)]
            name = f"{100 * fraction:.3g} % of the real training images"
            alpha = number / len(fractions)
            axes.plot(*zip(*points, strict=True), marker="o", color=SYNTHETIC, alpha=alpha, label=name)
            (best,) = [point for point, each in zip(points[1:], added, strict=True) if each["chosen"]]
            name = "chosen" if number == len(fractions) else ""
            axes.plot(*best, "o", markersize=13, fillstyle="none", color=INK, label=name)
        axes.set_title(title, loc="left", fontweight="bold", color=INK)
        axes.set_xlabel(part, color=FAINT)
        axes.set_xticks(sorted({0.0, *(each["synthetic_share"] for each in choices if each["arm"] == arm)}))
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(-0.02, -0.16), ncols=2)
    save_figure(figure, path)


def _values(
    axes: Axes, found: Mapping[str, Sequence[Mapping[str, float]]], arms: Mapping[str, tuple[str, str, str]]
) -> None:
    """The intervals of each arm, a column for each share of the real data."""
    for number, (arm, (name, colour, style)) in enumerate(arms.items()):
        at = [place + 0.07 * (1 - number) for place in range(len(found[arm]))]
        means, bars = _with_bars(found[arm])
        axes.errorbar(at, means, bars, color=colour, linestyle="", elinewidth=1.2, capsize=3)
        axes.plot(at, means, color=colour, linestyle=style, marker="o", markersize=5, label=name)


def _gains(
    axes: Axes,
    found: Mapping[str, Sequence[Mapping[str, float]]],
    over: Mapping[str, tuple[str, str, str]],
    verdicts: Sequence[str],
) -> None:
    """The intervals of each gain, a line for each share of the real data, with its verdict at the end."""
    for number, (gain, (name, marker, colour)) in enumerate(over.items()):
        at = [place + 0.2 * (number - 0.5 * (len(over) - 1)) for place in range(len(verdicts))]
        means, bars = _with_bars(found[gain])
        axes.errorbar(means, at, xerr=bars, color=colour, linestyle="", elinewidth=1.5, capsize=4)
        axes.plot(means, at, color=colour, linestyle="", marker=marker, label=name)
    axes.axvline(0, color=INK, linewidth=1)
    for place, verdict in enumerate(verdicts):
        beside = axes.annotate(verdict, (1.03, place), xycoords=("axes fraction", "data"), va="center")
        beside.set(color=_VERDICTS[verdict], fontweight="bold")


def _with_bars(intervals: Sequence[Mapping[str, float]]) -> tuple[list[float], list[list[float]]]:
    """Means, and how far the intervals reach below and above them."""
    means = [each["mean"] for each in intervals]
    below = [each["mean"] - each["low"] for each in intervals]
    above = [each["high"] - each["mean"] for each in intervals]
    return means, [below, above]
