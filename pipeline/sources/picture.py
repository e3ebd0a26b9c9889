"""A picture of any size and mode as one square image of the set.

In this order: the first frame; turned upright as EXIF says; to 8 bits (16-bit grayscale is scaled, not clipped);
transparency laid over white; to grayscale (luma) or RGB; the largest square in the middle; one resize with Pillow's
antialiased Lanczos filter, and none where the size is right already.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

RESIZE = "lanczos"
# The formats whose readers are Pillow's own and meet bytes of strangers every day; EPS would start another program.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """`pixels` is uint8 (C, S, S), (C, H, W) of a whole one; width, height, mode (Pillow's) are of the original."""

    pixels: NDArray[np.uint8]
    width: int
    height: int
    mode: str
    resized: bool


def load_picture(data: bytes | NDArray[np.uint8], *, image_size: int | None, channels: int, max_pixels: int) -> Picture:
    """`data`, an encoded file or uint8 (H, W) or (H, W, 3), as an image of `channels` (1 or 3) × `image_size`².

    With `image_size` None whole and as large as it is.

    Raises ValueError that begins with "is": no picture, damaged, or above `max_pixels` by its header, which is judged
    before any pixel is unpacked.
    """
    if isinstance(data, bytes) and not data:
        raise ValueError("is 0 bytes long")
    # Pillow's readers raise whatever they stumble over in the bytes of strangers: hence the two wide nets.
    try:
        original = Image.open(io.BytesIO(data), formats=FORMATS) if isinstance(data, bytes) else Image.fromarray(data)
    except Exception as error:
        raise ValueError(f"is no picture that can be read ({', '.join(FORMATS)})") from error
    with original:
        width, height = original.size
        if width * height > max_pixels:
            said = f"is {width:,}×{height:,} pixels by its header"
            raise ValueError(f"{said}; needed at most {max_pixels:,} in all (of a source: ingest.max_pixels)")
        mode = original.mode
        try:
            upright = _plain(original, "L" if channels == 1 else "RGB")
        except Exception as error:
            raise ValueError(f"is a damaged {original.format} picture ({error})") from error
    resized = image_size is not None and min(upright.size) != image_size
    pixels = np.array(upright if image_size is None else _square(upright, image_size))
    return Picture(
        pixels=pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1)),
        width=width,
        height=height,
        mode=mode,
        resized=resized,
    )


def _square(upright: Image.Image, image_size: int) -> Image.Image:
    side = min(upright.size)
    left, top = (upright.width - side) // 2, (upright.height - side) // 2
    square = upright.crop((left, top, left + side, top + side))
    return square if side == image_size else square.resize((image_size, image_size), Image.Resampling.LANCZOS)


def _plain(picture: Image.Image, mode: str) -> Image.Image:
    """The first frame, upright, 8 bits, opaque, in `mode` (L or RGB)."""
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PPM"):
        picture = Image.fromarray(((np.asarray(picture).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"its pixels, mode {picture.mode}, have no known range; needed 8 or 16 bits")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return picture.convert(mode)


@cache
def picture_suffixes() -> frozenset[str]:
    """How the names of pictures in these formats end, in lower case."""
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS)


@contextmanager
def without_pillows_own_limit() -> Iterator[None]:
    """While this is open `max_pixels` is the only limit, and Pillow's warnings about odd files are not shown.

    For the thread that starts the others: neither switch belongs to one thread alone.
    """
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
