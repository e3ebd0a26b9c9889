"""What depends on real images only is computed once: kept under the sha256 of all that it depends on.

Kept beside the DVC cache, or outside of a DVC repository in $FORGELINE_CACHE, else ~/.cache/forgeline. A damaged file
is made anew, one that was not used for long removed; where none can be written the numbers are only given.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from pipeline import paths
from pipeline.errors import FailedError
from pipeline.gan import machine, pixels
from pipeline.imageset import layout
from pipeline.imageset.files import forget_unused, mark_used, write_atomically

_ROWS = 1000  # of an array that are hashed at once


def once(compute: Callable[[], Mapping[str, np.ndarray | float]], *inputs: object) -> dict[str, np.ndarray]:
    """`compute()`, which depends on `inputs` and our code only: arrays, and what JSON can say of all else.

    The same on the same kind of machine is computed once; numbers come back as arrays without dimensions.
    """
    folder = _beside(paths.dvc_cache, Path.cwd())
    if folder is None:
        folder = paths.cache() / "kept"
    key = _key(inputs)
    path = folder / f"{key}.kept"
    if (known := _read(path, key)) is not None:
        mark_used(path)
        return known
    found = {name: np.asarray(value) for name, value in compute().items()}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **found)
    data = file.getvalue()
    with suppress(FailedError):  # a full or read-only disk is no reason to throw away what took minutes
        write_atomically(path, _seal(key, data) + data)
        forget_unused(folder, "*.kept")
    return found


def numbers(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Of arrays without dimensions."""
    return {name: float(value) for name, value in found.items()}


@cache
def _beside(dvc_cache: Callable[[], Path | None], workspace: Path) -> Path | None:
    """The folder beside the DVC cache of this workspace; it takes a second to ask for."""
    found = dvc_cache()
    return None if found is None else found.parent / "forgeline-kept"


def _key(inputs: tuple[object, ...]) -> str:
    """Hex sha256 over the inputs, and what else the last digits depend on."""
    arrays = [each for each in inputs if isinstance(each, np.ndarray)]
    known = {
        "inputs": [[each.dtype.str, each.shape] if isinstance(each, np.ndarray) else {"said": each} for each in inputs],
        "code": _code(),
        "threads": torch.get_num_threads(),
        "device": machine.name(),
        **{name: version(name) for name in ("numpy", "torch", "torch-fidelity")},
    }
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    for array in arrays:
        for start in range(0, len(array), _ROWS):
            digest.update(array[start : start + _ROWS].tobytes())
    return digest.hexdigest()


@cache
def _code() -> str:
    """The sha256 of what says how all this is computed: once it changes, nothing that was kept is believed."""
    digest = hashlib.sha256()
    for file in (*sorted(Path(__file__).parent.glob("*.py")), Path(layout.__file__), Path(pixels.__file__)):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _read(path: Path, key: str) -> dict[str, np.ndarray] | None:
    """What is in the file; None when there is none, or a damaged one."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    seal, data = content[:32], content[32:]
    if seal != _seal(key, data):
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return dict(file)


def _seal(key: str, data: bytes) -> bytes:
    return hashlib.sha256(key.encode() + data).digest()
