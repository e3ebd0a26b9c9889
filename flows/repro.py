"""One stage by `dvc repro -s`, in a process group of its own, so that ending the run ends the trainer too."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dvc.exceptions import DvcException
from dvc.repo import Repo, lock_repo
from dvc.scm import SCMError
from dvc.stage import PipelineStage
from dvc.stage.cache import RunCacheNotFoundError, RunCacheNotSupported

from pipeline.errors import FailedError, ForgelineError, UserError

GRACE_SECONDS = 20  # between SIGTERM and SIGKILL: time for a trainer to write a checkpoint

Outcome = Literal["ran", "unchanged", "restored"]

_AFTER = re.compile(r"(Generating|Updating) lock file '|To track the changes with git|Use `dvc push` to send your")
_RESTORED = re.compile(r"Stage '.*' is cached - skipping run")
_FAILED = re.compile(r"ERROR: failed to reproduce '[^']*': ")
_STATUS = re.compile(r"failed to run: .*, exited with (-?\d+)$")
_BUSY = re.compile(r"'.*' is busy, |Unable to acquire lock")
_KILLED = {-signal.SIGKILL, 128 + signal.SIGKILL}  # of the command, or of the shell that ran it
# Ends the process group $1 when its input ends without a word, as it does when this process is killed.
_GUARD = "read -r word || { kill -s TERM -- -$1; sleep $2; kill -s KILL -- -$1; }"


logging.getLogger("dvc.stage.cache").setLevel(logging.WARNING)  # what is restored in this process we tell ourselves


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """What became of a stage: its command ran, nothing had changed, or DVC restored the outputs of an earlier run."""

    stage: str
    outcome: Outcome
    seconds: float


def reproduce(
    stage: str,
    workspace: Path,
    *,
    pull: bool = False,
    started: Callable[[], None],
    say: Callable[[str], None],
    group: Callable[[int], None] = lambda _: None,
) -> StageRun:
    """Bring `stage` up to date; call `started` when its command starts, and `say` with each line as it prints it.

    With `pull`, what is neither here nor in the cache comes from the DVC remote, where it is there. `group` is told the
    process group that all of it happens in.
    Raises UserError when the stage's command ended with status 2, else FailedError, with the last line it printed.
    Whatever interrupts this, even in a signal handler, ends every process of the stage first.
    """
    begun = time.monotonic()
    if is_unchanged(stage, workspace):
        return StageRun(stage=stage, outcome="unchanged", seconds=time.monotonic() - begun)
    command = [sys.executable, "-m", "dvc", "repro", "-s", stage, *(["--pull"] if pull else [])]
    with _process_group(command, workspace) as process:
        assert process.stdout is not None
        group(process.pid)
        said = _Said(started, say)
        for line in process.stdout:
            said.take(line.rstrip())
        status = process.wait()
    if status:
        raise said.error(stage)
    return StageRun(stage=stage, outcome=said.outcome, seconds=time.monotonic() - begun)


def restore(stage: str, workspace: Path) -> bool:
    """Bring the outputs that an earlier run of just this left, here or in the DVC remote; False where there are none.

    The stage itself does not run, and nothing that is here is removed before there is something in its place.
    """
    try:
        with chdir(workspace), Repo() as repo, lock_repo(repo):  # what DVC restores is relative to where one stands
            with suppress(RunCacheNotSupported):
                repo.stage_cache.pull(None)
            repo.stage_cache.restore(stage_of(repo, stage), pull=True)
    except RunCacheNotFoundError:
        return False
    except (DvcException, SCMError) as error:
        raise FailedError(f"stage '{stage}': cannot be fetched: {' '.join(str(error).split())}") from None
    return True


def is_unchanged(stage: str, workspace: Path) -> bool:
    """Whether DVC would do nothing. Asked in this process: to start one costs more than a second for each stage."""
    try:
        with Repo(str(workspace)) as repo, lock_repo(repo):
            return not is_changed(stage_of(repo, stage))
    except (DvcException, SCMError):  # DVC tells of it when it runs the stage
        return False


def stage_of(repo: Repo, name: str) -> Any:
    """What DVC has by the name of a stage. What a .dvc file tracks has none."""
    (found,) = (each for each in repo.index.stages if isinstance(each, PipelineStage) and each.name == name)
    return found


def is_changed(stage: Any, *, allow_missing: bool = False) -> bool:
    """Whether DVC would run this stage of its, or restore its outputs; in the block of `lock_repo`.

    With `allow_missing` dependencies and outputs need not be there, where dvc.lock says what they are.
    """
    upstream = list(stage.repo.index.graph.successors(stage))
    known = all(each.hash_info for each in (*stage.deps, *stage.outs))  # one that never ran has none
    return not known or bool(stage.changed(allow_missing=allow_missing, upstream=upstream))


class _Said:
    """Tells what the stage's command printed from what DVC printed around it."""

    def __init__(self, started: Callable[[], None], say: Callable[[str], None]) -> None:
        self.started, self.say = started, say
        self.outcome: Outcome = "unchanged"
        self.command_speaks = False
        self.last_words = ""  # of the command
        self.dvc_error = "dvc ended without a word"

    def take(self, line: str) -> None:
        if _FAILED.match(line) or _AFTER.match(line):
            self.command_speaks = False
        if self.command_speaks:
            self.say(line)
            self.last_words = line.strip() or self.last_words
        elif line.startswith("Running stage '"):
            self.outcome = "ran"
            self.started()
        elif line.startswith("> "):
            self.command_speaks = True
        elif _RESTORED.match(line):
            self.outcome = "restored"
        elif line.startswith("ERROR: "):
            self.dvc_error = _FAILED.sub("", line).removeprefix("ERROR: ")

    def error(self, stage: str) -> ForgelineError:
        if _BUSY.match(self.dvc_error):
            return FailedError(f"stage '{stage}': another run is at work in this workspace; needed that it ends first")
        found = _STATUS.match(self.dvc_error)
        status = int(found[1]) if found else 1
        if status in _KILLED:
            return FailedError(f"stage '{stage}' was killed by SIGKILL, as a system does when memory runs out")
        sentence = self.last_words.removeprefix("forgeline: ") if found else self.dvc_error
        kind = UserError if status == UserError.exit_status else FailedError
        return kind(f"stage '{stage}': {sentence or f'ended with status {status} and said nothing'}")


