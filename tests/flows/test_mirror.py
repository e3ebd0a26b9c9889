"""Leases and mirrored states in a folder and on an S3 server: one at work at a time, and nothing of a dead one."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
import servers

from flows.elsewhere import LEASE_SECONDS
from flows.mirror import RENEWALS, FencedError, Keeper, Lease, Mirror, given_back, kept
from flows.repro import GRACE_SECONDS
from pipeline.delivery.stores import Store, open_store
from pipeline.errors import FailedError

KEY = "abc"
SHORT = 0.2  # seconds: who is not renewed for so long may be taken over
LONG = 600.0
OTHERS = b'{"epoch": 2, "holder": "another", "renewals": 0}'


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The URL of a bucket, and an environment that finds it."""
    with servers.s3_server() as url, pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL_S3": url,
            "AWS_ACCESS_KEY_ID": servers.KEY,
            "AWS_SECRET_ACCESS_KEY": servers.SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        boto3.session.Session().client("s3").create_bucket(Bucket="states")
        yield "s3://states"


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty one of each kind."""
    url = request.getfixturevalue("s3") + f"/{tmp_path.name}" if request.param == "s3" else str(tmp_path / "store")
    return open_store(url)


def silently(_: str) -> None: ...


def checkpoint(root: Path, images_seen: int, text: str, state: str = "state") -> None:
    folder = root / state / "checkpoints" / f"{images_seen:015d}-abc"
    folder.mkdir(parents=True)
    (folder / "tensors").write_text(text)


def files(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def test_the_next_holder_has_the_next_epoch(store: Store) -> None:
    first, second = Lease(store, KEY, LONG), Lease(store, KEY, LONG)
    first.take(silently)
    first.renew()
    first.release()
    second.take(silently)
    assert (first.epoch, second.epoch) == (1, 2)


def test_it_is_seen_who_gave_the_lease_back_and_not_who_is_silent(store: Store) -> None:
    assert given_back(store, KEY) is None
    for epoch in (1, 2):
        lease = Lease(store, KEY, LONG)
        lease.take(silently)
        assert given_back(store, KEY) is None
        lease.release()
        assert given_back(store, KEY) == epoch


def test_one_that_is_silent_is_taken_over_and_then_cannot_renew(store: Store) -> None:
    silent, next_one = Lease(store, KEY, LONG), Lease(store, KEY, SHORT)
    silent.take(silently)
    said: list[str] = []
    next_one.take(said.append)
    assert said == ["waits for 0.2 s to see whether another is still at work on this", said[1]]
    assert said[1].startswith("takes over from one that has been silent for ")
    for act in (silent.renew, silent.release):
        with pytest.raises(FencedError, match="another machine has taken this over"):
            act()
    next_one.renew()


def test_one_that_renews_is_not_taken_over(store: Store) -> None:
    working, waiting = Lease(store, KEY, LONG), Lease(store, KEY, 2.0)
    working.take(silently)
    taken = threading.Event()

    def wait() -> None:
        waiting.take(silently)
        taken.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    for _ in range(12):
        assert not taken.wait(0.25)
        working.renew()
    working.release()
    thread.join()
    assert waiting.epoch == 2


@contextmanager
def answers_lost(store: Store, *, sent_again: bool) -> Iterator[None]:
    """Each write of the block is done, and the answer does not come: its client sends it again, or gives up."""

    def losing(write: Callable[..., bool]) -> Callable[..., bool]:
        def lost(*words: object) -> bool:
            assert write(*words)
            if sent_again:
                return write(*words)
            raise FailedError("nobody answered")

        return lost

    with pytest.MonkeyPatch.context() as patch:
        for name in ("create", "swap"):
            patch.setattr(store, name, losing(getattr(store, name)))
        if sent_again:
            yield
        else:
            with pytest.raises(FailedError, match="nobody answered"):
                yield


def test_one_who_is_not_answered_is_not_fenced_off_by_its_own_write(store: Store) -> None:
    lease, next_one = Lease(store, KEY, LONG), Lease(store, KEY, LONG)
    with answers_lost(store, sent_again=True):
        lease.take(silently)
        lease.renew()
        lease.renew()
    for _ in range(2):
        with answers_lost(store, sent_again=False):
            lease.renew()
        lease.renew()
    with answers_lost(store, sent_again=True):
        lease.release()
        next_one.take(silently)
    assert (lease.epoch, next_one.epoch) == (1, 2)


def test_a_lease_lasts_longer_than_the_trainer_of_a_killed_run() -> None:
    assert LEASE_SECONDS - LEASE_SECONDS / RENEWALS > 2 * GRACE_SECONDS


def test_of_many_that_wait_one_wins_each_time(store: Store) -> None:
    inside, most, epochs = [0], [0], list[int]()

    def work() -> None:
        lease = Lease(store, KEY, LONG)
        lease.take(silently)
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        epochs.append(lease.epoch)
        inside[0] -= 1
        lease.release()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, epochs) == ([1], list(range(1, 9)))


def test_a_state_comes_back_on_another_machine(store: Store, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    checkpoint(here, 10, "ten")
    (here / "state" / "lock").write_text("")
    (here / "state" / "checkpoints" / "building").mkdir()
    (here / "state" / "checkpoints" / "building" / "tensors").write_text("half")
    for name in ("inputs.json", "threads"):
        (here / "state" / name).write_text(name)
    Mirror(store, KEY, here).save(1)
    assert Mirror(store, KEY, there).restore()
    assert files(there) == {
        "state/checkpoints/000000000000010-abc/tensors": "ten",
        "state/inputs.json": "inputs.json",
        "state/threads": "threads",
    }


def test_only_what_is_new_is_copied_and_one_copy_is_kept(store: Store, tmp_path: Path) -> None:
    mirror = Mirror(store, KEY, tmp_path)
    mirror.save(1)
    assert store.sizes(f"{KEY}/") == {}
    for images_seen in (10, 20):
        checkpoint(tmp_path, images_seen, str(images_seen))
        mirror.save(1)
        mirror.save(1)
    assert list(store.sizes(f"{KEY}/")) == [f"{KEY}/000001/000002.tar"]
    mirror.clear()
    assert store.sizes(f"{KEY}/") == {}


def test_what_a_fenced_one_still_writes_is_not_taken(store: Store, tmp_path: Path) -> None:
    dead, living, next_one = (tmp_path / name for name in ("dead", "living", "next"))
    checkpoint(dead, 10, "old")
    checkpoint(living, 20, "new")
    Mirror(store, KEY, living).save(2)
    checkpoint(dead, 999, "of one that was thought dead")
    Mirror(store, KEY, dead).save(1)
    Mirror(store, KEY, next_one).restore()
    assert list(files(next_one).values()) == ["new"]


def test_a_copy_that_was_cut_off_is_passed_over(store: Store, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    checkpoint(here, 10, "ten" * 10_000)
    Mirror(store, KEY, here).save(1)
    found = store.read(f"{KEY}/000001/000001.tar")
    assert found is not None
    store.create(f"{KEY}/000002/000001.tar", found[0][:20_000])
    assert Mirror(store, KEY, there).restore()
    assert list(files(there).values()) == ["ten" * 10_000]


def test_work_that_is_interrupted_leaves_its_last_checkpoint_to_the_next(store: Store, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"

    def work() -> None:
        with kept(store, KEY, here, seconds=LONG, say=silently):
            checkpoint(here, 10, "ten")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    said: list[str] = []
    with kept(store, KEY, there, seconds=LONG, say=said.append):
        assert list(files(there).values()) == ["ten"]
    assert said == ["goes on from the state that was mirrored"]
    assert list(store.sizes(f"{KEY}/")) == [f"{KEY}/lease.json"]


@pytest.mark.parametrize("ends", [True, False], ids=["work that ends", "work that fails"])
def test_one_that_was_taken_over_ends_its_work_and_says_so(store: Store, tmp_path: Path, ends: bool) -> None:
    ended = threading.Event()

    def take_over(keeper: Keeper) -> None:
        keeper.ends(ended.set)
        while (found := store.read(f"{KEY}/lease.json")) and not store.swap(f"{KEY}/lease.json", OTHERS, found[1]):
            pass  # it has just been renewed
        checkpoint(tmp_path / "state", 10, "late")
        assert ended.wait(60)

    def work() -> None:
        with kept(store, KEY, tmp_path / "state", seconds=SHORT, say=silently) as keeper:
            take_over(keeper)
            if not ends:
                raise FailedError("the trainer was killed")

    with pytest.raises(FencedError, match=r"another machine (has taken|takes) this over"):
        work()
    assert list(store.sizes(f"{KEY}/")) == [f"{KEY}/lease.json"]


def test_work_that_begins_when_another_has_taken_over_already_is_ended_at_once(store: Store, tmp_path: Path) -> None:
    ended = threading.Event()

    def work() -> None:
        with kept(store, KEY, tmp_path / "state", seconds=SHORT, say=silently) as keeper:
            while (found := store.read(f"{KEY}/lease.json")) and not store.swap(f"{KEY}/lease.json", OTHERS, found[1]):
                pass  # it has just been renewed
            while not keeper.fenced:
                time.sleep(0.01)
            keeper.ends(ended.set)

    with pytest.raises(FencedError):
        work()
    assert ended.is_set()


@pytest.fixture
def proxy(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[servers.Proxy]:
    """Before the S3 server, for the stores that are opened from now on."""
    with servers.Proxy(os.environ["AWS_ENDPOINT_URL_S3"]).serving() as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", found.url)
        yield found


@pytest.mark.parametrize("fault", [503, "drop"])
def test_a_store_that_is_away_for_a_while_is_told_and_the_work_goes_on(
    proxy: servers.Proxy, s3: str, tmp_path: Path, fault: int | str
) -> None:
    store, told = open_store(f"{s3}/{tmp_path.name}"), threading.Event()

    def say(line: str) -> None:
        assert line.startswith("the state is not mirrored at the moment: s3://states/")
        told.set()

    with kept(store, KEY, tmp_path / "state", seconds=SHORT, say=say):
        proxy.fault = lambda *_: fault
        assert told.wait(60)
        proxy.fault = lambda *_: None
        lease = store.read(f"{KEY}/lease.json")
        while store.read(f"{KEY}/lease.json") == lease:  # until it is renewed
            time.sleep(0.01)


@pytest.mark.parametrize("fault", [503, "drop"])
def test_a_store_that_is_away_when_the_work_begins_is_waited_for(
    proxy: servers.Proxy, s3: str, tmp_path: Path, fault: int | str
) -> None:
    store, seen = open_store(f"{s3}/{tmp_path.name}"), list[str]()

    def away(number: int, method: str, path: str, headers: dict[str, str]) -> int | str | None:
        """For the first time that the lease is asked for, and the first that copies are listed, with all retries."""
        seen.append("list-type" if "list-type" in path else "")
        return fault if number <= 3 or 0 < seen.count("list-type") <= 3 else None

    proxy.fault = away
    with kept(store, KEY, tmp_path / "state", seconds=LONG, say=silently):
        assert seen.count("list-type") > 3
    assert store.sizes(f"{KEY}/").keys() == {f"{KEY}/lease.json"}


@pytest.mark.parametrize("fault", [503, "drop"])
def test_work_that_is_done_does_not_fail_since_the_store_is_away_at_its_end(
    proxy: servers.Proxy, s3: str, tmp_path: Path, fault: int | str
) -> None:
    said: list[str] = []
    with kept(open_store(f"{s3}/{tmp_path.name}"), KEY, tmp_path / "state", seconds=LONG, say=said.append):
        proxy.fault = lambda *_: fault
    assert len(said) == 1
    assert said[0].startswith("the mirrored state is not removed: s3://states/")
