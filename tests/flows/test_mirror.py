"""Leases and mirrored states on a real store in a folder: one at work at a time, and nothing of a dead one is taken."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.mirror import FencedError, Keeper, Lease, Mirror, kept
from pipeline.delivery.stores import Store, open_store
from pipeline.errors import FailedError

KEY = "abc"
SHORT = 0.2  # seconds: who is not renewed for so long may be taken over
LONG = 600.0
OTHERS = b'{"epoch": 2, "holder": "another", "renewals": 0}'


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


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
        keeper.end_work = ended.set
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


def test_a_store_that_is_away_for_a_while_is_told_and_the_work_goes_on(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = threading.Event()
    read: Callable[[str], tuple[bytes, str] | None] = store.read

    def refuse(key: str) -> tuple[bytes, str] | None:
        raise FailedError("the store answered 503")

    def say(line: str) -> None:
        assert line == "the state is not mirrored at the moment: the store answered 503"
        told.set()

    with kept(store, KEY, tmp_path / "state", seconds=SHORT, say=say) as keeper:
        monkeypatch.setattr(store, "read", refuse)
        assert told.wait(60)
        monkeypatch.setattr(store, "read", read)
        checkpoint(tmp_path / "state", 10, "ten")
        keeper.lease.renew()