@contextmanager
def _process_group(command: list[str], workspace: Path) -> Iterator[subprocess.Popen[str]]:
    """The running command, leader of a group of processes that all end when the body is left by an exception.

    They also end when this process is killed, even in the grace that it leaves them, so that no trainer works on for
    nobody.
    """
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join([str(workspace), *filter(None, [os.environ.get("PYTHONPATH")])]),  # its own code
        "PYTHONUNBUFFERED": "1",  # lines come as they are printed
        "DVC_NO_ANALYTICS": "1",
    }
    with (
        subprocess.Popen(
            command,
            cwd=workspace,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process,
        ExitStack() as guard,  # left after all have ended
    ):
        try:
            guard.enter_context(_guarded(process.pid))
            yield process
        except BaseException:
            _end(process)
            raise


@contextmanager
def _guarded(group: int) -> Iterator[None]:
    """Someone outside of the process group sees to its end, should this process be killed in the body."""
    command = ["sh", "-c", _GUARD, "forgeline-guard", str(group), str(GRACE_SECONDS)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True) as guard:
        try:
            yield
        finally:
            guard.communicate(b"\n")


def _end(process: subprocess.Popen[str]) -> None:
    """SIGTERM to the whole group, and SIGKILL to what is left of it after the grace; at once when interrupted again."""
    deadline = time.monotonic() + GRACE_SECONDS
    try:
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            process.poll()  # a leader that nobody waits for stays in the group
            os.killpg(process.pid, 0)
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # all have ended
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
