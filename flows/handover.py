"""A stage is handed to another machine, which shares only the git remote and the DVC remote: its outputs come back.

This machine pushes code and inputs, follows the run there, and hands the stage over again when that machine is lost. It
never runs the stage itself: what is not in the DVC remote afterwards is told.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from dvc.repo import Repo
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import LogSort
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Crashed

from flows.commands import REMOTE, dvc, git, has_remote
from flows.elsewhere import LEASE_SECONDS, SPOKEN, key_of, state_store
from flows.graph import Stage
from flows.mirror import LEASE, given_back
from flows.place import LOCK
from flows.recording import uncommitted
from flows.repro import GRACE_SECONDS, StageRun, is_unchanged, reproduce, restore, stage_of
from flows.workers import online, starter
from pipeline import paths
from pipeline.delivery.stores import Store, check, shown
from pipeline.errors import FailedError, ForgelineError, UserError
from pipeline.params import Document
from pipeline.running import REMOTE_DEPLOYMENT, REMOTE_POOL

_LOOK_SECONDS = 2.0  # between looks at the run
_MACHINES = 5  # that may be lost before the run gives up; what one leaves that is told to end is none
_SILENT_LEASES = 3  # a machine that has not renewed its lease for so long is lost
_NO_STAGES = "schema: '2.0'\n"  # a dvc.lock of them, as DVC reads it; an empty file is none
_END_SECONDS = GRACE_SECONDS + 5.0  # what a stage has there, and to hear of it; Prefect gives this run 30
_START_SECONDS = 900.0  # and one that has not begun so long after it was asked for: it may be bought and booted first


def hand_over(
    stage: Stage, workspace: Path, title: str, say: Callable[[str], None], lease_seconds: float = LEASE_SECONDS
) -> StageRun:
    """Bring the stage up to date by a machine of the work pool. Raises UserError where what is needed is not there."""
    begun = time.monotonic()
    if is_unchanged(stage.name, workspace):
        return StageRun(stage=stage.name, outcome="unchanged", seconds=time.monotonic() - begun)
    if restore(stage.name, workspace):
        _note(stage.name, workspace)
        return StageRun(stage=stage.name, outcome="restored", seconds=time.monotonic() - begun)
    needs = _check(stage, workspace)
    with _named(workspace) as commit:
        work = _prepare(stage, workspace, commit, needs)
        say(title)
        with get_client(sync_client=True) as client:
            lost, epoch = list[str](), None
            while machine := _follow(client, work, say, lease_seconds):
                if (left := given_back(work.store, work.key)) not in (None, epoch):
                    epoch = left
                    say(f"    {machine} was told to end; the next one goes on from what it left")
                    continue
                lost.append(machine)
                if len(lost) == _MACHINES:
                    words = f"{_MACHINES} machines of {REMOTE_POOL} were lost: {', '.join(lost)}"
                    raise FailedError(f"stage '{stage.name}': {words}")
                say(f"    {machine} is lost; the next one goes on from what it mirrored")
    if not restore(stage.name, workspace):
        raise FailedError(
            f"stage '{stage.name}': ran in the work pool '{REMOTE_POOL}', but its outputs are not in the DVC remote of "
            "this machine; needed the same remote on both"
        )
    _note(stage.name, workspace)
    return StageRun(stage=stage.name, outcome="ran", seconds=time.monotonic() - begun)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """`parameters` of the flow `elsewhere`, and where its state is mirrored."""

    stage: str
    parameters: dict[str, str]
    store: Store
    key: str


def _check(stage: Stage, workspace: Path) -> list[str]:
    """What the stage needs, by the names that `dvc push` knows. Raises UserError where it cannot be handed over."""
    setting = f"params.yaml: run.remote_stages names {stage.name}"
    params = Document.load(workspace / paths.PARAMS)
    for key, text in _texts(params.content):
        if "://" in text and shown(text) != text:
            raise params.error(
                key,
                f"is '{shown(text)}', and run.remote_stages hands it to other machines; needed a URL without a user "
                "and a query, and the credentials in the environment",
            )
    with chdir(workspace), Repo() as repo:  # names are relative to where one stands
        found = stage_of(repo, stage.name)
        if found.always_changed or not found.deps or not found.outs or any(out.persist for out in found.outs):
            raise UserError(
                f"{setting}, whose outputs DVC's run cache does not keep, so that they would not come back; needed a "
                "stage with deps and outs that is not always_changed"
            )
        needs = sorted(need.addressing for need in repo.index.graph.successors(found))
    if not has_remote(workspace):
        raise UserError(f"{setting}; needed a git remote '{REMOTE}' that the other machine knows too")
    if changed := uncommitted(workspace):
        raise UserError(f"{changed[0]}: has uncommitted changes; needed a commit of them, as {setting}")
    return needs


def _texts(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """The texts of settings by their dotted keys."""
    match value:
        case str():
            yield key, value
        case dict():
            for name, inner in value.items():
                yield from _texts(inner, f"{key}.{name}" if key else str(name))
        case list():
            for place, inner in enumerate(value):
                yield from _texts(inner, f"{key}[{place}]")


@contextmanager
def _named(workspace: Path) -> Iterator[str]:
    """The commit that is handed over, which the git remote has by a name of its own until the block is left."""
    commit = git(workspace, "rev-parse", "HEAD")
    ref = f"refs/forgeline/{commit}"
    git(workspace, "push", "--quiet", "--no-verify", "--force", REMOTE, f"HEAD:{ref}")
    try:
        yield commit
    finally:
        with suppress(FailedError):  # one that stays does no harm
            git(workspace, "push", "--quiet", "--no-verify", REMOTE, f":{ref}")


def _prepare(stage: Stage, workspace: Path, commit: str, needs: list[str]) -> _Work:
    """Push inputs. Raises UserError where the DVC remote is none that keeps a lease."""
    store = state_store(workspace)
    promises = check(store)
    if not (promises.read and promises.write):
        missing = "written to" if promises.read else "read"
        raise UserError(f"{store.url}: cannot be {missing} with the credentials of the DVC remote; needed both")
    if not (promises.create and promises.swap):
        raise UserError(
            f"{store.url}: ignores conditional writes, so that two machines could both go on with one stage; needed a "
            "DVC remote that keeps them, as S3 does, for run.remote_stages"
        )
    if needs:  # without a name DVC would push everything
        dvc(workspace, "push", "--quiet", *needs)
    folder = git(workspace, "rev-parse", "--show-prefix")
    repository = re.sub(r"(?<=://)[^/@]*@", "", git(workspace, "remote", "get-url", REMOTE))  # no password goes along
    lock = workspace / LOCK
    parameters = {
        "commit": commit,
        "folder": folder,
        "params": (workspace / paths.PARAMS).read_text(encoding="utf-8"),
        "lock": lock.read_text(encoding="utf-8") if lock.exists() else _NO_STAGES,  # where no stage has run yet
    }
    return _Work(
        stage=stage.name,
        parameters={"stage": stage.name, "repository": repository, **parameters},
        store=store,
        key=key_of(stage.name, **parameters),
    )


def _note(stage: str, workspace: Path) -> None:
    """In dvc.lock, that the outputs which are there are the stage's."""
    reproduce(stage, workspace, pull=True, started=lambda: None, say=lambda _: None)


