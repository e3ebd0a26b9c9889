"""Releases from strangers: whatever a store says, a reader gets a set or one sentence, and nothing appears elsewhere.

`FORGELINE_FUZZ=100000 pytest -k test_any_ tests/delivery` tries so many cases of each kind.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.delivery import find, list_releases, open_release, open_store, publish, pull, rowgroups, verify
from pipeline.delivery.pointer import read_pointers
from pipeline.delivery.selecting import ALL, Selection
from pipeline.delivery.showing import history_table, put_card, put_table, releases_json, releases_table
from pipeline.errors import ForgelineError

fuzzed = settings(suppress_health_check=list(HealthCheck))
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # a folder without a disk, where there is one


class Files(dict[str, bytes]):
    """What is in a store, by key; too long to be shown."""

    def __repr__(self) -> str:
        return f"{len(self)} files"


@pytest.fixture
def release(tmp_path: Path, make_images, description, monkeypatch: pytest.MonkeyPatch) -> Files:
    """A store's files by their keys."""
    monkeypatch.setattr("pipeline.delivery.opening._has_torch", lambda: False)
    images, root = make_images(tmp_path / "set", count=9), tmp_path / "store"
    publish(open_store(str(root)), "digits", images.root, description=description, documents={})
    paths = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return Files({path.relative_to(root).as_posix(): path.read_bytes() for path in paths})


def in_version(files: Files, name: str) -> str:
    return next(key for key in files if key.endswith(f"/{name}"))


def vouch(files: Files) -> None:
    """Make the manifest say of the files what they are, as one would who owns the store."""
    key = in_version(files, "manifest.json")
    manifest = json.loads(files[key])
    for file in manifest["files"]:
        data = files[key.replace("manifest.json", file["path"])]
        file |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    files[key] = json.dumps(manifest).encode()


class Terminal(io.StringIO):
    """Where more is made of what is printed than in a pipe."""

    def isatty(self) -> bool:
        return True


def said(action: Callable[[], object]) -> str | None:
    """The one sentence that refuses, None where it went well; everything else that is raised is a failure."""
    try:
        action()
    except ForgelineError as error:
        sentence = str(error)
    else:
        return None
    assert "\n" not in sentence
    return sentence


def read_all(url: str, dest: Path, layout: str, selection: Selection) -> list[str]:
    """Does what a reader can do; the sentences that refused."""

    def show() -> None:
        with redirect_stdout(Terminal()):
            put_card(find(url))
            put_table(history_table(read_pointers(open_store(str(dest.parent)), "digits")))

    def table() -> None:
        releases = list_releases(open_store(url.rpartition("/")[0]))
        with redirect_stdout(Terminal()):
            put_table(releases_table(releases))
        releases_json(releases)

    refusals = [said(show), said(table), said(lambda: list(open_release(url).stream(seed=0)))]
    refusals.append(said(lambda: pull(url, dest, layout=layout, selection=selection)))
    assert dest.exists() == (refusals[-1] is None)
    if dest.exists():
        refusals.append(said(lambda: verify(str(dest))))
    return [each for each in refusals if each]


def try_release(files: Files, layout: str = "parquet", selection: Selection = ALL) -> list[str]:
    """The sentences that a reader of such a store sees. Nothing is written but the destination."""
    with TemporaryDirectory(dir=MEMORY) as folder:
        root = Path(folder)
        for key, data in files.items():
            path = root / "store" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        (root / "here").mkdir()
        found = read_all(f"{root}/store/digits", root / "here" / "dest", layout, selection)
        assert {path.name for path in (root / "here").iterdir()} <= {"dest"}
        assert {path.name for path in root.iterdir()} == {"store", "here"}
        stored = {path.relative_to(root / "store").as_posix() for path in (root / "store").rglob("*") if path.is_file()}
        assert stored == set(files)
    return found


