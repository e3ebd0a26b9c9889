"""The state of a stage that runs on a machine which may vanish, mirrored to a store; and who may go on with it.

Everything lies under one key of a store: `lease.json` names the one who is at work and its epoch, and
`<epoch>/<number>.tar` are copies of the trainer's state. A lease is renewed by conditional writes, and taken over by
one who has seen it stay the same for its whole length: so no clocks are compared, and one who was thought dead finds at
its next renewal that it is not the holder any more. What it still writes lies under its own, older epoch.
"""

from __future__ import annotations

import json
import secrets
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from pipeline.delivery.stores import BrokenError, Store
from pipeline.errors import FailedError, ForgelineError

LEASE = "lease.json"
RENEWALS = 4  # in the length of a lease
_PAUSE_SECONDS = 1.0  # between looks at a lease that another holds, at most
_RELEASED = ""
_Result = TypeVar("_Result")


class FencedError(FailedError):
    """Another has taken the work over."""


@dataclass(frozen=True, kw_only=True)
class _Lease:
    """`holder` is drawn anew by each who takes it, `renewals` makes each state of it another."""

    epoch: int
    holder: str
    renewals: int = 0

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()


class Lease:
    """The right to work on `key` of the `store`, for `seconds` after each renewal."""

    def __init__(self, store: Store, key: str, seconds: float) -> None:
        self.store, self.path, self.seconds = store, f"{key}/{LEASE}", seconds
        self._held: _Lease | None = None

    @property
    def epoch(self) -> int:
        assert self._held is not None
        return self._held.epoch

    def take(self, say: Callable[[str], None]) -> None:
        """As soon as nobody holds it, or its holder has been silent for the length of the lease."""
        mine = secrets.token_hex(16)
        seen, since = None, time.monotonic()
        while True:
            found = self.store.read(self.path)
            if found is None:
                self._held = _Lease(epoch=1, holder=mine)
                if self.store.create(self.path, self._held.to_bytes()):
                    return
                continue
            other, tag = _Lease(**json.loads(found[0])), found[1]
            if other.holder == mine:  # written by a request whose answer was lost
                self._held = other
                return
            if found[0] != seen:
                if seen is None and other.holder != _RELEASED:
                    say(f"waits for {self.seconds:g} s to see whether another is still at work on this")
                seen, since = found[0], time.monotonic()
            silent = time.monotonic() - since
            if other.holder == _RELEASED or silent >= self.seconds:
                self._held = _Lease(epoch=other.epoch + 1, holder=mine)
                if self.store.swap(self.path, self._held.to_bytes(), tag):
                    if other.holder != _RELEASED:
                        say(f"takes over from one that has been silent for {silent:.0f} s")
                    return
            else:
                time.sleep(min(_PAUSE_SECONDS, self.seconds - silent))

    def renew(self) -> None:
        """Raises FencedError where another holds it by now."""
        self._write(lambda held: replace(held, renewals=held.renewals + 1))

    def release(self) -> None:
        """Another may go on at once. Raises FencedError where another does."""
        self._write(lambda held: replace(held, holder=_RELEASED))

    def _write(self, change: Callable[[_Lease], _Lease]) -> None:
        """Where the answer to a write was lost, the store has what was written, and it may have been sent again."""
        assert self._held is not None
        found = self.store.read(self.path)
        lease = _Lease(**json.loads(found[0])) if found else None
        if found is None or lease is None or (lease.epoch, lease.holder) != (self._held.epoch, self._held.holder):
            raise FencedError("another machine has taken this over; what was done here since is dropped")
        changed = change(lease)
        if not self.store.swap(self.path, changed.to_bytes(), found[1]) and not self._has(changed):
            raise FencedError("another machine takes this over at this moment; what was done here since is dropped")
        self._held = changed

    def _has(self, lease: _Lease) -> bool:
        found = self.store.read(self.path)
        return found is not None and found[0] == lease.to_bytes()


def given_back(store: Store, key: str) -> int | None:
    """The epoch of who gave the lease on `key` back, as one that is told to end does; None where none did last.

    None too where the store does not answer.
    """
    with suppress(ForgelineError):
        if found := store.read(f"{key}/{LEASE}"):
            lease = _Lease(**json.loads(found[0]))
            return lease.epoch if lease.holder == _RELEASED else None
    return None