def _follow(client: SyncPrefectClient, work: _Work, say: Callable[[str], None], lease_seconds: float) -> str | None:
    """One run of the deployment, its lines said here; the machine's name where that was lost, or was told to end.

    Raises FailedError with what it failed with.
    """
    with _submitted(client, work, lease_seconds) as run:
        say(f"    handed to the work pool '{REMOTE_POOL}' as {run.name}")
        if not online(client, REMOTE_POOL):
            say(f"    no worker of it is online, so this waits: '{starter(client, REMOTE_POOL)}' starts one")
        heard, pulse = 0, _Pulse(work.store, f"{work.key}/{LEASE}", _SILENT_LEASES * lease_seconds, say)
        while True:
            found = client.read_flow_run(run.id)
            state = found.state
            assert state is not None
            before = heard
            lines, heard = _lines(client, run.id, before)
            for line in lines:
                say(f"    {line}")
            if state.is_final() and heard == before:
                break
            if pulse.stopped(state.type):
                client.set_flow_run_state(run.id, Crashed(message="its machine is silent"), force=True)
            time.sleep(_LOOK_SECONDS)
    if state.is_completed():
        return None
    if state.is_crashed():
        worker = found.labels.get("prefect.worker.name")
        return f"the machine of the worker {worker}" if worker else "that machine"
    told, name = state.message or state.name or "", f"stage '{work.stage}'"
    why = told.removeprefix(name) if told.startswith(name) else f": {told}"  # there a stage's words begin with its name
    raise FailedError(f"{name} in the work pool '{REMOTE_POOL}'{why}")


