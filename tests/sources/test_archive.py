from __future__ import annotations

import io
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.sources.archive import open_archive


def zip_of(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), f"in {name}")
    return path


def tar_of(path: Path, names: list[str], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name in names:
            content = f"in {name}".encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def zip_with(path: Path, name: str, kind: int) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = (kind | 0o644) << 16
        archive.writestr(info, "/etc/passwd")
    return path


def tar_with(path: Path, name: str, kind: bytes) -> Path:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    return path


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.zip", zip_of),
        ("a.ZIP", zip_of),
        ("a.tar", tar_of),
        ("a.tar.gz", lambda path, names: tar_of(path, names, "w:gz")),
        ("a.tar.xz", lambda path, names: tar_of(path, names, "w:xz")),
    ],
)
def test_files_are_read_in_any_order(tmp_path: Path, name: str, make: Callable[[Path, list[str]], Path]) -> None:
    file = make(tmp_path / name, ["cat/1.png", "./dog/2.png"])
    with open_archive(file, name) as entries:
        assert [entry.path for entry in entries] == ["cat/1.png", "dog/2.png"]
        assert [entry.read() for entry in reversed(entries)] == [b"in ./dog/2.png", b"in cat/1.png"]


OUTSIDE = ["../escape", "cat/../../escape", "/etc/escape", "C:\\escape", "..\\escape", "\\\\host\\escape"]


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize("make", [zip_of, tar_of])
def test_an_entry_outside_is_refused_by_name(
    tmp_path: Path, path: str, make: Callable[[Path, list[str]], Path]
) -> None:
    file = make(tmp_path / ("a.zip" if make is zip_of else "a.tar"), ["cat/1.png", path])
    with pytest.raises(UserError) as error, open_archive(file, file.name):
        pass
    assert str(error.value).startswith(f"{file.name}: its entry '{path}' lies outside of it; needed")
    assert [found.name for found in tmp_path.rglob("*")] == [file.name]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_link_or_device_in_a_tar_is_refused_by_name(tmp_path: Path, kind: bytes) -> None:
    file = tar_with(tmp_path / "a.tar", "cat/odd", kind)
    with pytest.raises(UserError, match=r"^a\.tar: its entry 'cat/odd' is a link"), open_archive(file, "a.tar"):
        pass


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_a_link_or_device_in_a_zip_is_refused_by_name(tmp_path: Path, kind: int) -> None:
    file = zip_with(tmp_path / "a.zip", "cat/odd", kind)
    with pytest.raises(UserError, match=r"^a\.zip: its entry 'cat/odd' is a link"), open_archive(file, "a.zip"):
        pass


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b\x08\x00broken"])
def test_what_is_no_archive_is_said_in_one_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    sentence = r"^a[.\w]+: cannot be read as the archive that its name promises \([^\n]+\)$"
    with pytest.raises(UserError, match=sentence), open_archive(tmp_path / name, name):
        pass


def test_a_name_that_is_not_the_utf8_it_says_is_refused(tmp_path: Path) -> None:
    file = zip_of(tmp_path / "a.zip", ["cat/é.png"])
    file.write_bytes(file.read_bytes().replace("é".encode(), b"\xff\xff"))
    with pytest.raises(UserError, match=r"^a\.zip: cannot be read as the archive"), open_archive(file, "a.zip"):
        pass


@given(st.integers(0, 400), st.binary(min_size=1, max_size=4))
def test_a_damaged_zip_gives_entries_or_a_sentence(at: int, junk: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = zip_of(Path(folder, "a.zip"), ["cat/1", "dog/é"])
        content = file.read_bytes()
        file.write_bytes(content[:at] + junk + content[at + len(junk) :])
        with suppress(UserError), open_archive(file, "a.zip") as entries:
            for entry in entries:
                with suppress(ValueError):
                    entry.read()


@pytest.mark.parametrize("cut", [1, 100, 512, 700, 1024])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_that_was_cut_off_is_refused(tmp_path: Path, mode: str, cut: int) -> None:
    file = tar_of(tmp_path / "a.tar", [f"cat/{index}" for index in range(500)], mode)
    file.write_bytes(file.read_bytes()[: 2048 + cut])
    with pytest.raises(UserError, match=r"^a\.tar: cannot be read"), open_archive(file, "a.tar"):
        pass


def test_a_damaged_entry_of_a_zip_spoils_no_other(tmp_path: Path) -> None:
    file = zip_of(tmp_path / "a.zip", ["cat/1", "cat/2"])
    content = bytearray(file.read_bytes())
    content[30 + len("cat/1")] ^= 0xFF  # the first byte of the first entry's data
    file.write_bytes(bytes(content))
    with open_archive(file, "a.zip") as (first, second):
        with pytest.raises(ValueError, match=r"^is damaged in its archive \("):
            first.read()
        assert second.read() == b"in cat/2"


def test_an_entry_that_is_larger_than_it_says_is_cut_at_that(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(1 << 24))
    content = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(content.replace((1 << 24).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with open_archive(tmp_path / "a.zip", "a.zip") as (bomb,):
        assert bomb.size == 10
        with pytest.raises(ValueError, match="Bad CRC-32"):
            bomb.read()
