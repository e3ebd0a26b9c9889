from __future__ import annotations

import json
from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.delivery.manifest import File, Manifest
from pipeline.errors import FailedError

SHA256 = "ab" * 32


def content(**changes: object) -> dict[str, object]:
    found: dict[str, object] = {
        "schema_version": 1,
        "name": "digits",
        "version": "0123456789abcdef",
        "created": "2026-11-01T00:00:00+00:00",
        "title": "Digits",
        "licence": "MIT",
        "verdict": "It helps.",
        "synthetic": True,
        "classes": ["zero", "one"],
        "images": 2,
        "fingerprint": SHA256,
        "files": [{"path": "train.parquet", "bytes": 3, "sha256": SHA256}],
        "lineage": {"seed": 1},
    }
    return found | changes


def parse(found: object) -> Manifest:
    return Manifest.parse(json.dumps(found).encode(), "manifest.json")


def test_what_is_written_is_read() -> None:
    manifest = parse(content())
    assert Manifest.parse(manifest.to_json(), "manifest.json") == manifest
    assert manifest.total_bytes == 3


HOSTILE_PATHS = [
    *("../x", "a/../x", "a/..", "..", ".", "", "/etc/passwd", "//host/share", "a//b", "a/", "/", "./a"),
    *("C:\\x", "C:x", "c:/x", "a\\b", "\\\\host\\x", "a:b", "a\0b", "a\nb", "a b", "a*", "~", "-x", ".hidden", "x."),
    *("con", "CON", "nul.txt", "a/Aux.parquet", "lpt1", "com9.json", "ä", "a" * 200, "/".join("a" * 9)),
    *("manifest.json", "Manifest.JSON", "manifest.json/x", "\ud800"),
]


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_a_hostile_path_is_refused(path: str) -> None:
    with pytest.raises(FailedError, match=r"manifest\.json: files has"):
        parse(content(files=[{"path": path, "bytes": 1, "sha256": SHA256}]))


@pytest.mark.parametrize(
    "paths", [("a", "a"), ("a", "A"), ("x/Y", "X/y"), ("a", "a/b"), ("a/b/c", "A/b"), ("b/c", "b")]
)
def test_paths_that_collide_are_refused(paths: tuple[str, str]) -> None:
    with pytest.raises(FailedError, match="files has a path twice"):
        parse(content(files=[{"path": path, "bytes": 1, "sha256": SHA256} for path in paths]))


@pytest.mark.parametrize(
    "changes",
    [
        {"schema_version": 2},
        {"schema_version": True},
        {"schema_version": None},
        {"name": "../x"},
        {"version": "a/b"},
        {"created": "yesterday"},
        {"created": "2026-11-01T00:00:00"},
        {"images": "2"},
        {"images": True},
        {"classes": [1]},
        {"files": {}},
        {"files": ["train.parquet"]},
        {"files": [{"path": "a", "bytes": -1, "sha256": SHA256}]},
        {"files": [{"path": "a", "bytes": 1.5, "sha256": SHA256}]},
        {"files": [{"path": "a", "bytes": 1 << 70, "sha256": SHA256}]},
        {"files": [{"path": "a", "bytes": 1, "sha256": "AB" * 32}]},
        {"files": [{"path": "a", "bytes": 1, "sha256": "ab"}]},
        {"files": [{"path": "a", "bytes": 1}]},
        {"lineage": []},
        {"title": None},
    ],
)
def test_a_wrong_value_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(FailedError, match=r"^manifest\.json: "):
        parse(content(**changes))


@pytest.mark.parametrize("key", sorted(content()))
def test_a_missing_value_is_refused(key: str) -> None:
    found = content()
    del found[key]
    with pytest.raises(FailedError, match=key):
        parse(found)


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xfe", b"null", b"[" * 100_000, b'{"a": NaN}', b"9" * 10_000, b'"\\ud800"']
)
def test_what_is_not_a_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(FailedError, match=r"^manifest\.json: "):
        Manifest.parse(data, "manifest.json")


@given(st.text(max_size=30) | st.lists(st.sampled_from(["..", ".", "a", "", "C:", "\\", "con", "x.y"])).map("/".join))
def test_any_path_that_is_accepted_stays_inside_everywhere(path: str) -> None:
    try:
        File(path=path, bytes=1, sha256=SHA256)
    except ValueError:
        return
    for kind in (PurePosixPath, PureWindowsPath):
        assert not kind(path).is_absolute()
        assert not kind(path).drive
        assert ".." not in kind(path).parts
    assert PurePosixPath(path).parts == PureWindowsPath(path).parts
    assert path.isascii()
    assert path.isprintable()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


def refusal(data: bytes) -> str:
    """The sentence that refuses `data`, empty where it is read."""
    try:
        Manifest.parse(data, "manifest.json")
    except FailedError as error:
        return str(error)
    return ""


@given(key=st.sampled_from(sorted(content())), value=JSON)
def test_any_value_anywhere_is_read_or_refused_in_a_sentence(key: str, value: object) -> None:
    said = refusal(json.dumps(content(**{key: value})).encode())
    assert len(said) < 500
    assert "\n" not in said


@given(cut=st.integers(0, 400), junk=st.binary(max_size=8))
def test_any_bytes_are_read_or_refused_in_a_sentence(cut: int, junk: bytes) -> None:
    data = json.dumps(content()).encode()
    assert "\n" not in refusal(data[:cut] + junk + data[cut + len(junk) :])