@contextmanager
def _submitted(client: SyncPrefectClient, work: _Work, lease_seconds: float) -> Iterator[FlowRun]:
    """A run of the deployment; cancelled when the block is left by an exception, as when this run is cancelled.

    That machine may need the server until it has ended, so this waits for it.
    """
    try:
        deployment = client.read_deployment_by_name(REMOTE_DEPLOYMENT)
    except ObjectNotFound:
        raise UserError(
            f"params.yaml: run.remote_stages names {work.stage}; needed the deployment '{REMOTE_DEPLOYMENT}' on the "
            "server that PREFECT_API_URL names: 'prefect deploy --prefect-file infra/prefect-remote.yaml --all'"
        ) from None
    parameters = {**work.parameters, "lease_seconds": lease_seconds}
    run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters)
    try:
        yield run
    except BaseException:
        found = client.read_flow_run(run.id).state
        if found is not None and not found.is_final():
            client.set_flow_run_state(run.id, Cancelling())
            deadline = time.monotonic() + _END_SECONDS
            while time.monotonic() < deadline and not _has_ended(client, run.id):
                time.sleep(_LOOK_SECONDS)
        raise


def _has_ended(client: SyncPrefectClient, run: UUID) -> bool:
    state = client.read_flow_run(run).state
    return state is not None and state.is_final()


def _lines(client: SyncPrefectClient, run: UUID, heard: int) -> tuple[list[str], int]:
    """What the stage has printed there after the first `heard` records of its log, and how many there are now."""
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run]))
    found = client.read_logs(wanted, offset=heard, sort=LogSort.TIMESTAMP_ASC)
    return [log.message for log in found if log.name.endswith(f".{SPOKEN}")], heard + len(found)


@dataclass
class _Pulse:
    """Whether the machine that has a run is alive, as it is seen from here.

    What it must show is that the run gets on and, once that is running, a lease that changes: one that is not there
    yet is one that does not.
    """

    store: Store
    path: str
    patience: float
    say: Callable[[str], None]
    seen: object = None
    since: float = field(default_factory=time.monotonic)
    told: bool = False

    def stopped(self, state: StateType) -> bool:
        """Whether a machine has the run, now in this state, and nothing has changed for longer than the patience."""
        lease = None
        if state == StateType.RUNNING:
            try:
                lease = self.store.read(self.path)
            except ForgelineError as error:  # who cannot be seen is not silent
                if not self.told:
                    self.say(f"    the lease of that machine cannot be read at the moment: {error}")
                self.told, self.since = True, time.monotonic()
                return False
        if (state, lease) != self.seen or state not in (StateType.PENDING, StateType.RUNNING):
            self.seen, self.since = (state, lease), time.monotonic()
        patience = self.patience if state == StateType.RUNNING else _START_SECONDS
        return time.monotonic() - self.since > patience
