"""The pictures show the images they are given, pixel for pixel and in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.report.figures import closest_pairs, distances, sample_sheet, shares


def colours(path: Path) -> list[int]:
    """The grey levels from 101 to 199 of a picture, in reading order of their first pixels."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    grey = (pixels == pixels[..., :1]).all(axis=2) & (pixels[..., 0] > 100) & (pixels[..., 0] < 200)
    blocks: list[int] = []
    for row in np.flatnonzero(grey[:-20].all(axis=1) | grey[:-20].any(axis=1)):
        for value in pixels[row][grey[row]][:, 0].tolist():
            large = (pixels[row, :, 0] == value).sum() >= 50
            if large and value not in blocks:
                blocks.append(value)
    return blocks


def flat(levels: list[int]) -> np.ndarray:
    return np.array(levels, np.uint8)[:, None, None, None].repeat(8, axis=2).repeat(8, axis=3)


def test_a_sheet_has_a_row_for_each_class_real_before_synthetic(tmp_path: Path) -> None:
    real = flat([110, 120, 111, 121]), np.array([0, 1, 0, 1])
    synthetic = flat([160, 150, 161, 151, 162]), np.array([1, 0, 1, 0, 1])
    sample_sheet(tmp_path / "sheet.png", real, synthetic, ["a", "b"], columns=2)
    assert colours(tmp_path / "sheet.png") == [110, 111, 150, 151, 120, 121, 160, 161]


def test_small_images_are_enlarged_by_whole_factors(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 8, 8), dtype=np.uint8)
    one = image, np.array([0])
    sample_sheet(tmp_path / "sheet.png", one, one, ["a"], columns=1)
    wanted = image[0].transpose(1, 2, 0).repeat(7, axis=0).repeat(7, axis=1)
    with Image.open(tmp_path / "sheet.png") as picture:
        pixels = np.asarray(picture)
    windows = np.lib.stride_tricks.sliding_window_view(pixels[..., 0], (56, 56))
    tops, lefts = np.nonzero((windows[:, :, ::7, ::7] == image[0, 0]).all(axis=(2, 3)))
    exact = [
        (top, left)
        for top, left in zip(tops, lefts, strict=True)
        if (pixels[top : top + 56, left : left + 56] == wanted).all()
    ]
    assert len(exact) == 2  # the real side and the synthetic one


@pytest.mark.parametrize(("classes", "rows"), [(3, 3), (20, 20), (100, 20)])
def test_a_sheet_shows_at_most_twenty_classes(tmp_path: Path, classes: int, rows: int) -> None:
    images = np.zeros((classes, 3, 200, 200), np.uint8), np.arange(classes)
    sample_sheet(tmp_path / "sheet.png", images, images, [str(label) for label in range(classes)], columns=1)
    with Image.open(tmp_path / "sheet.png") as picture:
        dark = (np.asarray(picture.convert("L")) < 10).sum(axis=1) > 100
    assert int(dark[1:].sum() - (dark[1:] & dark[:-1]).sum()) == rows


def test_the_closest_pairs_come_first_and_farther_ones_are_left_out(tmp_path: Path) -> None:
    training = flat([150, 160, 170])
    group = flat([110, 120, 130]), np.array([3.0, 1.0, 2.0]), np.array([0, 2, 1])
    closest_pairs(tmp_path / "pairs.png", {"made up": group}, training, pairs=2)
    assert colours(tmp_path / "pairs.png") == [120, 130, 170, 160]


def test_charts_have_the_same_bytes_each_time_and_know_classes_without_images(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    near, far = random.normal(20, 3, 500).astype(np.float32), random.normal(30, 3, 200).astype(np.float32)
    for name in ("first", "second"):
        distances(tmp_path / f"{name}-distances.png", near, far)
        values = np.array([1.0, np.nan, 0.25])
        shares(tmp_path / f"{name}-shares.png", ["$\\foo$", "é", "ж"], values, title="Shares", reference=("real", 0.9))
    for kind in ("distances", "shares"):
        assert (tmp_path / f"first-{kind}.png").read_bytes() == (tmp_path / f"second-{kind}.png").read_bytes()
