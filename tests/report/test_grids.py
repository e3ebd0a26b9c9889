"""Grids and folders of samples."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import UserError
from pipeline.gan.family import ImageSpec, load_family
from pipeline.gan.model import Model
from pipeline.report.grids import sample_grid, sample_to, tile


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    module = load_family("conditional")
    config = module.Config(width=16)
    Model(
        family="conditional",
        config=config,
        classes=("ant", "bee/wasp", "ćma"),
        channels=3,
        image_size=8,
        images_seen=640,
        data_fingerprint="0" * 64,
        selection={},
        generator=module.Generator(config, ImageSpec(channels=3, image_size=8, classes=3)).eval(),
    ).save(tmp_path / "model")
    return tmp_path / "model"


def _picture(data: bytes) -> np.ndarray:
    """PNG bytes as uint8 (C, H, W), read by Pillow alone."""
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def test_tiles_stand_row_by_row_between_white_lines() -> None:
    images = np.arange(3, dtype=np.uint8)[:, None, None, None].repeat(48, axis=2).repeat(48, axis=3)
    picture = tile(images, columns=2)
    assert picture.shape == (1, 97, 97)
    assert [picture[0, y, x] for y, x in [(0, 0), (47, 47), (0, 49), (49, 0), (96, 47)]] == [0, 0, 1, 2, 2]
    assert (picture[0, 48] == 255).all()
    assert (picture[0, :, 48] == 255).all()
    assert (picture[0, 49:, 49:] == 255).all()  # no fourth image


def test_small_pixels_become_squares() -> None:
    picture = tile(np.random.default_rng(0).integers(0, 256, (1, 3, 8, 8), np.uint8), columns=1)
    assert picture.shape == (3, 48, 48)
    assert np.array_equal(picture, picture[:, ::6, ::6].repeat(6, axis=1).repeat(6, axis=2))


def test_the_grid_has_one_row_for_each_class(model: Path) -> None:
    loaded = Model.load(model)
    picture = _picture(sample_grid(loaded, seed=0, columns=4))
    assert picture.shape == (3, (3 * 9 - 1) * 6, (4 * 9 - 1) * 6)
    images, labels = loaded.sample(seed=0, start=0, count=12)
    small = picture[:, ::6, ::6]
    for image, label, column in zip(images, labels, np.arange(12) // 3, strict=True):
        assert np.array_equal(small[:, label * 9 : label * 9 + 8, column * 9 : column * 9 + 8], image)


def test_a_name_that_ends_in_png_is_one_grid(model: Path, tmp_path: Path) -> None:
    sample_to(model, tmp_path / "new" / "grid.PNG", count=7, seed=0)
    assert _picture((tmp_path / "new" / "grid.PNG").read_bytes()).shape == (3, (3 * 9 - 1) * 6, (3 * 9 - 1) * 6)


def test_any_other_name_is_a_folder_of_lossless_images_named_by_number_and_class(model: Path, tmp_path: Path) -> None:
    sample_to(model, tmp_path / "images", count=200, seed=4, spread=1.2)
    files = sorted((tmp_path / "images").iterdir())
    assert [file.name for file in files[:3]] == ["000000-ant.png", "000001-bee_wasp.png", "000002-ćma.png"]
    images, _ = Model.load(model).sample(seed=4, start=0, count=200, spread=1.2)
    assert np.array_equal(np.stack([_picture(file.read_bytes()) for file in files]), images)


def test_a_folder_that_holds_something_is_left_alone(model: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty; needed a new or empty folder"):
        sample_to(model, tmp_path / "full", count=3, seed=0)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("spread", [0.0, -1.0, float("nan"), float("inf")])
def test_a_spread_that_is_none_is_refused(model: Path, tmp_path: Path, spread: float) -> None:
    with pytest.raises(UserError, match=f"--spread is {spread}; needed"):
        sample_to(model, tmp_path / "images", count=3, seed=0, spread=spread)


def test_another_kind_of_picture_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"grid\.jpg: would be a folder of that name; needed a name that ends in \.png"):
        sample_to(model, tmp_path / "grid.jpg", count=3, seed=0)
    assert not (tmp_path / "grid.jpg").exists()