LAYOUTS = st.sampled_from(["parquet", "imagefolder", "webdataset"])
SELECTIONS = st.builds(
    Selection,
    classes=st.none() | st.sampled_from([("one",), ("zero", "two"), ("",)]),
    per_class=st.none() | st.integers(1, 4),
    min_confidence=st.none() | st.sampled_from([0.0, 0.505, 2.0]),
)
NASTY = st.sampled_from(
    [
        *(
            "../../../outside",
            "/outside",
            "C:\\outside",
            "..",
            ".",
            "",
            "con",
            "a/b",
            "a\0b",
            "a\nb",
            "\x1b[2J",
            "[red]",
        ),
        *("ä", "\ud800", "\u202e", "x" * 5000, "train-00000-of-00001.parquet", "manifest.json", "v=0", "1e999"),
    ]
)
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 300)
    | st.sampled_from([1 << 31, 1 << 40, 1 << 63, -(1 << 70), 10**300])
    | st.floats()
    | NASTY,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NASTY, inner, max_size=3),
    max_leaves=6,
)


def test_the_release_itself_is_read(release: Files) -> None:
    assert try_release(release) == []
    assert try_release(release, "webdataset", Selection(classes=("one",), min_confidence=0.5)) == []


@fuzzed
@given(data=st.data(), vouched=st.booleans(), layout=LAYOUTS, selection=SELECTIONS)
def test_any_bytes_in_any_file(release: Files, data, vouched: bool, layout: str, selection: Selection) -> None:
    files = Files(release)
    key = data.draw(st.sampled_from(sorted(files)))
    start = data.draw(st.integers(0, len(files[key])))
    stop = data.draw(st.integers(start, min(start + 40, len(files[key]))) | st.just(len(files[key])))
    files[key] = files[key][:start] + data.draw(st.binary(max_size=40)) + files[key][stop:]
    if vouched and not key.endswith(("manifest.json", "latest.json")):
        vouch(files)
    try_release(files, layout, selection)


@fuzzed
@given(data=st.data(), layout=LAYOUTS, selection=SELECTIONS)
def test_any_value_anywhere_in_any_json(release: Files, data, layout: str, selection: Selection) -> None:
    files = Files(release)
    key = data.draw(st.sampled_from(sorted(key for key in files if key.endswith(".json"))))
    content = json.loads(files[key])
    for _ in range(data.draw(st.integers(1, 3))):
        place: Any = content
        while place:
            keys = sorted(place) if isinstance(place, dict) else range(len(place))
            name = data.draw(st.sampled_from(keys))
            if not isinstance(place[name], (dict, list)) or not place[name] or data.draw(st.integers(0, 3)) == 0:
                break
            place = place[name]
        else:
            break
        match data.draw(st.sampled_from(["replace", "replace", "remove", "repeat", "add"])):
            case "replace":
                place[name] = data.draw(JUNK)
            case "remove":
                del place[name]
            case "repeat" if isinstance(place, list):
                place.append(place[name])
            case _ if isinstance(place, dict):
                place[data.draw(NASTY)] = data.draw(JUNK)
    files[key] = in_lines(content) if key.endswith("rowgroups.json") else json.dumps(content).encode()
    if not key.endswith(("manifest.json", "latest.json")):
        vouch(files)
    try_release(files, layout, selection)


