"""Where a run happens: the clone itself, or a checkout of its own that begins at the head of a branch."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo, lock_repo
from dvc.stage import PipelineStage
from ruamel.yaml import YAML

from flows.commands import dvc, file_at, git, head_of, tip_of
from flows.repro import is_changed
from pipeline import paths
from pipeline.doctor import read_all_params
from pipeline.errors import FailedError, UserError
from pipeline.imageset.files import write_atomically
from pipeline.params import Document
from pipeline.running import RunSettings

LOCK = Path("dvc.lock")
RUN = "Forgeline-Run:"  # begins the line of a commit message that says which run made it
_CHECK = """
from pathlib import Path
from pipeline.doctor import read_all_params
from pipeline.errors import ending
with ending():
    read_all_params(Path())
"""
_STATE = Path(".dvc/tmp/forgeline")  # git ignores .dvc/tmp
_LAST_LOCK, _LAST_PARAMS = _STATE / "last.lock", _STATE / "last.yaml"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What is known of the last run that ended well: dvc.lock as it left it, its params.yaml; None where nothing is."""

    lock: bytes | None
    params: bytes | None


@dataclass(frozen=True, kw_only=True)
class Place:
    """A workspace to run in, of the `clone`; `pull` says whether outputs that are not there may come from a remote."""

    clone: Path
    workspace: Path
    pull: bool
    remembered: Memory

    @property
    def own(self) -> bool:
        """Whether the workspace is a checkout for this run alone."""
        return self.workspace != self.clone

    def as_remembered(self) -> bool:
        """Whether there is nothing to do.

        The last run that ended well left this dvc.lock, DVC would run no stage but the probes, and what decides about a
        set that is made already is as it was.
        """
        lock, then = _read(self.workspace / LOCK), self.remembered
        if lock is None or lock != then.lock or then.params is None:
            return False
        if _decisive((self.workspace / paths.PARAMS).read_bytes()) != _decisive(then.params):
            return False
        return changed_stages(self.workspace) == ()

    def check_settings(self) -> None:
        """Raise UserError for what any stage would refuse in params.yaml, hours before it has its turn.

        By the code of the workspace, which in a checkout may be another than that of this process.
        """
        if not self.own:
            read_all_params(self.workspace)
            return
        command = [sys.executable, "-c", _CHECK]
        ended = subprocess.run(command, cwd=self.workspace, capture_output=True, text=True, errors="replace")
        if ended.returncode == UserError.exit_status:
            raise UserError(ended.stderr.strip().removeprefix("forgeline: "))

    def remember(self) -> None:
        """Note that this run ended well."""
        for path, last in ((LOCK, _LAST_LOCK), (paths.PARAMS, _LAST_PARAMS)):
            if (content := _read(self.workspace / path)) is not None:
                write_atomically(self.clone / last, content)


@contextmanager
def place_of(clone: Path, settings: RunSettings, *, scheduled: bool) -> Iterator[Place]:
    """The clone; for a scheduled run whose settings name a branch a checkout of its head, removed at the end."""
    last = Memory(lock=_read(clone / _LAST_LOCK), params=_read(clone / _LAST_PARAMS))
    if not scheduled or settings.branch is None:
        yield Place(clone=clone, workspace=clone, pull=False, remembered=last)
        return
    commit = head_of(clone, settings.branch)
    with checkout(clone, commit) as workspace:
        if settings.record and (tip := tip_of(clone, settings.record)):
            made = git(workspace, "log", "-1", "--format=%H", f"--grep=^{RUN}", tip)
            lock, params = (file_at(workspace, made, path) if made else None for path in (LOCK, paths.PARAMS))
            last = Memory(lock=lock, params=params)
        if last.lock is not None:
            (workspace / LOCK).write_bytes(last.lock)  # of what DVC finds there unchanged nothing is made again
        with Repo(str(workspace)) as repo:
            pull = "remote" in repo.config["core"]
        _bring_source(clone, workspace, pull=pull)
        yield Place(clone=clone, workspace=workspace, pull=pull, remembered=last)


def changed_stages(workspace: Path) -> tuple[str, ...]:
    """The stages that DVC would run, but those that it always runs. Outputs need not be there."""
    try:
        with Repo(str(workspace)) as repo, lock_repo(repo):
            return tuple(
                stage.name
                for stage in repo.index.stages
                if isinstance(stage, PipelineStage)
                and not (stage.always_changed or stage.is_callback)
                and is_changed(stage, allow_missing=True)
            )
    except DvcException as error:
        raise FailedError(f"{workspace}: DVC cannot tell what changed: {' '.join(str(error).split())}") from None


@contextmanager
def checkout(clone: Path, commit: str) -> Iterator[Path]:
    """A git worktree at `commit` with the clone's cache and remotes. What killed runs left behind is removed first."""
    runs = clone / _STATE / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    for lock in runs.glob("*.lock"):
        with suppress(FailedError), held(lock):
            _remove(clone, lock)
    lock = runs / f"{secrets.token_hex(6)}.lock"
    with held(lock):
        folder = lock.with_suffix("")
        git(clone, "worktree", "add", "--quiet", "--detach", str(folder), commit)
        try:
            workspace = folder / git(clone, "rev-parse", "--show-prefix")
            _configure(clone, workspace)
            yield workspace
        finally:
            _remove(clone, lock)


@contextmanager
def held(lock: Path) -> Iterator[None]:
    """Hold the lock, which the system frees when this process ends, however it ends."""
    descriptor = os.open(lock, os.O_CREAT | os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedError(f"{lock}: is held by another run") from None
        yield
    finally:
        os.close(descriptor)


def _remove(clone: Path, lock: Path) -> None:
    shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
    git(clone, "worktree", "prune")
    lock.unlink(missing_ok=True)


def _configure(clone: Path, workspace: Path) -> None:
    """DVC's settings of this machine, the cache of the clone, and remotes in folders as the clone finds them."""
    local = Path(".dvc/config.local")
    if (clone / local).exists():
        shutil.copy(clone / local, workspace / local)
    with Repo(str(clone)) as repo:
        cache = repo.cache.local_cache_dir
        folders = {name: str(remote["url"]) for name, remote in repo.config["remote"].items()}
    with Repo(str(workspace)) as repo, repo.config.edit("local") as config:
        config.setdefault("cache", {})["dir"] = cache
        for name, url in folders.items():
            if "://" not in url:
                config.setdefault("remote", {}).setdefault(name, {})["url"] = url


def _bring_source(clone: Path, workspace: Path, *, pull: bool) -> None:
    """Raw data that source.url names by a relative path: what DVC tracks from its cache, else a link to the clone's."""
    url = Document.load(workspace / paths.PARAMS).content.get("source", {}).get("url")
    if not isinstance(url, str) or "://" in url or Path(url).is_absolute():
        return
    path = PurePosixPath(os.path.normpath(url))
    for tracked in (path, *path.parents):
        if (workspace / f"{tracked}.dvc").is_file():
            dvc(workspace, "pull" if pull else "checkout", str(tracked))
            return
    if (clone / path).exists() and not (workspace / path).exists():
        (workspace / path).parent.mkdir(parents=True, exist_ok=True)
        (workspace / path).symlink_to(clone / path)


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _decisive(params: bytes) -> tuple[Any, ...]:
    """What a params.yaml says of a set that is made already: where it is published and recorded, what the gate asks."""
    content = YAML(typ="safe").load(params)
    run = content.get("run") or {}
    return content.get("publish"), run.get("gate"), run.get("record")
