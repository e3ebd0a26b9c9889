from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from threading import Barrier
from typing import Any
from urllib.parse import unquote

import boto3
import pytest

from pipeline.delivery import list_releases, open_store, publish, rowgroups, verify
from pipeline.delivery.stores import MAX_BYTES
from pipeline.errors import FailedError, UserError

DOCUMENTS = {"params.yaml": b"train: {}\n", "evaluation/metrics.json": b"{}\n"}


def pointer(store) -> dict:
    return json.loads(store.read("digits/latest.json")[0])


def contents(store, prefix: str = "digits/") -> dict[str, bytes]:
    return {key: b"".join(store.chunks(key)) for key in store.sizes(prefix)}


def test_everything_that_is_published_stands_in_the_manifest(url: str, images, description) -> None:
    store = open_store(url)
    published = publish(store, "digits", images.root, description=description, documents=DOCUMENTS)
    folder = f"digits/v={published.version}/"
    found = {key.removeprefix(folder): data for key, data in contents(store, folder).items()}
    manifest = json.loads(found.pop("manifest.json"))
    assert {file["path"]: (file["bytes"], file["sha256"]) for file in manifest["files"]} == {
        path: (len(data), hashlib.sha256(data).hexdigest()) for path, data in found.items()
    }
    assert found.keys() >= {*DOCUMENTS, "README.md", "croissant.json", "SHA256SUMS", "grid.png", "imageset.json"}
    assert manifest["lineage"] == dataclasses.asdict(description.lineage)
    assert (published.new, published.latest, published.caveat) == (True, True, None)
    assert pointer(store)["version"] == published.version


def test_the_same_set_is_not_published_again(url: str, images, make_description) -> None:
    store = open_store(url)
    first = publish(store, "digits", images.root, description=make_description(), documents=DOCUMENTS)
    before = contents(store)
    later = make_description(git_commit="f" * 40, dvc_lock="0" * 64, verdict="Another day.")
    second = publish(store, "digits", images.root, description=later, documents={})
    assert (second.version, second.new, second.latest) == (first.version, False, True)
    assert contents(store) == before


def test_the_end_of_a_publish_is_said_once(tmp_path: Path, images, description, capsys) -> None:
    publish(open_store(str(tmp_path / "releases")), "digits", images.root, description=description, documents=DOCUMENTS)
    said = capsys.readouterr().err.splitlines()
    assert [line.startswith("publishing digits@") for line in said if line.endswith(", 100 %")] == [True]


def test_nothing_is_sent_when_nothing_is_new(proxy, s3_url: str, images, description) -> None:
    publish(open_store(s3_url), "digits", images.root, description=description, documents={})
    proxy.log.clear()
    publish(open_store(s3_url), "digits", images.root, description=description, documents={})
    assert {method for method, _ in proxy.log} == {"GET"}


def test_what_was_just_sent_is_not_looked_for(proxy, s3_url: str, images, description) -> None:
    """Some servers hash every object anew to list it."""
    store = open_store(s3_url)
    version = publish(store, "digits", images.root, description=description, documents={}).version
    assert sum("list-type=2" in path for _, path in proxy.log) == 1  # to see what an earlier attempt left
    for path in ("manifest.json", "SHA256SUMS", "README.md"):
        store.delete(f"digits/v={version}/{path}")
    proxy.log.clear()
    publish(store, "digits", images.root, description=description, documents={})
    assert sum("list-type=2" in path for _, path in proxy.log) == 2  # for that may be collected at any moment
    verify(f"{s3_url}/digits")


@pytest.mark.parametrize("change", [{"model": "00" * 32}, {"params": {"train": {"images": 2000}}}, {"seed": 1}])
def test_model_params_and_images_make_the_version(tmp_path: Path, make_images, make_description, change) -> None:
    store, images = open_store(str(tmp_path / "releases")), make_images(tmp_path / "a", seed=change.pop("seed", 0))
    first = publish(store, "digits", make_images(tmp_path / "b").root, description=make_description(), documents={})
    second = publish(store, "digits", images.root, description=make_description(**change), documents={})
    assert first.version != second.version
    assert second.new


def test_an_older_version_does_not_become_the_latest_again(url: str, tmp_path: Path, make_images, description) -> None:
    store, sets = open_store(url), [make_images(tmp_path / str(seed), seed) for seed in range(2)]
    old, new = (publish(store, "digits", each.root, description=description, documents={}) for each in sets)
    again = publish(store, "digits", sets[0].root, description=description, documents={})
    assert (again.version, again.new, again.latest) == (old.version, False, False)
    assert [move["version"] for move in pointer(store)["history"]] == [new.version, old.version]


