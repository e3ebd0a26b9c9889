"""Real `dvc repro` on real processes: what became of a stage, its live output, its last words, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import repro
from flows.repro import Outcome, reproduce
from pipeline.errors import FailedError, ForgelineError, UserError

Workspace = Callable[[str], Path]


@pytest.fixture
def stage(workspace: Workspace) -> Workspace:
    """Make a workspace whose stage `one` runs this shell script, from input.txt to one.txt."""

    def make(script: str) -> Path:
        folder = workspace("  one: {cmd: ./one.sh, deps: [input.txt, one.sh], outs: [one.txt]}\n")
        (folder / "input.txt").write_text("hello\n")
        (folder / "one.sh").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "one.sh").chmod(0o755)
        return folder

    return make


def outcome(folder: Path) -> Outcome:
    return reproduce("one", folder, started=lambda: None, say=lambda line: None).outcome


def test_a_stage_runs_then_is_unchanged_then_is_restored_from_the_run_cache(stage: Workspace) -> None:
    folder = stage("cp input.txt one.txt")
    assert outcome(folder) == "ran"
    assert outcome(folder) == "unchanged"
    (folder / "dvc.lock").unlink()
    (folder / "one.txt").unlink()
    assert outcome(folder) == "restored"
    assert (folder / "one.txt").read_text() == "hello\n"


def test_data_that_no_stage_makes_may_lie_beside(stage: Workspace) -> None:
    folder = stage("cp input.txt one.txt")
    for name in ("before", "raw"):  # one that DVC lists before dvc.yaml, one after
        (folder / name).write_text("data")
        subprocess.run([sys.executable, "-m", "dvc", "add", "--quiet", name], cwd=folder, check=True)
    assert outcome(folder) == "ran"
    assert outcome(folder) == "unchanged"
    add = [sys.executable, "-m", "dvc", "remote", "add", "--quiet", "--default", "store", str(folder / "remote")]
    subprocess.run(add, cwd=folder, check=True)
    (folder / "one.txt").unlink()
    (folder / "dvc.lock").unlink()
    assert repro.restore("one", folder)
    assert (folder / "one.txt").read_text() == "hello\n"


def test_lines_are_told_while_the_stage_still_runs_and_none_of_dvcs_own(stage: Workspace) -> None:
    folder = stage("echo begun; until test -e heard; do sleep 0.05; done; echo ERROR: mild >&2; echo > one.txt")
    told: list[str] = []

    def say(line: str) -> None:
        told.append(line)
        (folder / "heard").touch()  # without this answer to its first line the stage does not go on

    run = reproduce("one", folder, started=lambda: told.append("(started)"), say=say)
    assert told == ["(started)", "begun", "ERROR: mild"]
    assert (run.stage, run.outcome) == ("one", "ran")


@pytest.mark.parametrize(
    ("script", "kind", "sentence"),
    [
        ("echo forgeline: params.yaml: odd >&2; exit 2", UserError, "stage 'one': params.yaml: odd"),
        ("exit 3", FailedError, "stage 'one': ended with status 3 and said nothing"),
        ("true", FailedError, "stage 'one': output 'one.txt' does not exist"),
        ("kill -9 $$", FailedError, "stage 'one' was killed by SIGKILL, as a system does when memory runs out"),
    ],
)
def test_a_failed_stage_passes_on_its_last_words_and_status(
    stage: Workspace, script: str, kind: type[ForgelineError], sentence: str
) -> None:
    with pytest.raises(kind) as caught:
        outcome(stage(script))
    assert str(caught.value) == sentence


def test_what_dvc_itself_refuses_is_told_in_its_words(stage: Workspace) -> None:
    folder = stage("true")
    (folder / "input.txt").unlink()
    with pytest.raises(FailedError, match=r"^stage 'one': .*No such file or directory: '.*/input.txt'$"):
        outcome(folder)


def test_a_second_run_in_the_same_workspace_is_told_so(stage: Workspace) -> None:
    folder = stage("echo begun; sleep 600")

    def say(line: str) -> None:
        with pytest.raises(FailedError, match=r"^stage 'one': another run is at work in this workspace; needed that"):
            outcome(folder)
        raise KeyboardInterrupt  # ends the first one

    with pytest.raises(KeyboardInterrupt):
        reproduce("one", folder, started=lambda: None, say=say)


def test_an_interruption_ends_every_process_of_the_stage(stage: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repro, "GRACE_SECONDS", 0.5)
    folder = stage("(trap '' TERM; exec sleep 600) &\necho $!\necho $$\nwait")  # one that SIGTERM does not end
    running: list[int] = []

    def say(line: str) -> None:
        running.append(int(line))
        if len(running) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduce("one", folder, started=lambda: None, say=say)
    assert [pid for pid in running if alive(pid)] == []


def test_a_killed_run_leaves_no_process_of_its_stage(stage: Workspace) -> None:
    folder = stage("sleep 600 &\necho $!\necho $$\nwait")
    code = (
        "import sys; from pathlib import Path; from flows.repro import reproduce; "
        "reproduce('one', Path(sys.argv[1]), started=lambda: None, say=lambda line: print(line, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        running = [int(run.stdout.readline()), int(run.stdout.readline())]
        run.kill()
    assert [pid for pid in running if alive(pid)] == []


def test_a_run_that_is_killed_in_the_grace_leaves_no_process_of_its_stage(stage: Workspace) -> None:
    folder = stage("trap 'touch told' TERM\necho $$\nwhile true; do sleep 0.1; done")  # SIGTERM does not end it
    code = """
import sys
from pathlib import Path
from flows import repro

repro.GRACE_SECONDS = 0.5  # that the guard knows

def say(line):
    print(line, flush=True)
    repro.GRACE_SECONDS = 600
    raise KeyboardInterrupt

repro.reproduce("one", Path(sys.argv[1]), started=lambda: None, say=say)
"""
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        running = int(run.stdout.readline())
        while not (folder / "told").exists():
            assert run.poll() is None
            time.sleep(0.05)
        run.kill()
    assert not alive(running)


def alive(pid: int) -> bool:
    """Whether the process runs, once its end has had time to be noticed by whoever waits for it."""
    for _ in range(1200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return False
        except FileNotFoundError:
            return False
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    return True
