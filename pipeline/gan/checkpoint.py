"""Checkpoints of a run: whole or absent, verified when read, the last two kept; and a lock on their folder."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from pipeline.errors import FailedError

Tree = Any  # dicts with text keys, lists, tensors and JSON scalars, nested

_KEPT = 2
_TENSORS, _TREE = "tensors.safetensors", "tree.json"


class Checkpoints:
    """The checkpoints in one folder, each a folder named by its images seen and a digest of its bytes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images_seen: int | None = None  # of the newest good one
        root.mkdir(parents=True, exist_ok=True)

    def save(self, images_seen: int, tree: Tree) -> None:
        """Write, flush to the disk, then rename: a kill or a power cut at any instant leaves the last one whole.

        Raises OSError that names the file where there is no room for it.
        """
        tensors: dict[str, Tensor] = {}
        content = json.dumps(_detach(tree, "", tensors)).encode()
        files = {_TENSORS: safetensors.torch.save(tensors), _TREE: content}
        building = self.root / "building"
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir()
        for name, data in files.items():
            _write(building / name, data)
        _sync_folder(building)
        whole = self.root / f"{images_seen:015d}-{_digest(files)}"
        shutil.rmtree(whole, ignore_errors=True)
        building.rename(whole)
        _sync_folder(self.root)
        self.images_seen = images_seen
        for old in self._newest_first()[_KEPT:]:
            shutil.rmtree(old)

    def load(self) -> Tree | None:
        """The newest checkpoint whose bytes are what was written; None when there is none."""
        for folder in self._newest_first():
            try:
                files = {name: (folder / name).read_bytes() for name in (_TENSORS, _TREE)}
            except OSError:
                continue
            images_seen, digest = folder.name.split("-")
            if digest == _digest(files):
                self.images_seen = int(images_seen)
                return _attach(json.loads(files[_TREE]), safetensors.torch.load(files[_TENSORS]))
        return None

    def _newest_first(self) -> list[Path]:
        return sorted(self.root.glob("*-*"), reverse=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder and hold its lock, which the system frees when the process ends, however it ends.

    The folder may be removed inside the block. Raises FailedError when another process holds the lock.
    """
    lock = folder / "lock"
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_CREAT | os.O_RDWR)
        try:
            _lock(descriptor, folder)
            if not lock.exists() or not os.path.samestat(lock.stat(), os.fstat(descriptor)):
                continue  # its last holder removed the folder after we had opened it
            yield
            return
        finally:
            os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FailedError(f"{folder}: is locked; another process is training with the same inputs") from None


def _digest(files: dict[str, bytes]) -> str:
    return hashlib.sha256(b"".join(files[name] for name in sorted(files))).hexdigest()[:32]


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            error.filename = str(path)  # which only those of `open` name
            raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _detach(tree: Tree, path: str, tensors: dict[str, Tensor]) -> Tree:
    """The tree with each tensor replaced by its name in `tensors`."""
    match tree:
        case Tensor():
            tensors[path] = tree.detach().contiguous()
            return {"tensor": path}
        case dict():
            return {key: _detach(value, f"{path}/{key}", tensors) for key, value in tree.items()}
        case list():
            return [_detach(value, f"{path}/{index}", tensors) for index, value in enumerate(tree)]
        case _:
            return tree


def _attach(tree: Tree, tensors: dict[str, Tensor]) -> Tree:
    match tree:
        case {"tensor": str(name)}:
            return tensors[name]
        case dict():
            return {key: _attach(value, tensors) for key, value in tree.items()}
        case list():
            return [_attach(value, tensors) for value in tree]
        case _:
            return tree
