"""The pictures of an evaluation: sample sheets, closest pairs, shares and distances, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT, RULE, PAPER = "#1f2933", "#7b8794", "#cbd2d9", "#ffffff"
REAL, SYNTHETIC = "#3b6ea5", "#d9772b"  # one colour for each kind of image in all charts
_TILE = 56  # pixels of an image on a sheet, about: small images are enlarged by whole factors
_GAP = 6
_MARGIN = 20
_SHEET_CLASSES = 20


def sample_sheet(
    path: Path,
    real: tuple[np.ndarray, np.ndarray],
    synthetic: tuple[np.ndarray, np.ndarray],
    classes: Sequence[str],
    columns: int = 10,
) -> None:
    """One row per class: its first real images, then its first synthetic ones.

    Each side is (images uint8 (N, C, H, W), labels (N,)). Above 20 classes, 20 evenly spaced ones are shown.
    """
    shown = np.unique(np.linspace(0, len(classes) - 1, min(len(classes), _SHEET_CLASSES)).round().astype(int))
    tile = _enlarge(real[0][0]).width + _GAP
    name_width = max(int(_font(15).getlength(classes[label])) for label in shown) + 14
    left = (_MARGIN + name_width, _MARGIN + name_width + columns * tile + 24)
    sheet = Image.new("RGB", (left[1] + columns * tile - _GAP + _MARGIN, 58 + len(shown) * tile + _MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for side, title, colour in ((0, "real, held out", REAL), (1, "synthetic", SYNTHETIC)):
        draw.text((left[side], _MARGIN), title, INK, _font(17, bold=True))
        end = left[side] + columns * tile - _GAP
        draw.line((left[side], 48, end, 48), colour, 3)
    for row, label in enumerate(shown):
        top = 58 + row * tile
        draw.text((_MARGIN, top + (tile - _GAP) // 2), classes[label], INK, _font(15), anchor="lm")
        for side, (images, labels) in enumerate((real, synthetic)):
            for column, image in enumerate(images[np.flatnonzero(labels == label)[:columns]]):
                _paste(sheet, image, left[side] + column * tile, top)
    sheet.save(path, optimize=True)


def closest_pairs(
    path: Path,
    groups: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    training: np.ndarray,
    pairs: int = 14,
) -> None:
    """The closest pairs of each named group, nearest first.

    A group is (images, their distances to the nearest training images, the rows of these in `training`).
    """
    tile = _enlarge(training[0]).width + _GAP
    step = max(tile, 48)
    name_width = int(_font(13).getlength("nearest in training")) + 14
    height = 2 * tile + 76
    size = (_MARGIN * 2 + name_width + pairs * step - _GAP, _MARGIN + len(groups) * height)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (name, (images, distances, nearest)) in enumerate(groups.items()):
        top = _MARGIN + number * height
        title = f"{name}: the {min(pairs, len(images))} of {len(images):,} that are closest to a training image"
        draw.text((_MARGIN, top), title, INK, _font(17, bold=True))
        for row, caption in enumerate(("image", "nearest in training", "distance")):
            middle = top + 32 + row * tile + (tile // 2 if row < 2 else 10)
            draw.text((_MARGIN, middle), caption, FAINT, _font(13), anchor="lm")
        for column, index in enumerate(np.argsort(distances, kind="stable")[:pairs]):
            x = _MARGIN + name_width + column * step
            _paste(sheet, images[index], x, top + 32)
            _paste(sheet, training[nearest[index]], x, top + 32 + tile)
            centre = (x + (tile - _GAP) // 2, top + 42 + 2 * tile)
            draw.text(centre, f"{distances[index]:.3g}", INK, _font(13), anchor="mm")
    sheet.save(path, optimize=True)


def shares(path: Path, names: Sequence[str], values: np.ndarray, *, title: str, reference: tuple[str, float]) -> None:
    """Shares in [0, 1] as dots in rows, the value at each end, and a named reference line; NaN: no images."""
    figure = new_figure(7.2, 1.3 + 0.27 * len(names))
    axes = figure.subplots()
    start = max(0.0, np.floor(np.nanmin([*values, reference[1]]) * 20 - 0.2) / 20)
    axes.hlines(range(len(names)), start, 1, color=RULE, linewidth=1)
    axes.axvline(reference[1], color=REAL, linewidth=1.5, label=f"{reference[0]}: {100 * reference[1]:.1f} %")
    axes.plot(values, range(len(names)), "o", color=SYNTHETIC, markersize=8, clip_on=False)
    for row, value in enumerate(values):
        text = "no images" if np.isnan(value) else f"{100 * value:.1f} %"
        axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", color=INK)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(start, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_title(title, loc="left", fontweight="bold", color=INK)
    figure.legend(loc="outside lower left", frameon=False)
    save_figure(figure, path)


def distances(path: Path, synthetic: np.ndarray, held_out: np.ndarray) -> None:
    """How far from their nearest training image the synthetic and the held-out real images are."""
    figure = new_figure(7.2, 3.6)
    axes = figure.subplots()
    farthest = max(1.0, np.quantile(np.concatenate([synthetic, held_out]), 0.999))
    edges = np.linspace(0, farthest, 41).tolist()
    for values, name, colour in ((held_out, "held-out real", REAL), (synthetic, "synthetic", SYNTHETIC)):
        weights = np.full(len(values), 100 / len(values))
        axes.hist(values, edges, weights=weights, histtype="stepfilled", color=colour, alpha=0.25)
        axes.hist(values, edges, weights=weights, histtype="step", color=colour, linewidth=1.8, label=name)
    axes.axvline(float(np.median(held_out)), color=REAL, linestyle=":", label="held-out median")
    axes.set_xlim(0, edges[-1])
    axes.set_xlabel("distance to the nearest training image (root mean square, levels of 255)")
    axes.set_ylabel("% of images")
    axes.set_title("Distance to the training images", loc="left", fontweight="bold", color=INK)
    axes.legend(frameon=False)
    save_figure(figure, path)


def curves(path: Path | BinaryIO, rows: Sequence[Mapping[str, float]]) -> None:
    """The charted numbers of a run over images seen: losses, and beside them accuracies of the discriminator."""
    groups = {"Losses": "_loss", "The discriminator's accuracy": "_accuracy"}
    figure = new_figure(11.5, 3.6)
    for axes, (title, ending) in zip(figure.subplots(1, 2), groups.items(), strict=True):
        for name in dict.fromkeys(name for row in rows for name in row if name.endswith(ending)):
            points = [(row["images_seen"], row[name]) for row in rows if name in row]
            axes.plot(*zip(*points, strict=True), linewidth=1.4, label=name.removesuffix(ending).replace("_", " "))
        axes.set_title(title, loc="left", fontweight="bold", color=INK)
        axes.set_xlabel("images seen", color=FAINT)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.locator_params(axis="x", nbins=5)
        if axes.lines:
            axes.legend(frameon=False)
    save_figure(figure, path)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in inches, without the process-wide state of pyplot."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["text.parse_math"] = False  # a class may be called `$x$`
    return Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor=PAPER)


def save_figure(figure: Figure, path: Path | BinaryIO) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK)
    figure.savefig(path, format="png", metadata={"Software": None})


def _paste(sheet: Image.Image, image: np.ndarray, x: int, y: int) -> None:
    """Put the image there in a thin frame: white strokes that touch its edge must not run into the paper."""
    picture = _enlarge(image)
    ImageDraw.Draw(sheet).rectangle((x - 1, y - 1, x + picture.width, y + picture.height), outline=FAINT)
    sheet.paste(picture, (x, y))


def _enlarge(image: np.ndarray) -> Image.Image:
    """An image (C, H, W) about _TILE pixels wide: whole factors up, antialiased down."""
    pixels = image.transpose(1, 2, 0)
    picture = Image.fromarray(pixels[..., 0] if len(image) == 1 else pixels)
    factor = max(1, round(_TILE / picture.width))
    if picture.width > 2 * _TILE:
        return picture.resize((_TILE, _TILE), Image.Resampling.LANCZOS)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib, so that sheets and charts look alike on every machine."""
    from matplotlib import get_data_path

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", name), size)
