"""The lock of a place: what it says when another has it, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.place import held
from pipeline.errors import FailedError


def test_a_lock_has_one_holder_and_is_free_afterwards(tmp_path: Path) -> None:
    with (
        held(tmp_path / "lock"),
        pytest.raises(FailedError, match=r"lock: is held by another run$"),
        held(tmp_path / "lock"),
    ):
        raise AssertionError("two hold it")
    with held(tmp_path / "lock"):
        pass


def test_what_would_block_while_the_lock_is_held_is_not_taken_for_the_lock(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError, match="a pipe"), held(tmp_path / "lock"):
        raise BlockingIOError("a pipe")
