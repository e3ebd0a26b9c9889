from __future__ import annotations

import hashlib
import json
import re
import resource
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import forgeline
from pipeline.delivery import find, open_store, publish, pull, verify
from pipeline.delivery.keeping import promote
from pipeline.delivery.manifest import to_json
from pipeline.delivery.pulling import Verified
from pipeline.delivery.selecting import Selection
from pipeline.delivery.stores import MAX_BYTES
from pipeline.errors import FailedError, ForgelineError, UserError
from pipeline.imageset import ImageSet
from pipeline.imageset.files import resumable_folder

on_a_folder = pytest.mark.parametrize("url", ["folder"], indirect=True)


@pytest.fixture
def version(url: str, images, description) -> str:
    """The set, published as digits."""
    documents = {"evaluation/metrics.json": b"{}\n"}
    return publish(open_store(url), "digits", images.root, description=description, documents=documents).version


def alter(url: str, version: str, path: str, change: Callable[[bytes], bytes]) -> None:
    """Change an object behind the manifest's back."""
    store, key = open_store(url), f"digits/v={version}/{path}"
    data = b"".join(store.chunks(key))
    store.delete(key)
    store.create(key, change(data))


def flipped(data: bytes) -> bytes:
    return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]


def test_what_is_pulled_is_what_was_published(url: str, version: str, images, tmp_path: Path) -> None:
    found = pull(f"{url}/digits", tmp_path / "digits")
    pulled = ImageSet.open(found)
    assert pulled.fingerprint == images.fingerprint
    assert pulled.table("train").equals(images.table("train"))
    assert (found / "evaluation" / "metrics.json").read_bytes() == b"{}\n"
    manifest = open_store(url).read(f"digits/v={version}/manifest.json")[0]
    assert (found / "manifest.json").read_bytes() == manifest


@on_a_folder
@pytest.mark.parametrize(
    ("words", "end"),
    [
        ([], "whole, every byte as its manifest says"),
        (["--min-confidence", "0.5"], "the images asked for, each as its manifest says"),
        (["--classes", "zero"], "the images asked for, each as its manifest says"),
        (["--format", "imagefolder"], "the images asked for, each as its manifest says"),
    ],
)
def test_it_is_said_what_was_pulled(url: str, version: str, tmp_path: Path, words: list[str], end: str) -> None:
    said = CliRunner().invoke(forgeline, ["pull", f"{url}/digits", str(tmp_path / "dest"), *words])
    assert said.stdout == f"{tmp_path / 'dest'}: {end}\n"


@on_a_folder
def test_how_far_a_pull_is_is_said_in_mb(
    url: str, version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    pull(f"{url}/digits", tmp_path / "dest")
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"pulling digits@{version}: 1 of 1 MB, [\d,]+ MB a second, 100 %", line)


@on_a_folder
def test_sha256sum_agrees(url: str, version: str, tmp_path: Path) -> None:
    found = pull(f"{url}/digits", tmp_path / "digits")
    said = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=found, capture_output=True, text=True, check=True)
    checked = {line.removesuffix(": OK") for line in said.stdout.splitlines()}
    files = {path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file()}
    assert checked == files - {"SHA256SUMS", "manifest.json"}


def test_a_version_can_be_asked_for(url: str, version: str, tmp_path: Path, make_images, description) -> None:
    other = make_images(tmp_path / "other", 7)
    publish(open_store(url), "digits", other.root, description=description, documents={})
    assert ImageSet.open(pull(f"{url}/digits", tmp_path / "a")).fingerprint == other.fingerprint
    assert ImageSet.open(pull(f"{url}/digits@{version}", tmp_path / "b")).fingerprint != other.fingerprint


