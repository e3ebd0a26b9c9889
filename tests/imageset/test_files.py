from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.errors import FailedError
from pipeline.imageset.files import atomic_file, atomic_folder, sha256_file, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_sha256_file_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"forge" * 100_000)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(b"forge" * 100_000).hexdigest()


def test_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_atomically(tmp_path / "new" / "file", b"old")
    write_atomically(tmp_path / "new" / "file", b"new")
    assert (tmp_path / "new" / "file").read_bytes() == b"new"
    assert names(tmp_path / "new") == ["file"]


def test_an_exception_leaves_the_old_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"old")
    with suppress(KeyboardInterrupt), atomic_file(tmp_path / "file") as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_folder_takes_the_place_of_the_old_one_whole(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "old").touch()
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "new").touch()
        assert names(tmp_path / "model") == ["old"]
    assert names(tmp_path / "model") == ["deep"]
    assert names(tmp_path) == ["model"]


def test_an_exception_leaves_the_old_folder(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "old").touch()
    with suppress(ZeroDivisionError), atomic_folder(tmp_path / "model") as folder:
        (folder / "new").touch()
        raise ZeroDivisionError
    assert names(tmp_path / "model") == ["old"]
    assert names(tmp_path) == ["model"]


def test_a_link_to_a_folder_is_replaced_and_what_it_names_is_kept(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").touch()
    (tmp_path / "model").symlink_to("elsewhere")
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "new").touch()
    assert names(tmp_path / "model") == ["new"]
    assert names(tmp_path / "elsewhere") == ["kept"]
    assert names(tmp_path) == ["elsewhere", "model"]


@pytest.mark.parametrize("what", [Path.mkdir, Path.touch])
def test_a_folder_takes_the_place_of_whatever_was_there(tmp_path: Path, what: Callable[[Path], None]) -> None:
    what(tmp_path / "model")
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "new").touch()
    assert names(tmp_path / "model") == ["new"]
    assert names(tmp_path) == ["model"]


def test_a_file_does_not_take_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(FailedError, match=r"model: cannot be written \(Is a directory\)"):
        write_atomically(tmp_path / "model", b"new")
    assert names(tmp_path) == ["model"]


def test_what_the_caller_cannot_read_stays_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "model"):
        (tmp_path / "elsewhere").read_bytes()
    assert names(tmp_path) == []


def test_where_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(FailedError, match="file/inside: cannot be written"),
        atomic_folder(tmp_path / "file" / "inside"),
    ):
        pass


WRITER = """
import sys, time
from pathlib import Path
from pipeline.imageset.files import atomic_folder
with atomic_folder(Path(sys.argv[1])) as folder:
    (folder / "half").touch()
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("killed", [True, False])
def test_only_a_dead_writers_leftovers_are_removed(tmp_path: Path, killed: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path / "model"], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        try:
            assert writer.stdout.readline() == b"writing\n"
            if killed:
                writer.send_signal(signal.SIGKILL)
                writer.wait()
            (left,) = names(tmp_path)
            with atomic_folder(tmp_path / "model"):
                pass
            assert names(tmp_path) == (["model"] if killed else [left, "model"])
        finally:
            writer.kill()


def test_a_name_with_wildcards_takes_nobody_elses_leftovers(tmp_path: Path) -> None:
    other = tmp_path / ".abc.0123.partial"
    other.touch()
    write_atomically(tmp_path / "[a]*", b"")
    assert other.exists()


LIMITED = """
import resource, sys
from pathlib import Path
from pipeline.errors import FailedError
from pipeline.imageset.files import write_atomically
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomically(Path(sys.argv[1]), bytes(10_000))
except FailedError as error:
    print(error)
"""


def test_a_full_disk_names_what_was_asked_for_also_within_a_folder(tmp_path: Path) -> None:
    code = LIMITED.replace(
        "write_atomically(Path(sys.argv[1]), bytes(10_000))",
        """
    with atomic_folder(Path(sys.argv[1])) as folder, atomic_file(folder / "inner") as file:
        file.write(bytes(10_000))""",
    ).replace("import write_atomically", "import atomic_file, atomic_folder")
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "set"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'set' / 'inner'}: cannot be written ({os.strerror(27)})\n"
    assert names(tmp_path) == []


def test_a_file_that_does_not_fit_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", LIMITED, path], capture_output=True, text=True, check=True)
    assert done.stdout == f"{path}: cannot be written ({os.strerror(27)})\n"
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]