@pytest.mark.parametrize("name", ["", "Digits", "../digits", "a/b", ".digits", "-x", "a" * 101, "latest.json/"])
def test_a_bad_name_is_refused(tmp_path: Path, images, description, name: str) -> None:
    with pytest.raises(UserError, match="cannot be a release"):
        publish(open_store(str(tmp_path / "releases")), name, images.root, description=description, documents={})
    assert not (tmp_path / "releases").exists()


def test_what_no_reader_would_take_is_not_sent(url: str, images, make_description) -> None:
    store = open_store(url)
    large = make_description(params={"train": {"note": "x" * MAX_BYTES}})
    with pytest.raises(UserError, match=r"manifest\.json of its 9 files .* needed at most 4,194,304"):
        publish(store, "digits", images.root, description=large, documents={})
    assert not store.sizes("")


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:1000] + bytes([data[1000] ^ 1]) + data[1001:], "has sha256"),
        (lambda data: data[:-500], "cannot be read as Parquet"),
        (lambda data: data[:-400] + bytes(392) + data[-8:], "cannot be read as Parquet"),
    ],
    ids=["page", "cut", "footer"],
)
def test_a_damaged_set_is_not_published(
    tmp_path: Path, images, description, number: int, damage: Callable[[bytes], bytes], said: str
) -> None:
    shard = images.root / images.shards[number].path
    shard.write_bytes(damage(shard.read_bytes()))
    store = open_store(str(tmp_path / "releases"))
    with pytest.raises(FailedError, match=f"{shard.name}: {said}"):
        publish(store, "digits", images.root, description=description, documents={})
    assert list_releases(store) == []
    assert not any(key.endswith(shard.name) for key in store.sizes("digits/"))


