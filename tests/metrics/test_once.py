"""What is kept is what was computed, of the same inputs and by the same code, and a disk that fails costs time only."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline import paths
from pipeline.imageset import layout
from pipeline.metrics import once as module
from pipeline.metrics.once import numbers, once

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of what is kept."""
    monkeypatch.setattr(paths, "dvc_cache", lambda: tmp_path / "cache")
    return tmp_path / "forgeline-kept"


class Counted:
    def __init__(self, **values: np.ndarray | float) -> None:
        self.values, self.times = values, 0

    def __call__(self) -> dict[str, np.ndarray | float]:
        self.times += 1
        return self.values


def test_it_is_computed_once_and_comes_back_as_it_was(kept: Path) -> None:
    compute = Counted(rows=ROWS, order=np.arange(3), fid=0.1)
    for _ in range(2):
        found = once(compute, "of", 1, ROWS)
        assert list(found) == ["rows", "order", "fid"]
        for name, value in compute.values.items():
            np.testing.assert_array_equal(found[name], value, strict=isinstance(value, np.ndarray))
    assert compute.times == 1
    assert numbers(once(Counted(fid=0.1), "numbers")) == {"fid": 0.1}


@pytest.mark.parametrize(
    "inputs",
    [
        ("of", 2, ROWS),
        ("by", 1, ROWS),
        ("of", 1, ROWS[:3]),
        ("of", 1, ROWS.reshape(3, 4)),
        ("of", 1, ROWS.astype(np.float64)),
        ("of", 1, ROWS.view(np.int32)),
        ("of", 1, np.where(ROWS == 7, 8, ROWS)),
        ("of", ROWS, 1),
        ("of", 1, ROWS, ROWS[:0]),
    ],
    ids=str,
)
def test_other_inputs_are_computed_again(kept: Path, inputs: tuple[object, ...]) -> None:
    once(Counted(fid=1.0), "of", 1, ROWS)
    assert numbers(once(Counted(fid=2.0), *inputs)) == {"fid": 2.0}


def test_nothing_of_other_code_is_believed(kept: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    once(Counted(fid=1.0), ROWS)
    (tmp_path / "code").mkdir()
    monkeypatch.setattr(module, "__file__", str(tmp_path / "code" / "once.py"))
    module._code.cache_clear()
    try:
        assert numbers(once(Counted(fid=2.0), ROWS)) == {"fid": 2.0}
    finally:
        module._code.cache_clear()


def test_what_says_which_image_is_a_copy_is_such_code_too(
    kept: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    once(Counted(fid=1.0), ROWS)
    changed = tmp_path / "layout.py"
    changed.write_bytes(Path(layout.__file__).read_bytes() + b"\n")
    monkeypatch.setattr(layout, "__file__", str(changed))
    module._code.cache_clear()
    try:
        assert numbers(once(Counted(fid=2.0), ROWS)) == {"fid": 2.0}
    finally:
        module._code.cache_clear()


def test_a_damaged_file_is_made_anew(kept: Path) -> None:
    once(Counted(rows=ROWS), ROWS)
    (path,) = kept.iterdir()
    whole = path.read_bytes()
    for damaged in (whole[:-4], whole[:40] + bytes([whole[40] ^ 1]) + whole[41:], b"", whole + b"0"):
        path.write_bytes(damaged)
        np.testing.assert_array_equal(once(Counted(rows=ROWS), ROWS)["rows"], ROWS)
        assert path.read_bytes() == whole


def test_what_lies_under_another_name_is_not_taken(kept: Path) -> None:
    once(Counted(fid=1.0), ROWS)
    (path,) = kept.iterdir()
    once(Counted(fid=2.0), ROWS[::-1])
    (another,) = set(kept.iterdir()) - {path}
    another.write_bytes(path.read_bytes())
    assert numbers(once(Counted(fid=2.0), ROWS[::-1])) == {"fid": 2.0}


def test_what_was_not_used_for_long_is_forgotten(kept: Path) -> None:
    for seed in range(2):
        once(Counted(fid=1.0), seed)
    for path in kept.iterdir():
        os.utime(path, (0, 0))
    once(Counted(fid=1.0), 0)
    assert len(list(kept.iterdir())) == 2  # one has been used now, and nothing new was kept
    once(Counted(fid=1.0), 2)
    assert len(list(kept.iterdir())) == 2


def test_where_nothing_can_be_written_the_numbers_are_given(kept: Path) -> None:
    kept.write_text("a file where the folder should be")
    assert numbers(once(Counted(fid=1.0), ROWS)) == {"fid": 1.0}


def test_outside_of_a_dvc_repository_it_is_in_forgelines_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "here"))
    monkeypatch.setattr(paths, "dvc_cache", lambda: None)
    once(Counted(fid=1.0), ROWS)
    assert len(list((tmp_path / "here" / "kept").iterdir())) == 1
