"""Images to PNG bytes and back, without loss."""

from __future__ import annotations

import io
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 1 << 26
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3}  # PNG colour type: grayscale, truecolour


def encode(image: NDArray[np.uint8]) -> bytes:
    """PNG bytes of `image`, uint8 (C, H, W) with C in {1, 3}."""
    buffer = io.BytesIO()
    picture = image[0] if image.shape[0] == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def decode(data: bytes, shape: tuple[int, ...] | None = None) -> NDArray[np.uint8]:
    """The image in 8-bit grayscale or RGB PNG bytes, uint8 (C, H, W); exactly of `shape` where it is given.

    Raises ValueError that says found and needed. The size in the header is judged before any pixel is unpacked.
    """
    if data[:8] != _SIGNATURE or data[12:16] != b"IHDR" or len(data) < 33:
        raise ValueError("is not a PNG image")
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    if depth != 8 or colour not in _CHANNELS:
        raise ValueError(f"is a PNG of {depth} bits and colour type {colour}; needed 8-bit grayscale or RGB")
    found = (_CHANNELS[colour], height, width)
    if shape is not None and found != tuple(shape):
        raise ValueError(f"is an image of shape {found}; needed {tuple(shape)}")
    if width * height > MAX_PIXELS:
        raise ValueError(f"is {width}×{height} pixels; needed at most {MAX_PIXELS}")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            pixels = np.asarray(picture)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise ValueError(f"is a damaged PNG image ({error})") from None
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
