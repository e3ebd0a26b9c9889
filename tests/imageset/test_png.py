from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from pipeline.imageset import png

GREY = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width: int, height: int, depth: int = 8, colour: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


SIGNATURE = b"\x89PNG\r\n\x1a\n"


@given(
    st.tuples(st.sampled_from([1, 3]), st.integers(1, 32), st.integers(1, 32)).flatmap(
        lambda shape: arrays(np.uint8, shape)
    )
)
def test_round_trip(image: np.ndarray) -> None:
    assert np.array_equal(png.decode(png.encode(image), image.shape), image)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_large_image_is_put_together_of_strips(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (channels, 2100, 2100), np.uint8)
    out = np.zeros_like(image)
    assert png.decode(png.encode(image), image.shape, out) is out
    assert np.array_equal(out, image)


def test_other_readers_see_the_same_picture() -> None:
    image = np.arange(192, dtype=np.uint8).reshape(3, 8, 8)
    with Image.open(io.BytesIO(png.encode(image))) as picture:
        assert picture.mode == "RGB"
        assert np.array_equal(np.asarray(picture), image.transpose(1, 2, 0))


def test_a_bomb_is_refused_by_its_header() -> None:
    bomb = SIGNATURE + header(50_000, 50_000) + chunk(b"IDAT", zlib.compress(bytes(10_000_000)))
    with pytest.raises(ValueError, match=r"has .* \(1, 50000, 50000\); needed \(1, 8, 8\)"):
        png.decode(bomb, (1, 8, 8))


def test_a_second_header_does_not_smuggle_a_bomb() -> None:
    bomb = SIGNATURE + header(8, 8) + header(9_000, 9_000) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    with pytest.raises(ValueError, match="damaged"):
        png.decode(bomb, (1, 8, 8))


def test_a_second_header_of_another_kind_is_damage() -> None:
    """By which Pillow would go: colours of three bytes for the pixels of one."""
    pixels = chunk(b"IDAT", zlib.compress(bytes(8 * 25)))
    data = SIGNATURE + header(8, 8) + header(8, 8, colour=2) + pixels + chunk(b"IEND", b"")
    for read in (png.decode, png.check):
        with pytest.raises(ValueError, match="damaged"):
            read(data, (1, 8, 8))


@pytest.mark.parametrize("kind", [(16, 0), (16, 2), (1, 0), (8, 3), (8, 6), (8, 4)])
def test_what_would_lose_something_is_refused(kind: tuple[int, int]) -> None:
    data = SIGNATURE + header(8, 8, *kind) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    for read in (png.decode, png.check):
        with pytest.raises(ValueError, match="needed"):
            read(data, (3, 8, 8))


@pytest.mark.parametrize("data", [b"", b"no picture at all, but longer than a header", b"\xff\xd8\xff\xe0" + bytes(40)])
def test_what_is_no_png_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="is not a PNG image"):
        png.decode(data, (1, 8, 8))


def test_an_empty_colour_profile_past_the_pixels_is_damage() -> None:
    pixels = chunk(b"IDAT", zlib.compress(bytes(72)))
    data = SIGNATURE + header(8, 8) + pixels + chunk(b"iCCP", b"") + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match="is a damaged PNG image"):
        png.decode(data, (1, 8, 8))


@given(st.integers(0, 150), st.binary(max_size=8), st.booleans())
def test_damage_is_refused_or_gives_an_image_of_the_shape(at: int, junk: bytes, cut: bool) -> None:
    data = png.encode(GREY)
    damaged = data[:at] if cut else data[:at] + junk + data[at + len(junk) :]
    with suppress(ValueError):
        assert png.decode(damaged, (1, 8, 8)).shape == (1, 8, 8)