def in_lines(content: Any) -> bytes:
    """The JSON of a changed rowgroups.json, a row group a line, where it still has that form."""
    try:
        shards = []
        for shard in content["shards"]:
            inner = ",\n".join(json.dumps(group) for group in shard["groups"])
            shards.append(json.dumps({**shard, "groups": []})[:-2] + f"\n{inner}\n]}}")
        head = json.dumps({**content, "shards": []})[:-2]
    except (KeyError, TypeError):
        return json.dumps(content).encode()
    return (head + "\n" + ",\n".join(shards) + "\n]}\n").encode()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def picture(width: int, height: int, pixels: bytes, *more: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = b"".join([header, *more, chunk(b"IDAT", pixels), chunk(b"IEND", b"")])
    return b"\x89PNG\r\n\x1a\n" + body


def pictures(zeros: int) -> list[bytes]:
    """The first is right; some are bombs of so many zeros."""
    right, bomb = zlib.compress(bytes(72)), zlib.compress(bytes(zeros), 9)
    return [
        picture(8, 8, right),
        picture(8, 8, zlib.compress(bytes(71))),
        picture(8, 8, bomb),
        picture(1 << 16, 1 << 16, bomb),
        picture(8, 8, right, chunk(b"zTXt", b"a\0\0" + bomb)),
        picture(8, 8, right, chunk(b"iCCP", b"a\0\0" + bomb)),
        picture(8, 8, right, chunk(b"IHDR", struct.pack(">IIBBBBB", 1 << 15, 1 << 15, 8, 0, 0, 0, 0))),
        picture(8, 8, right)[:40],
        b"",
        b"GIF89a",
    ]


PICTURES = pictures(1 << 18)


@st.composite
def tables(draw: Callable[[Any], Any]) -> pa.Table:
    """Three rows that may or may not be those of an ImageSet."""

    def text() -> pa.Array:
        words = st.sampled_from([b"a.png", b"../../a", b"/a", b"\xff\xfe", b"\0", b"", b"x" * 1000])
        return pa.array([draw(words) for _ in range(3)]).view(pa.string())

    def other() -> pa.Array:
        numbers = pa.array([draw(st.floats()) for _ in range(3)])
        odd = [pa.array([None, 1, 2]), pa.array([[1], [], None]), pa.array([0, 1, 2], pa.timestamp("s")), pa.nulls(3)]
        return draw(st.sampled_from([numbers, text(), pa.array([1, 2, 3]), *odd, pa.array([b"\xff"] * 3)]))

    images = pa.array([draw(st.sampled_from([*PICTURES[:1] * 5, *PICTURES, None])) for _ in range(3)], pa.binary())
    holes = pa.array([draw(st.integers(0, 9)) == 0 for _ in range(3)])
    image = draw(
        st.sampled_from(
            [
                *[pa.StructArray.from_arrays([images, text()], ["bytes", "path"])] * 5,
                pa.StructArray.from_arrays([images, text()], ["bytes", "path"], mask=holes),
                pa.StructArray.from_arrays([images], ["bytes"]),
                images,
                text(),
            ]
        )
    )
    ones = pa.array([1, 1, 1])
    labels = draw(st.sampled_from([*[ones] * 8, ones.cast(pa.int8()), pa.array([1, None, 1]), pa.array([0, 1, 2])]))
    columns = [("image", image), ("label", labels)]
    columns += [(draw(st.sampled_from(["confidence", "note", "image", "split", "../x"])), other()) for _ in range(2)]
    columns = columns[draw(st.sampled_from([0, 0, 0, 0, 1])) :]
    return pa.Table.from_arrays([column for _, column in columns], [name for name, _ in columns])


def with_shard(files: Files, table: pa.Table, **settings: Any) -> Files | None:
    """The release with `table` for its only shard, and everything that describes it made to fit, where it can be."""
    files = Files({key: data for key, data in files.items() if not key.endswith(".parquet")})
    name = "train-00000-of-00001.parquet"
    key = in_version(files, "imageset.json").replace("imageset.json", name)
    with TemporaryDirectory(dir=MEMORY) as folder:
        pq.write_table(table, f"{folder}/{name}", **settings)
        files[key] = data = Path(folder, name).read_bytes()
        shard = {
            "path": name,
            "split": "train",
            "rows": table.num_rows,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        content = json.loads(files[in_version(files, "imageset.json")])
        content |= {"shards": [shard], "counts": {"train": [0, table.num_rows, 0]}}
        files[in_version(files, "imageset.json")] = json.dumps(content).encode()
        try:
            groups, _ = rowgroups.describe_shard(Path(folder, name))
        except (KeyError, ValueError, AttributeError, TypeError):  # our own tool makes none for such a table
            return None
        files[in_version(files, "rowgroups.json")] = rowgroups.describe([groups])
    manifest = json.loads(files[in_version(files, "manifest.json")])
    manifest["files"] = [file for file in manifest["files"] if not file["path"].endswith(".parquet")] + [shard]
    manifest["files"][-1] = {key: shard[key] for key in ("path", "bytes", "sha256")}
    files[in_version(files, "manifest.json")] = json.dumps(manifest).encode()
    vouch(files)
    return files


@fuzzed
@given(table=tables(), layout=LAYOUTS, selection=SELECTIONS)
def test_any_rows_in_a_shard(release: Files, table: pa.Table, layout: str, selection: Selection) -> None:
    files = with_shard(release, table)
    if files is not None:
        try_release(files, layout, selection)


def images_of(pictures: list[bytes], paths: list[str]) -> pa.Table:
    image = pa.StructArray.from_arrays([pa.array(pictures), pa.array(paths)], ["bytes", "path"])
    return pa.table({"image": image, "label": [1] * len(pictures)})


@pytest.mark.parametrize("layout", ["parquet", "imagefolder", "webdataset"])
def test_a_column_that_unpacks_to_a_thousandfold_is_refused(release: Files, layout: str) -> None:
    files = with_shard(
        release, images_of(PICTURES[:1] * 3, ["x" * (30 << 20)] * 3), compression="zstd", use_dictionary=False
    )
    assert files is not None
    assert all(len(data) < 100_000 for data in files.values())
    refusals = try_release(files, layout, Selection(classes=("one",)))
    assert any("unpacks from" in each for each in refusals)


@pytest.mark.parametrize("column", ["bytes", "path", "note"])
def test_a_long_name_that_is_stored_once_takes_no_memory(release: Files, tmp_path: Path, column: str) -> None:
    """20 rows of one value of 15 MB, which the footer calls 15 MB."""
    long = "x" * (15 << 20)
    table = images_of(
        [long.encode() if column == "bytes" else PICTURES[0]] * 20, [long if column == "path" else "a"] * 20
    )
    table = table.append_column("note", [[long if column == "note" else "none"] * 20])
    files = with_shard(release, table, compression="zstd")
    assert files is not None
    assert all(len(data) < 10_000 for data in files.values())
    megabytes, sentence = taken(files, tmp_path)
    assert "unpacks from" in sentence
    assert not (tmp_path / "dest").exists()
    assert megabytes < 80


READ = """
import re, sys
from pathlib import Path
from pipeline.delivery import pull
from pipeline.delivery.selecting import Selection
from pipeline.errors import FailedError
import pipeline.delivery.formats, pipeline.imageset.write

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

before = peak()
try:
    pull(sys.argv[1], Path(sys.argv[2]), layout="imagefolder", selection=Selection(classes=("one",)))
except FailedError as error:
    print(error, file=sys.stderr)
print(peak() - before)
"""


def taken(files: Files, folder: Path) -> tuple[int, str]:
    """The megabytes that pulling from such a store takes in a process of its own, and what was said."""
    for key, data in files.items():
        (folder / "bomb" / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / "bomb" / key).write_bytes(data)
    words = [sys.executable, "-c", READ, f"{folder}/bomb/digits", str(folder / "dest")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return int(done.stdout), done.stderr


def test_what_the_release_itself_says_in_lines_is_read(release: Files) -> None:
    key = in_version(release, "rowgroups.json")
    assert in_lines(json.loads(release[key])) == release[key]


@pytest.mark.parametrize("item", [b"[],", b"1e9,", b"[\n", b"{}\n"])
def test_rowgroups_of_junk_take_no_memory(release: Files, tmp_path: Path, item: bytes) -> None:
    """64 MB of it, among the row groups of the first shard."""
    key = in_version(release, "rowgroups.json")
    start = release[key].index(b'"groups": [\n') + len(b'"groups": [\n')
    release[key] = release[key][:start] + item * ((60 << 20) // len(item)) + release[key][start:]
    vouch(release)
    megabytes, sentence = taken(release, tmp_path)
    assert "rowgroups.json" in sentence
    assert megabytes < 150


def test_a_row_group_with_more_bytes_than_pixels_is_refused(release: Files, tmp_path: Path) -> None:
    """100 MB for three images of 64 pixels: nothing of it is fetched."""
    files = with_shard(release, images_of([b"\0" * (33 << 20)] * 3, ["a"] * 3))
    assert files is not None
    megabytes, sentence = taken(files, tmp_path)
    assert "bytes for 3 images" in sentence
    assert megabytes < 50


@pytest.mark.parametrize("bomb", range(2, 7))
def test_a_bomb_in_a_picture_takes_no_memory(release: Files, tmp_path: Path, bomb: int) -> None:
    """Of 100 MB of zeros, or of 4 gigapixels."""
    files = with_shard(release, images_of([pictures(100 << 20)[bomb]] * 3, ["a"] * 3))
    assert files is not None
    megabytes, _ = taken(files, tmp_path)
    assert megabytes < 80
