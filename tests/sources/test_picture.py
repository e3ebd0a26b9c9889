from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipeline.sources.picture import Picture, load_picture, without_pillows_own_limit


def load(data: bytes | NDArray[np.uint8], size: int = 8, channels: int = 3, max_pixels: int = 10**6) -> Picture:
    return load_picture(data, image_size=size, channels=channels, max_pixels=max_pixels)


def encoded(picture: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()


def header_of_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]), st.integers(1, 24), st.randoms())
def test_any_size_becomes_the_size_and_channels_asked_for(
    width: int, height: int, channels: int, size: int, random: Any
) -> None:
    mode = random.choice(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
    pixels = random.randbytes(width * height * 4)
    raw = Image.frombytes("CMYK", (width, height), pixels).convert("RGB")
    kind = "TIFF" if mode in ("CMYK", "YCbCr", "I;16") else "PNG"
    source = Image.new(mode, raw.size, 300) if mode == "I;16" else raw.convert(mode)
    found = load(encoded(source, kind), size, channels)
    assert found.pixels.shape == (channels, size, size)
    assert found.pixels.dtype == np.uint8
    assert (found.width, found.height, found.mode) == (width, height, mode)
    assert found.resized == (min(width, height) != size)


@given(st.integers(1, 20), st.sampled_from([1, 3]), st.randoms())
def test_a_picture_of_the_right_size_keeps_every_pixel(size: int, channels: int, random: Any) -> None:
    shape = (size, size) if channels == 1 else (size, size, 3)
    pixels = np.frombuffer(random.randbytes(size * size * channels), np.uint8).reshape(shape)
    expected = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
    for data in (pixels, encoded(Image.fromarray(pixels))):
        found = load(data, size, channels)
        np.testing.assert_array_equal(found.pixels, expected)
        assert not found.resized


@given(st.tuples(st.integers(1, 50), st.integers(1, 50)), st.tuples(*[st.integers(0, 255)] * 3))
def test_a_picture_of_one_colour_keeps_it_at_any_size(size: tuple[int, int], colour: tuple[int, int, int]) -> None:
    found = load(encoded(Image.new("RGB", size, colour)))
    assert [set(plane.ravel()) for plane in found.pixels] == [{value} for value in colour]


def test_the_middle_square_is_kept() -> None:
    picture = Image.new("L", (24, 8), 0)
    picture.paste(200, (8, 0, 16, 8))
    assert set(load(encoded(picture), channels=1).pixels.ravel()) == {200}


def test_a_fine_pattern_is_averaged_and_not_sampled() -> None:
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    found = load(board, channels=1)
    assert found.pixels.min() >= 120
    assert found.pixels.max() <= 135


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(kind: str) -> None:
    values = np.array([[0, 128, 129, 257], [32768, 40000, 65406, 65535]] * 2, np.uint16)
    found = load(encoded(Image.fromarray(values), kind), 4, channels=1)
    assert found.mode == "I;16"
    np.testing.assert_array_equal(found.pixels[0], np.rint(values / 257))


def test_sixteen_bits_in_a_pgm_are_scaled() -> None:
    values = np.array([[0, 257], [32768, 65535]], ">u2")
    found = load(b"P5 2 2 65535\n" + values.tobytes(), 2, channels=1)
    np.testing.assert_array_equal(found.pixels[0], [[0, 1], [128, 255]])


def test_one_bit_becomes_black_and_white() -> None:
    picture = Image.fromarray(np.eye(8, dtype=bool))
    np.testing.assert_array_equal(load(encoded(picture), channels=1).pixels[0], np.eye(8) * 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_over_white(mode: str) -> None:
    picture = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (0, 0, 8, 4))
    found = load(encoded(picture.convert(mode), "PNG" if mode != "PA" else "TIFF"), channels=1)
    assert set(found.pixels[0, :4].ravel()) == {0}
    assert set(found.pixels[0, 4:].ravel()) == {255}


def test_half_transparency_is_half_white() -> None:
    found = load(encoded(Image.new("RGBA", (8, 8), (100, 0, 255, 51))))  # 51 of 255 is a fifth
    assert found.pixels[:, 0, 0].tolist() == [224, 204, 255]


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_is_white(mode: str) -> None:
    picture = Image.new(mode, (8, 8), 0)
    transparent = (0, 0, 0) if mode == "RGB" else 0
    assert set(load(encoded(picture, transparency=transparent)).pixels.ravel()) == {255}


def test_a_palette_gives_its_colours() -> None:
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    assert load(encoded(picture, "GIF")).pixels[:, 0, 0].tolist() == [10, 20, 30]


def test_cmyk_becomes_rgb() -> None:
    found = load(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"))
    assert found.pixels[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("orientation", "as_stored"),
    list(
        enumerate(
            [
                Image.Transpose.FLIP_LEFT_RIGHT,
                Image.Transpose.ROTATE_180,
                Image.Transpose.FLIP_TOP_BOTTOM,
                Image.Transpose.TRANSPOSE,
                Image.Transpose.ROTATE_90,
                Image.Transpose.TRANSVERSE,
                Image.Transpose.ROTATE_270,
            ],
            start=2,
        )
    ),
)
def test_a_turned_picture_is_set_upright(orientation: int, as_stored: Image.Transpose) -> None:
    upright = Image.new("L", (16, 16), 0)
    upright.paste(255, (0, 0, 8, 8))
    upright.paste(128, (8, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = load(encoded(upright.transpose(as_stored), exif=exif), 16, channels=1)
    np.testing.assert_array_equal(found.pixels[0], np.asarray(upright))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    settings: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    found = load(encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **settings))
    assert found.pixels[:, 0, 0].tolist() == [255, 0, 0]


def test_a_bomb_is_refused_from_its_header() -> None:
    sentence = (
        r"^is 50,000×50,000 pixels by its header; needed at most 40,000,000 in all \(of a source: ingest\.max_pixels\)$"
    )
    with without_pillows_own_limit(), pytest.raises(ValueError, match=sentence):
        load(header_of_png(50_000, 50_000), max_pixels=40_000_000)


def test_above_pillows_own_limit_ours_is_the_only_one() -> None:
    wide = header_of_png(200_000, 1_000)  # 200 million: Pillow alone would refuse
    with without_pillows_own_limit(), pytest.raises(ValueError, match="is a damaged PNG picture"):
        load(wide, max_pixels=10**9)


def test_pillows_own_limit_is_back_afterwards() -> None:
    with without_pillows_own_limit():
        pass
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(header_of_png(50_000, 50_000)))
    with pytest.warns(UserWarning, match="seen"):
        warnings.warn("seen", stacklevel=1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"is 0 bytes long"),
        (b"no picture at all", r"is no picture that can be read \(PNG, JPEG, "),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", r"is no picture that can be read"),
        (encoded(Image.radial_gradient("L"), "JPEG")[:2000], r"is a damaged JPEG picture \(image file is truncated"),
        (encoded(Image.radial_gradient("L"))[:2000], r"is a damaged PNG picture"),
        (encoded(Image.new("F", (8, 8), 0.5), "TIFF"), r"mode F, have no known range; needed 8 or 16 bits"),
    ],
    ids=["empty", "text", "postscript", "truncated jpeg", "truncated png", "float"],
)
def test_what_cannot_be_read_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        load(data)


@given(st.integers(0, 3000), st.integers(0, 255))
def test_a_flipped_byte_gives_a_picture_or_a_reason(place: int, value: int) -> None:
    data = bytearray(encoded(Image.radial_gradient("L").resize((32, 32)), "JPEG"))
    data[place % len(data)] = value
    with without_pillows_own_limit():
        try:
            found = load(bytes(data))
        except ValueError:
            return
    assert found.pixels.shape == (3, 8, 8)