class Mirror:
    """Copies of the states in `root`, folders that each have checkpoints/, under `key` of the `store`."""

    def __init__(self, store: Store, key: str, root: Path) -> None:
        self.store, self.key, self.root = store, key, root
        self.count, self.copied = 0, ""  # of this epoch; the newest checkpoint's name

    def restore(self) -> bool:
        """Bring back the newest copy, of whatever epoch; False where there is none."""
        for path in sorted(self._copies(), reverse=True):
            with TemporaryDirectory() as temporary:
                file = Path(temporary) / "state.tar"
                with file.open("wb") as out:
                    for chunk in self.store.chunks(f"{self.key}/{path}"):
                        out.write(chunk)
                try:
                    with tarfile.open(file) as tar:
                        tar.extractall(self.root, filter="data")
                except (tarfile.TarError, OSError):
                    continue  # a copy that was cut off: the one before is whole
            self.copied = self._newest()
            return True
        return False

    def save(self, epoch: int) -> None:
        """Copy the states when there is a checkpoint that was not copied yet, and remove what came before in the epoch.

        A checkpoint that the trainer removes meanwhile is none that anybody needs: the next time will do.
        """
        newest = self._newest()
        if newest == self.copied:
            return
        with TemporaryDirectory() as temporary:
            file = Path(temporary) / "state.tar"
            try:
                with tarfile.open(file, "w") as tar:
                    for folder in sorted(self.root.iterdir()):
                        for part in ("checkpoints", "inputs.json", "threads", "grids"):  # grids after what names them
                            if (folder / part).exists():
                                tar.add(folder / part, f"{folder.name}/{part}", filter=_finished)
            except FileNotFoundError:
                return
            self.count += 1
            self.store.create(f"{self.key}/{epoch:06d}/{self.count:06d}.tar", file)
        self.copied = newest
        for path in self._copies():
            if path.startswith(f"{epoch:06d}/") and path < f"{epoch:06d}/{self.count:06d}.tar":
                self.store.delete(f"{self.key}/{path}")

    def clear(self) -> None:
        """Remove the copies of every epoch, when the work is done."""
        for path in self._copies():
            self.store.delete(f"{self.key}/{path}")

    def _copies(self) -> list[str]:
        return [key.removeprefix(f"{self.key}/") for key in self.store.sizes(f"{self.key}/") if key.endswith(".tar")]

    def _newest(self) -> str:
        return max((str(path.relative_to(self.root)) for path in self.root.glob("*/checkpoints/*-*")), default="")


def _finished(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Not what is being built."""
    return None if "/building" in info.name else info


class Keeper:
    """Renews the lease and copies what is new, in a thread of its own; `fenced` once another has taken over."""

    def __init__(self, lease: Lease, mirror: Mirror, say: Callable[[str], None]) -> None:
        self.lease, self.mirror, self.say = lease, mirror, say
        self.fenced: FencedError | None = None
        self._end_work: Callable[[], None] = lambda: None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def _keep(self) -> None:
        while not self._stop.wait(self.lease.seconds / RENEWALS):
            try:
                self.lease.renew()
                self.mirror.save(self.lease.epoch)
            except FencedError as error:
                self.fenced = error
                self._end_work()
                return
            except ForgelineError as error:  # a store that is away for a while; longer than the lease, and it is lost
                self.say(f"the state is not mirrored at the moment: {error}")

    def ends(self, work: Callable[[], None]) -> None:
        """Call `work`, which ends what is kept, once another has taken over: at once where one has already."""
        self._end_work = work
        if self.fenced:
            work()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@contextmanager
def kept(store: Store, key: str, root: Path, *, seconds: float, say: Callable[[str], None]) -> Iterator[Keeper]:
    """Hold the lease on `key`, the newest state brought back, while the block runs; the states in `root` are mirrored.

    When the block is left by an exception the last checkpoint is mirrored and the lease released, so that another can
    go on at once. Raises FencedError when another went on meanwhile.
    """
    lease, mirror = Lease(store, key, seconds), Mirror(store, key, root)
    _patiently(lambda: lease.take(say), seconds)
    shutil.rmtree(root, ignore_errors=True)  # of this clone; what counts is what the last holder has mirrored
    root.mkdir(parents=True)
    if _patiently(mirror.restore, seconds):
        say("goes on from the state that was mirrored")
    keeper = Keeper(lease, mirror, say)
    keeper.start()
    try:
        yield keeper
    except BaseException:
        keeper.stop()
        if keeper.fenced:
            raise keeper.fenced from None
        with suppress(ForgelineError):
            mirror.save(lease.epoch)
            lease.release()
        raise
    keeper.stop()
    if keeper.fenced:
        raise keeper.fenced
    try:
        mirror.clear()
        lease.release()
    except ForgelineError as error:  # the work is done all the same
        say(f"the mirrored state is not removed: {error}")


def _patiently(act: Callable[[], _Result], seconds: float) -> _Result:
    """What `act` gives; a store that does not answer is asked again for so long."""
    last = time.monotonic() + seconds
    while True:
        try:
            return act()
        except BrokenError:
            if time.monotonic() > last:
                raise
            time.sleep(_PAUSE_SECONDS)
