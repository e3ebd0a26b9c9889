"""A stage that another machine has handed over: in a clone of our own, its outputs to the DVC remote."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, cast

from dvc.repo import Repo
from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.logging.loggers import PrefectLogAdapter
from prefect.states import Completed

from flows.commands import REMOTE, dvc, git
from flows.ended import failed
from flows.hiding import hidden
from flows.mirror import kept
from flows.place import LOCK, checkout, held
from flows.repro import reproduce
from pipeline import paths
from pipeline.delivery.stores import Access, Store, open_store
from pipeline.errors import FailedError, ForgelineError, UserError

LEASE_SECONDS = 60.0
_ACCESS = {  # the settings of a DVC remote that say how it is reached
    "endpointurl": "endpoint_url",
    "use_ssl": "use_ssl",
    "ssl_verify": "verify",
    "region": "region",
    "profile": "profile",
    "access_key_id": "access_key_id",
    "secret_access_key": "secret_access_key",
    "session_token": "session_token",
    "configpath": "config_file",
    "credentialpath": "credentials_file",
}
SPOKEN = "stage"  # the end of the name of the logger whose lines are for whom handed over


@flow(name="elsewhere")
def elsewhere(
    stage: str,
    repository: str,
    commit: str,
    folder: str,
    params: str,
    lock: str,
    lease_seconds: float = LEASE_SECONDS,
) -> State[Any]:
    """Run one stage of a commit, and push its outputs; go on where another machine that did so was lost.

    Args:
        stage: The stage, as DVC names it.
        repository: The git remote that both machines know.
        commit: What to run, which the remote has as refs/forgeline/COMMIT.
        folder: That of dvc.yaml in the repository, empty for its root.
        params: The text of params.yaml.
        lock: The text of dvc.lock, which says what the stage's inputs are; they are in the DVC remote.
        lease_seconds: So long must a machine be silent before another takes its work over.
    """
    logger = cast(PrefectLogAdapter, get_run_logger()).getChild(SPOKEN)

    def say(line: str) -> None:
        logger.info("%s", hidden(line))

    try:
        with clone_of(repository, commit) as clone, checkout(clone / folder, commit) as workspace:
            (workspace / paths.PARAMS).write_text(params, encoding="utf-8")
            (workspace / LOCK).write_text(lock, encoding="utf-8")
            state = (clone / folder / ".dvc" / "forgeline-state").resolve()
            key = key_of(stage, commit, folder, params, lock)
            with kept(state_store(workspace), key, state, seconds=lease_seconds, say=say) as keeper:

                def end(group: int) -> None:
                    with suppress(ProcessLookupError):
                        os.killpg(group, signal.SIGKILL)

                def take(group: int) -> None:
                    keeper.ends(lambda: end(group))

                reproduce(stage, workspace, pull=True, started=lambda: None, say=say, group=take)
                dvc(workspace, "push", "--quiet", "--run-cache", stage)
    except ForgelineError as error:
        return failed(error)
    return Completed(message="its outputs are in the DVC remote")


def key_of(stage: str, commit: str, folder: str, params: str, lock: str) -> str:
    """Where the store keeps the state of just this work."""
    return hashlib.sha256(json.dumps([stage, commit, folder, params, lock]).encode()).hexdigest()[:32]


def state_store(workspace: Path) -> Store:
    """The folder state/ beside what DVC keeps in its remote, reached as DVC reaches it.

    Raises UserError where there is no such place.
    """
    with Repo(str(workspace)) as repo:
        name = repo.config["core"].get("remote")
        remote = repo.config["remote"].get(name, {})
    url = str(remote["url"]) if "url" in remote else None
    if url is None or ("://" in url and not url.startswith("s3://")):
        found = "is none" if url is None else f"is {hidden(url)}"
        raise UserError(f"run.remote_stages: the default DVC remote {found}; needed one on s3://, or a folder")
    return open_store(
        f"{url.rstrip('/')}/state", Access(**{_ACCESS[key]: remote[key] for key in remote if key in _ACCESS})
    )


@contextmanager
def clone_of(repository: str, commit: str) -> Iterator[Path]:
    """A clone that nobody else uses meanwhile, with the commit; its DVC cache is kept from run to run."""
    cache = paths.cache()
    name = hashlib.sha256(repository.encode()).hexdigest()[:16]
    (cache / "clones").mkdir(parents=True, exist_ok=True)
    for number in count():
        clone = cache / "clones" / f"{name}-{number}"
        with ExitStack() as stack:
            try:
                stack.enter_context(held(clone.with_suffix(".lock")))
            except FailedError:
                continue  # another run's
            if not (clone / ".git").exists():
                clone.mkdir(exist_ok=True)
                git(clone, "init", "--quiet")
                git(clone, "remote", "add", REMOTE, repository)
            git(clone, "fetch", "--quiet", REMOTE, f"refs/forgeline/{commit}")
            git(clone, "checkout", "--quiet", "--force", "--detach", commit)
            yield clone
            return