def test_a_shard_that_changes_after_it_was_hashed_is_refused(
    proxy, s3_url: str, images, description, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(path: Path) -> tuple[str, str]:
        found = describe_shard(path)
        with path.open("r+b") as file:
            file.seek(200)
            file.write(b"changed")
        return found

    describe_shard = rowgroups.describe_shard
    monkeypatch.setattr("pipeline.delivery.rowgroups.describe_shard", change)
    store = open_store(s3_url)
    with pytest.raises(FailedError, match="PutObject failed with 400"):
        publish(store, "digits", images.root, description=description, documents={})
    assert not [key for key in store.sizes("digits/") if key.endswith((".parquet", "manifest.json"))]


def test_what_an_earlier_attempt_damaged_is_not_committed(url: str, tmp_path: Path, images, description) -> None:
    elsewhere = open_store(str(tmp_path / "elsewhere"))
    version = publish(elsewhere, "digits", images.root, description=description, documents={}).version
    store = open_store(url)
    store.create(f"digits/v={version}/{images.shards[0].path}", b"x" * images.shards[0].bytes)
    with pytest.raises(FailedError, match=f"{images.shards[0].path}: was left damaged"):
        publish(store, "digits", images.root, description=description, documents={})
    assert list_releases(store) == []


def test_a_card_that_an_earlier_attempt_left_serves(url: str, tmp_path: Path, images, description) -> None:
    elsewhere, store = open_store(str(tmp_path / "elsewhere")), open_store(url)
    version = publish(elsewhere, "digits", images.root, description=description, documents={}).version
    store.create(f"digits/v={version}/README.md", b"# Of the commit before\n")
    publish(store, "digits", images.root, description=description, documents={})
    assert store.read(f"digits/v={version}/README.md")[0] == b"# Of the commit before\n"
    verify(f"{url}/digits")


@pytest.mark.parametrize("content", [b"no list", b"\xff", b"%s  README.md\n" % (b"0" * 64)])
def test_a_list_of_what_is_not_there_is_not_committed(tmp_path: Path, images, description, content: bytes) -> None:
    elsewhere, store = open_store(str(tmp_path / "elsewhere")), open_store(str(tmp_path / "releases"))
    version = publish(elsewhere, "digits", images.root, description=description, documents={}).version
    store.create(f"digits/v={version}/SHA256SUMS", content)
    with pytest.raises(FailedError, match="SHA256SUMS: does not list what is there"):
        publish(store, "digits", images.root, description=description, documents={})
    assert list_releases(store) == []


def check_what_a_reader_sees(store) -> bool:
    """Whether there is a release; if there is, every byte of it must be right."""
    if store.read("digits/latest.json") is None:
        return False
    folder = f"digits/v={pointer(store)['version']}/"
    found = contents(store, folder)
    for file in json.loads(found[f"{folder}manifest.json"])["files"]:
        assert hashlib.sha256(found[folder + file["path"]]).hexdigest() == file["sha256"]
    return True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """An empty store behind the proxy, and the same one for a reader who does not go through it."""

    store: Any
    reader: Any

    def objects(self) -> dict[str, tuple[str, object]]:
        found = self.reader.client.list_objects_v2(Bucket=self.store.bucket, Prefix=self.store.prefix)
        return {
            each["Key"].removeprefix(self.store.prefix): (each["ETag"], each["LastModified"])
            for each in found.get("Contents", [])
        }


@pytest.fixture
def places(proxy, endpoint: str, s3_url: str) -> Callable[[int], Place]:
    """A place for each number."""
    server, one_store = boto3.session.Session().client("s3", endpoint_url=endpoint), open_store(s3_url)

    def make(number: int) -> Place:
        store = copy.copy(one_store)
        store.prefix, store.url = f"sets-{number}/", f"{s3_url}-{number}"
        reader = copy.copy(store)
        reader.client = server
        return Place(store=store, reader=reader)

    return make


def check_that_a_rerun_completes(proxy, place: Place, images, description) -> None:
    """A reader sees nothing or all; the publish run again sends only what is missing, and nothing there changes."""
    proxy.fault = lambda *_: None
    before = place.objects()
    assert check_what_a_reader_sees(place.reader) or "digits/latest.json" not in before
    proxy.log.clear()
    publish(place.store, "digits", images.root, description=description, documents={})
    sent = [unquote(path).split(f"/{place.store.prefix}")[1] for method, path in proxy.log if method == "PUT"]
    probes = ("SHA256SUMS", "imageset.json")  # sent again, and refused
    assert not {key for key in sent if not key.endswith(probes)} & before.keys()
    assert place.objects().items() >= before.items()
    assert check_what_a_reader_sees(place.reader)


@pytest.mark.parametrize("lasting", [True, False])
@pytest.mark.parametrize("fault", ["drop", "lose", 403])
def test_a_fault_at_every_request(
    proxy, places: Callable[[int], Place], tmp_path: Path, make_images, description, fault, lasting: bool
) -> None:
    """At the n-th request, or from it on, there is a fault, for every n; then the publish is run again.

    A reader looks before each request of the publishes that meet one fault.
    """
    images = make_images(tmp_path / "small", count=9)
    number, met, readers = 0, [0], ThreadPoolExecutor(8)
    while met:
        number += 1
        place = places(number)
        met.clear()
        looks = list[Future[bool]]()

        def fail(
            seen: int, *_: object, number: int = number, reader: Any = place.reader, looks: list[Future[bool]] = looks
        ) -> str | int | None:
            if not lasting:
                looks.append(readers.submit(check_what_a_reader_sees, reader))
                wait(looks[-1:])
            if seen < number or (met and not lasting):
                return None
            met.append(seen)
            return fault

        proxy.log.clear()
        proxy.fault = fail
        with suppress(FailedError):
            publish(place.store, "digits", images.root, description=description, documents={})
        for look in looks:
            look.result()
        check_that_a_rerun_completes(proxy, place, images, description)
    readers.shutdown()
    assert number > 15


PUBLISHER = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from conftest import describe
from pipeline.delivery import open_store, publish
store = open_store(sys.argv[1])
for line in sys.stdin:
    store.prefix, store.url = line.split()
    child = os.fork()
    if not child:
        publish(store, "digits", Path(sys.argv[2]), description=describe(), documents={})
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.parametrize("fault", ["drop", "lose"])
def test_a_publisher_that_is_killed_at_every_request(
    proxy, s3_url: str, places: Callable[[int], Place], tmp_path: Path, make_images, description, fault: str
) -> None:
    """By SIGKILL at the n-th request, which is lost or still arrives, for every n; then the publish is run again."""
    images = make_images(tmp_path / "small", count=9)
    words = [sys.executable, "-c", PUBLISHER, s3_url, str(images.root), *map(str, Path(__file__).parents[:2])]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        number, status = 0, -signal.SIGKILL
        while status == -signal.SIGKILL:
            number += 1
            place, child = places(number), Future[int]()

            def kill(seen: int, *_: object, number: int = number, child: Future[int] = child) -> str | None:
                if seen != number:
                    return None
                os.kill(child.result(60), signal.SIGKILL)
                return fault

            proxy.log.clear()
            proxy.fault = kill
            process.stdin.write(f"{place.store.prefix} {place.store.url}\n")
            process.stdin.flush()
            child.set_result(int(process.stdout.readline()))
            status = int(process.stdout.readline())
            check_that_a_rerun_completes(proxy, place, images, description)
        process.stdin.close()
    assert status == 0
    assert number > 15


PUBLISHERS = """
import json, os, signal, sys, time
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from conftest import describe
from pipeline.delivery import open_store, publish
store = open_store(sys.argv[1])
for line in sys.stdin:
    titles, seconds = json.loads(line)
    children = []
    for title in titles:
        children.append(os.fork())
        if not children[-1]:
            documents = {"note.txt": title.encode()}
            publish(store, "digits", Path(sys.argv[2]), description=describe(title=title), documents=documents)
            os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        for child in children:
            os.kill(child, signal.SIGKILL)  # at least a zombie, until it is waited for
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
"""


@pytest.fixture
def run_publishers(url: str, images) -> Iterator[Callable[..., list[int]]]:
    """Publishes the set from one process for each title, killed after so many seconds; gives their exit statuses."""
    arguments = [sys.executable, "-c", PUBLISHERS, url, str(images.root), *map(str, Path(__file__).parents[:2])]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(titles: list[str], kill_after_seconds: float | None = None) -> list[int]:
        process.stdin.write(json.dumps([titles, kill_after_seconds]) + "\n")
        process.stdin.flush()
        found: list[int] = json.loads(process.stdout.readline())
        return found

    yield run
    process.communicate()


def test_a_publisher_that_is_killed_and_run_again(url: str, images, description, run_publishers) -> None:
    store, chance = open_store(url), random.Random(0)
    for _ in range(12):
        run_publishers(["Digits"], chance.uniform(0, 0.3))
        check_what_a_reader_sees(store)
    published = publish(store, "digits", images.root, description=description, documents={})
    assert [row.version for row in list_releases(store)] == [published.version]
    verify(f"{url}/digits")


def test_many_publishers_of_the_same_set(url: str, run_publishers) -> None:
    """With other cards and other documents, as processes: one version, whole, with one of each."""
    titles = [f"Digits {number}" for number in range(16)]
    assert run_publishers(titles) == [0] * len(titles)
    assert len(list_releases(open_store(url))) == 1
    verify(f"{url}/digits")


@pytest.mark.parametrize("count", [2, 64])
def test_many_publishers_at_once(url: str, tmp_path: Path, make_images, make_description, count: int) -> None:
    """Of different sets: every version is whole, no change of the pointer is lost, and every loser is told."""
    sets = [make_images(tmp_path / f"set-{seed}", seed, count=3) for seed in range(count)]
    store, start = open_store(url), Barrier(count)

    def run(seed: int) -> str:
        start.wait()
        try:
            return publish(store, "digits", sets[seed].root, description=make_description(), documents={}).version
        except FailedError as error:
            return str(error)

    with ThreadPoolExecutor(count) as pool:
        ends = list(pool.map(run, range(count)))
    winners = [end for end in ends if "another publisher was faster" not in end]
    assert sorted(winners) == sorted(move["version"] for move in pointer(store)["history"])
    rows = list_releases(store)
    assert len(rows) == count
    assert [row.version for row in rows if row.channels] == [pointer(store)["version"]]
    for row in rows:
        found = contents(store, f"digits/v={row.version}/")
        for file in json.loads(found[f"digits/v={row.version}/manifest.json"])["files"]:
            assert hashlib.sha256(found[f"digits/v={row.version}/{file['path']}"]).hexdigest() == file["sha256"]


def test_a_store_that_ignores_conditions_is_said(ignoring, s3_url: str, images, description) -> None:
    published = publish(open_store(s3_url), "digits", images.root, description=description, documents={})
    assert "ignores conditional writes" in published.caveat
    verify(f"{s3_url}/digits")


def test_a_lost_race_on_a_store_that_ignores_conditions(
    ignoring, s3_url: str, tmp_path: Path, make_images, description
) -> None:
    """Another publisher is done while this one is under way: seen, and not overwritten."""
    store, ours, theirs = open_store(s3_url), make_images(tmp_path / "ours", 1), make_images(tmp_path / "theirs", 2)
    strip = ignoring.fault
    done = []

    def fault(number: int, method: str, path: str, headers: dict[str, str]) -> None:
        strip(number, method, path, headers)
        if path.endswith("SHA256SUMS") and not done:
            done.append(True)
            done.append(publish(store, "digits", theirs.root, description=description, documents={}).version)

    ignoring.fault = fault
    with pytest.raises(FailedError, match="another publisher was faster"):
        publish(open_store(s3_url), "digits", ours.root, description=description, documents={})
    assert pointer(store)["version"] == done[1]


def test_a_store_without_permission_is_said_and_nothing_is_visible(proxy, s3_url: str, images, description) -> None:
    proxy.fault = lambda number, method, path, headers: 403 if method == "PUT" else None
    with pytest.raises(FailedError, match="PutObject is refused with these credentials"):
        publish(open_store(s3_url), "digits", images.root, description=description, documents={})
    assert list_releases(open_store(s3_url)) == []