@on_a_folder
def test_an_empty_folder_is_filled(url: str, version: str, tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    assert verify(str(pull(f"{url}/digits/", tmp_path / "digits"))).version == version


@on_a_folder
@pytest.mark.parametrize(("place", "said"), [("file", "is no folder"), ("full", "is not empty")])
def test_a_place_that_is_taken_is_left_alone(url: str, version: str, tmp_path: Path, place: str, said: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=f"{place}: {said}; needed a new or an empty folder"):
        pull(f"{url}/digits", tmp_path / place)
    assert sorted(tmp_path.rglob("*")) == before


@on_a_folder
def test_the_folder_one_stands_in_is_refused(
    url: str, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match="is the folder that this runs in"):
        pull(f"{url}/digits", Path())


@on_a_folder
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("{url}/digit", "has no release 'digit'; did you mean 'digits'?"),
        ("{url}/digits@0000", "has no version or channel '0000'"),
        ("{url}/digits@", "'' cannot be a version"),
        ("{url}/Digits", "'Digits' cannot be a release"),
        ("digits", "'digits' is not a release; needed URL/NAME"),
        ("s3://bucket", "'s3://bucket' is not a release; needed URL/NAME"),
    ],
)
def test_the_nearest_right_word_is_named(url: str, version: str, tmp_path: Path, words: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        pull(words.format(url=url), tmp_path / "dest")
    assert said in str(caught.value)
    assert not (tmp_path / "dest").exists()


@on_a_folder
def test_a_misspelt_version_is_told_the_nearest(url: str, version: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"did you mean '{version}'"):
        pull(f"{url}/digits@{version[:-1]}", tmp_path / "dest")


def test_an_empty_store_has_no_releases(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no releases"):
        pull(f"{url}/digits", tmp_path / "dest")


def test_a_wrong_byte_is_noticed_and_nothing_appears(url: str, version: str, images, tmp_path: Path) -> None:
    path = images.shards[-1].path
    alter(url, version, path, flipped)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(FailedError, match=f"{path}: has sha256"):
        pull(f"{url}/digits", tmp_path / "dest")
    assert set(tmp_path.rglob("*")) == before


@on_a_folder
@pytest.mark.parametrize("change", [lambda data: data + b"x", lambda data: data[:-1], lambda data: b""])
def test_a_wrong_size_is_noticed(url: str, version: str, tmp_path: Path, change) -> None:
    alter(url, version, "README.md", change)
    with pytest.raises(FailedError, match=r"README\.md: is not the .* bytes that manifest\.json says"):
        pull(f"{url}/digits", tmp_path / "dest")
    assert not (tmp_path / "dest").exists()


def test_a_missing_object_is_named(url: str, version: str, tmp_path: Path) -> None:
    open_store(url).delete(f"digits/v={version}/grid.png")
    with pytest.raises(FailedError, match=r"grid\.png: is missing"):
        pull(f"{url}/digits", tmp_path / "dest")


@on_a_folder
@pytest.mark.parametrize("path", ["../../escaped", "/tmp/escaped", "C:\\escaped"])
def test_a_hostile_manifest_writes_nothing(url: str, version: str, tmp_path: Path, path: str) -> None:
    def change(data: bytes) -> bytes:
        found = json.loads(data)
        found["files"].append({"path": path, "bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()})
        return to_json(found)

    alter(url, version, "manifest.json", change)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(FailedError, match="needed plain names inside the release"):
        pull(f"{url}/digits", tmp_path / "dest")
    assert set(tmp_path.rglob("*")) == before


@on_a_folder
def test_a_manifest_of_another_version_is_refused(url: str, version: str, tmp_path: Path) -> None:
    alter(url, version, "manifest.json", lambda data: data.replace(version.encode(), b"0123456789abcdef"))
    with pytest.raises(FailedError, match="is the manifest of digits@0123456789abcdef"):
        pull(f"{url}/digits", tmp_path / "dest")


@on_a_folder
def test_an_endless_manifest_is_not_read(url: str, version: str, tmp_path: Path) -> None:
    alter(url, version, "manifest.json", lambda data: data + b" " * MAX_BYTES)
    with pytest.raises(FailedError, match=r"manifest\.json: is larger than"):
        pull(f"{url}/digits", tmp_path / "dest")


@on_a_folder
def test_promised_terabytes_are_refused_before_the_first(url: str, version: str, tmp_path: Path) -> None:
    def change(data: bytes) -> bytes:
        found = json.loads(data)
        found["files"][0]["bytes"] = 1 << 60
        return to_json(found)

    alter(url, version, "manifest.json", change)
    with pytest.raises(FailedError, match=r"bytes free; needed 1,152,921,"):
        pull(f"{url}/digits", tmp_path / "dest")


def test_a_connection_that_breaks_is_begun_again(proxy, s3_url: str, images, description, tmp_path: Path) -> None:
    publish(open_store(s3_url), "digits", images.root, description=description, documents={})
    broken: set[str] = set()

    def fault(number: int, method: str, path: str, headers: dict[str, str]) -> str | None:
        if not path.endswith((".parquet", ".md")) or path in broken:
            return None
        broken.add(path)
        return "cut"

    proxy.fault = fault
    verify(str(pull(f"{s3_url}/digits", tmp_path / "digits")))
    assert len(broken) == 4


def test_a_connection_that_always_breaks_ends_in_a_sentence(
    proxy, s3_url: str, images, description, tmp_path: Path
) -> None:
    publish(open_store(s3_url), "digits", images.root, description=description, documents={})
    proxy.fault = lambda number, method, path, headers: "cut" if path.endswith(".parquet") else None
    with pytest.raises(FailedError, match="did not answer"):
        pull(f"{s3_url}/digits", tmp_path / "digits")
    assert not (tmp_path / "digits").exists()


@on_a_folder
def test_a_pulled_folder_is_verified_without_the_store(url: str, version: str, tmp_path: Path) -> None:
    found = pull(f"{url}/digits", tmp_path / "digits")
    assert verify(str(found)).version == version


def test_a_release_is_verified_where_it_is(url: str, version: str, images) -> None:
    assert verify(f"{url}/digits@{version}").version == version
    alter(url, version, images.shards[0].path, flipped)
    with pytest.raises(FailedError, match=images.shards[0].path):
        verify(f"{url}/digits@{version}")


def test_verify_names_every_file_that_is_wrong(tmp_path: Path, images, description) -> None:
    url = str(tmp_path / "releases")
    publish(open_store(url), "digits", images.root, description=description, documents={})
    found = pull(f"{url}/digits", tmp_path / "digits")
    shard = found / images.shards[1].path
    shard.write_bytes(flipped(shard.read_bytes()))
    (found / "grid.png").unlink()
    (found / "README.md").write_text("short")
    (found / "more.txt").write_text("mine")
    with pytest.raises(FailedError) as caught:
        verify(str(found))
    assert all(
        words in str(caught.value)
        for words in (
            f"{shard.name} has another sha256",
            "grid.png is missing",
            "README.md has 5 bytes",
            "more.txt is not in manifest.json",
        )
    )


def test_a_manifest_over_other_images_is_noticed(tmp_path: Path, images, make_images, description) -> None:
    """Every sha256 is right, and still the manifest is of another set."""
    url = str(tmp_path / "releases")
    publish(open_store(url), "digits", images.root, description=description, documents={})
    found = pull(f"{url}/digits", tmp_path / "digits")
    content = json.loads((found / "manifest.json").read_bytes())
    content["fingerprint"] = "0" * 64
    (found / "manifest.json").write_bytes(to_json(content))
    with pytest.raises(FailedError, match="is of another set than the images beside it"):
        verify(str(found))


@on_a_folder
@pytest.mark.parametrize("layout", ["parquet", "imagefolder", "webdataset"])
def test_a_selection_is_verified_in_any_layout(url: str, version: str, images, tmp_path: Path, layout: str) -> None:
    dest = pull(f"{url}/digits", tmp_path / "dest", layout=layout, selection=Selection(classes=("one",)))
    assert verify(str(dest)) == Verified(name="digits", version=version, images=8, whole=False)
    subprocess.run(["sha256sum", "--strict", "--quiet", "-c", "SHA256SUMS"], cwd=dest, check=True)
    image = min(path for path in dest.rglob("*") if path.suffix in (".parquet", ".png", ".tar"))
    image.write_bytes(flipped(image.read_bytes()))
    (dest / "more.txt").write_text("mine")
    (dest / "RELEASE.md").unlink()
    with pytest.raises(FailedError) as caught:
        verify(str(dest))
    for said in (f"{image.name} has another sha256", "more.txt is not in SHA256SUMS", "RELEASE.md is missing"):
        assert said in str(caught.value)
    (dest / "SHA256SUMS").write_text("")
    with pytest.raises(FailedError, match="SHA256SUMS: does not say of which release it is"):
        verify(str(dest))


def test_what_was_never_pulled_cannot_be_verified(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no manifest\.json; needed a folder that was pulled"):
        verify(str(tmp_path))


@on_a_folder
def test_a_disk_that_is_too_small_is_said_first(
    url: str, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what an earlier pull fetched stays for when there is room."""
    fetched = tmp_path / f".dest.{version}.resumable" / "out" / "README.md"
    fetched.parent.mkdir(parents=True)
    fetched.write_bytes(b"---")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(100, 99, 1))
    with pytest.raises(FailedError, match="has 1 bytes free; needed"):
        pull(f"{url}/digits", tmp_path / "dest")
    assert not (tmp_path / "dest").exists()
    assert fetched.read_bytes() == b"---"


@pytest.mark.parametrize("words", [[], ["--format", "imagefolder"]])
def test_a_disk_that_fills_up_is_said_and_a_pull_goes_on_when_there_is_room(
    url: str, version: str, images, tmp_path: Path, words: list[str]
) -> None:
    """A limit on the size of files stands for the disk; shards are beyond it."""
    assert min(shard.bytes for shard in images.shards) > 4000
    command = [sys.executable, "-m", "pipeline", "pull", f"{url}/digits", str(tmp_path / "dest"), *words]
    limited = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (4000, 4000))
    done = subprocess.run(command, preexec_fn=limited, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(
        rf"forgeline: {tmp_path}/\S+: cannot be written \(File too large\)", done.stderr.splitlines()[-1]
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "dest").exists()
    subprocess.run(command, check=True)
    assert verify(str(tmp_path / "dest")).images == 24


PULL = "import sys; from pathlib import Path; from pipeline.delivery import pull; pull(sys.argv[1], Path(sys.argv[2]))"


def shards_asked_for(proxy) -> list[str]:
    return [path for method, path in proxy.log if method == "GET" and path.endswith(".parquet")]


def wait_for_all_but_the_last(work: Path, images: ImageSet) -> None:
    """Until the shards are there, as a pull fetches them into its folder `work`."""
    size = sum(shard.bytes for shard in images.shards[:-1])
    deadline = time.monotonic() + 60
    while sum(path.stat().st_size for path in work.glob("out/*.parquet")) < size and time.monotonic() < deadline:
        time.sleep(0.05)


def test_a_pull_that_is_killed_goes_on_where_it_was(proxy, s3_url: str, images, description, tmp_path: Path) -> None:
    """Killed while the last shard is under way, and run again: only what is missing is asked for."""
    publish(open_store(s3_url), "digits", images.root, description=description, documents={})
    hung, go_on = threading.Event(), threading.Event()

    def fault(number: int, method: str, path: str, headers: dict[str, str]) -> str | None:
        if not path.endswith(images.shards[-1].path):
            return None
        hung.set()
        go_on.wait(60)
        return "drop"

    proxy.fault = fault
    process = subprocess.Popen([sys.executable, "-c", PULL, f"{s3_url}/digits", str(tmp_path / "digits")])
    assert hung.wait(60)
    (work,) = tmp_path.glob(".digits.*.resumable")
    wait_for_all_but_the_last(work, images)
    process.kill()
    process.wait()
    go_on.set()
    assert not (tmp_path / "digits").exists()
    proxy.fault = lambda *_: None
    proxy.log.clear()
    verify(str(pull(f"{s3_url}/digits", tmp_path / "digits")))
    assert [path.rpartition("/")[2] for path in shards_asked_for(proxy)] == [images.shards[-1].path]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


SELECT = """
import sys
from pathlib import Path
from pipeline.delivery import pull
from pipeline.delivery.selecting import Selection
pull(sys.argv[1], Path(sys.argv[2]), layout="imagefolder", selection=Selection(min_confidence=0.5))
"""


def test_a_selection_in_another_layout_that_is_killed_goes_on_where_it_was(
    proxy, s3_url: str, images, description, tmp_path: Path
) -> None:
    publish(open_store(s3_url), "digits", images.root, description=description, documents={})
    hung, go_on, *others, last = threading.Event(), threading.Event(), *(shard.path for shard in images.shards)

    def fault(number: int, method: str, path: str, headers: dict[str, str]) -> str | None:
        if not path.endswith(last):
            return None
        hung.set()
        go_on.wait(60)
        return "drop"

    def fetched(path: Path, name: str) -> bool:
        """All but the magic word at the beginning, which nobody asks for."""
        return path.exists() and path.read_bytes()[4:] == (images.root / name).read_bytes()[4:]

    proxy.fault = fault
    process = subprocess.Popen([sys.executable, "-c", SELECT, f"{s3_url}/digits", str(tmp_path / "digits")])
    assert hung.wait(60)
    (work,) = tmp_path.glob(".digits.*.resumable")
    deadline = time.monotonic() + 60
    while not all(fetched(work / name, name) for name in others) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    go_on.set()
    assert not (tmp_path / "digits").exists()
    proxy.fault = lambda *_: None
    proxy.log.clear()
    selection = Selection(min_confidence=0.5)
    pull(f"{s3_url}/digits", tmp_path / "digits", layout="imagefolder", selection=selection)
    assert verify(str(tmp_path / "digits")).images == 24
    assert {path.rpartition("/")[2] for path in shards_asked_for(proxy)} == {last}


@pytest.mark.parametrize("layout", ["parquet", "imagefolder"])
def test_a_slow_server_only_takes_longer(proxy, s3_url: str, images, description, tmp_path: Path, layout: str) -> None:
    publish(open_store(s3_url), "digits", images.root, description=description, documents={})
    proxy.fault = lambda *_: "trickle"
    assert verify(str(pull(f"{s3_url}/digits", tmp_path / "digits", layout=layout))).images == 24


@pytest.mark.parametrize("layout", ["parquet", "webdataset"])
def test_a_bit_that_flips_in_any_answer(
    proxy, s3_url: str, tmp_path: Path, make_images, description, layout: str
) -> None:
    """Of the n-th answer, for every n: either nothing appears, or the images are right; the next pull is."""
    images = make_images(tmp_path / "small", count=9)
    publish(open_store(s3_url), "digits", images.root, description=description, documents={})
    proxy.log.clear()
    right = verify(str(pull(f"{s3_url}/digits", tmp_path / "right", layout=layout)))
    requests, refused = len(proxy.log), 0
    for number in range(1, requests + 1):
        dest = tmp_path / f"dest-{number}"
        proxy.log.clear()
        proxy.fault = lambda seen, *_, number=number: "garble" if seen == number else None
        try:
            pull(f"{s3_url}/digits", dest, layout=layout)
        except ForgelineError:
            refused += 1
            assert not dest.exists()
            proxy.fault = lambda *_: None
            pull(f"{s3_url}/digits", dest, layout=layout)
        assert verify(str(dest)) == right
    assert refused > 6


def test_half_a_file_is_completed(proxy, s3_url: str, images, description, tmp_path: Path) -> None:
    publish(open_store(s3_url), "digits", images.root, description=description, documents={})
    headers_of: list[str] = []

    def fault(number: int, method: str, path: str, headers: dict[str, str]) -> str | None:
        if not path.endswith(images.shards[0].path):
            return None
        headers_of.append(headers.get("range", ""))
        return "cut" if len(headers_of) == 1 else None

    proxy.fault = fault
    verify(str(pull(f"{s3_url}/digits", tmp_path / "digits")))
    assert headers_of == ["", f"bytes={images.shards[0].bytes // 2}-"]


@on_a_folder
def test_what_was_left_damaged_is_fetched_anew(url: str, version: str, images, tmp_path: Path) -> None:
    out = tmp_path / f".digits.{version}.resumable" / "out"
    out.mkdir(parents=True)
    (out / images.shards[0].path).write_bytes(b"x" * 100)
    (out / images.shards[1].path).write_bytes(b"x" * 1_000_000)
    (out / "stranger").write_bytes(b"x")
    found = pull(f"{url}/digits", tmp_path / "digits")
    assert verify(str(found)).version == version


@on_a_folder
@pytest.mark.parametrize("what", ["file", "folder", "all"])
@pytest.mark.parametrize("classes", [None, ("zero",)])
def test_a_link_in_what_was_left_is_not_written_through(
    url: str, version: str, images, tmp_path: Path, what: str, classes: tuple[str, ...] | None
) -> None:
    work, path = tmp_path / f".digits.{version}.resumable", images.shards[0].path
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / path).write_bytes(b"mine")
    link = {"file": work / "out" / path, "folder": work / "out", "all": work}[what]
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(elsewhere / path if what == "file" else elsewhere)
    with pytest.raises(UserError, match=f"{link.name}: is a link; needed to be removed"):
        pull(f"{url}/digits", tmp_path / "digits", selection=Selection(classes=classes))
    assert (elsewhere / path).read_bytes() == b"mine"
    assert not (tmp_path / "digits").exists()


@on_a_folder
def test_two_pulls_into_one_place_are_not_mixed(url: str, version: str, tmp_path: Path) -> None:
    with (
        resumable_folder(tmp_path / "digits", version),
        pytest.raises(UserError, match="another process works in it"),
    ):
        pull(f"{url}/digits", tmp_path / "digits")


@on_a_folder
def test_what_another_version_left_is_removed(url: str, version: str, tmp_path: Path) -> None:
    (tmp_path / ".digits.0123456789abcdef.resumable").mkdir()
    pull(f"{url}/digits", tmp_path / "digits")
    assert not list(tmp_path.glob(".digits.*"))


def test_a_channel_can_be_asked_for(url: str, version: str, tmp_path: Path) -> None:
    promote(f"{url}/digits", channel="stable", why="")
    assert verify(str(pull(f"{url}/digits@stable", tmp_path / "digits"))).version == version


@pytest.mark.parametrize("fault", [500, 503, 429, "drop", 403, 400])
def test_a_server_that_is_ill_for_a_while_costs_only_time(
    proxy, s3_url: str, images, description, tmp_path: Path, fault
) -> None:
    """It fails for good at the last shard, or credentials expire there: a sentence; the next pull fetches the rest."""
    publish(open_store(s3_url), "digits", images.root, description=description, documents={})
    last = images.shards[-1].path
    work = tmp_path / f".digits.{find(f'{s3_url}/digits').manifest.version}.resumable"

    def fail(number: int, method: str, path: str, headers: dict[str, str]) -> str | int | None:
        if not path.endswith(last):
            return None
        wait_for_all_but_the_last(work, images)
        return fault

    proxy.fault = fail
    with pytest.raises(FailedError):
        pull(f"{s3_url}/digits", tmp_path / "digits")
    assert not (tmp_path / "digits").exists()
    proxy.fault = lambda *_: None
    proxy.log.clear()
    verify(str(pull(f"{s3_url}/digits", tmp_path / "digits")))
    assert [path.rpartition("/")[2] for path in shards_asked_for(proxy)] == [last]


@pytest.mark.parametrize("fault", ["drop", "cut", 403, 503])
def test_a_fault_at_every_request_of_a_pull(
    proxy, s3_url: str, tmp_path: Path, make_images, description, fault
) -> None:
    """From the n-th request on everything fails, for every n: nothing appears; then the pull is run again."""
    images = make_images(tmp_path / "small", count=9)
    publish(open_store(s3_url), "digits", images.root, description=description, documents={})
    failing, number = True, 0
    while failing:
        number += 1
        dest = tmp_path / f"dest-{number}"
        proxy.log.clear()
        proxy.fault = lambda seen, *_, number=number: fault if seen >= number else None
        try:
            pull(f"{s3_url}/digits", dest)
            failing = False
        except FailedError:
            pass
        proxy.fault = lambda *_: None
        if failing:
            assert not dest.exists()
            pull(f"{s3_url}/digits", dest)
        verify(str(dest))
    assert number > 8
