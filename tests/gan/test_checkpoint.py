"""Checkpoints are whole or absent; their lock ends with the process."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.errors import FailedError, of_system
from pipeline.gan.checkpoint import Checkpoints, Tree, locked

TREE = {
    "steps": 7,
    "share": 0.1,
    "note": None,
    "nested": [{"weights": torch.arange(6.0).reshape(2, 3)}, {"many": torch.arange(3)}, [1, 2]],
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "scalar": torch.tensor(3.25),
}


def _same(one: Tree, other: Tree) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _newest(root: Path) -> Path:
    return max(root.glob("*-*"))


def test_a_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(640, TREE)
    again = Checkpoints(tmp_path)
    assert _same(again.load(), TREE)
    assert again.images_seen == 640


def test_there_is_nothing_at_first(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "new")
    assert checkpoints.load() is None
    assert checkpoints.images_seen is None


def test_the_newest_is_loaded_and_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for images_seen in (640, 6400, 64_000, 99):  # 99: an older state written again after a fall back
        checkpoints.save(images_seen, {"at": images_seen})
    assert len(list(tmp_path.iterdir())) == 2
    assert checkpoints.load() == {"at": 64_000}


def test_the_same_state_can_be_written_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(640, TREE)
    checkpoints.save(640, TREE)
    assert _same(checkpoints.load(), TREE)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["tensors.safetensors", "tree.json"])
@pytest.mark.parametrize("damage", [_truncate, _flip_a_bit, Path.unlink])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(640, {**TREE, "which": "older"})
    checkpoints.save(1280, {**TREE, "which": "newer"})
    damage(_newest(tmp_path) / file)
    assert checkpoints.load()["which"] == "older"
    assert checkpoints.images_seen == 640


def test_all_damaged_is_none(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(640, TREE)
    _truncate(_newest(tmp_path) / "tree.json")
    assert checkpoints.load() is None


def test_what_a_killed_writer_left_is_neither_read_nor_in_the_way(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(640, {"which": "whole"})
    shutil.copytree(_newest(tmp_path), tmp_path / "building")
    assert checkpoints.load() == {"which": "whole"}
    checkpoints.save(1280, {"which": "next"})
    assert checkpoints.load() == {"which": "next"}


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(640, {"which": "whole"})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError) as caught:  # noqa: PT011 - its number is what `of_system` reads
            checkpoints.save(1280, {"weights": torch.zeros(4096)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"while writing {tmp_path}/building/tensors.safetensors" in str(of_system(caught.value))
    assert checkpoints.load() == {"which": "whole"}


def test_one_process_at_a_time_and_a_killed_one_frees_the_lock(tmp_path: Path) -> None:
    hold = "import sys, pathlib; from pipeline.gan.checkpoint import locked"
    hold += "\nwith locked(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(FailedError, match="another process is training"), locked(tmp_path / "run"):
            pass
        holder.kill()
    with locked(tmp_path / "run"):
        shutil.rmtree(tmp_path / "run")  # as a finished run does
    with locked(tmp_path / "run"):
        pass
