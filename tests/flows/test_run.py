"""`forgeline run` as its own process: what a person sees, its exit status, and what is left when it is ended."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import FlowRunSort

from flows.run import run
from pipeline.errors import FailedError, UserError

Workspace = Callable[[str], Path]

WAITS = "  one: {cmd: sleep 600 & echo $!; echo $$; wait}\n"


def start(folder: Path, url: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flows"],
        cwd=folder,
        env=os.environ | {"PREFECT_API_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_of_stage(command: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes of the stage that `WAITS`, once it runs."""
    assert command.stderr is not None
    told = list(islice((line.strip() for line in command.stderr if not line.startswith("a Prefect server")), 3))
    assert told[0] == "[1/1] one"
    return [psutil.Process(int(pid)) for pid in told[1:]]


def test_a_failure_ends_in_one_sentence_with_the_status_of_the_stage(workspace: Workspace, prefect_server: str) -> None:
    command = start(workspace("  one: {cmd: echo forgeline needs more >&2; exit 2}\n"), prefect_server)
    out, err = command.communicate()
    assert err.splitlines() == ["[1/1] one", "    forgeline needs more", "forgeline: stage 'one': forgeline needs more"]
    assert (out, command.returncode) == ("", 2)


def test_a_signal_ends_the_stage_and_prefect_learns_of_it(workspace: Workspace, prefect_server: str) -> None:
    command = start(workspace(WAITS), prefect_server)
    stage = processes_of_stage(command)
    command.send_signal(signal.SIGTERM)
    _, err = command.communicate()
    assert (err, command.returncode) == ("forgeline: ended by SIGTERM\n", 128 + signal.SIGTERM)
    assert psutil.wait_procs(stage, timeout=10)[1] == []
    with get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs(limit=1, sort=FlowRunSort.START_TIME_DESC)
    assert run.state_name == "Crashed"


def test_the_server_of_a_run_without_one_ends_with_it_even_when_it_is_killed(
    workspace: Workspace, prefect_home: Path
) -> None:
    command = start(workspace(WAITS))
    stage = processes_of_stage(command)
    children = psutil.Process(command.pid).children()
    (server,) = (child for child in children if "flows.server" in child.cmdline())
    command.kill()
    command.communicate()
    assert psutil.wait_procs([server], timeout=60)[1] == []
    for process in stage:
        with suppress(psutil.NoSuchProcess):  # the shell ends by itself once its `sleep` is killed
            process.kill()


def test_a_server_that_does_not_answer_is_told_before_anything_runs(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unheard.getsockname()[1]}/api"
        with temporary_settings({PREFECT_API_URL: url}), pytest.raises(FailedError) as caught:
            run(workspace("  one: {cmd: x}\n"))
    assert str(caught.value) == (
        f"PREFECT_API_URL: nobody answers at {url}; 'prefect server start' starts a server, without PREFECT_API_URL a "
        "run has one of its own"
    )


def test_what_is_wrong_with_the_repository_or_the_settings_is_told_before_anything_runs(
    workspace: Workspace, prefect_server: str
) -> None:
    folder = workspace("  one: {cmd: touch ran}\n")
    (folder / "params.yaml").write_text("publish: {url: null, nam: toy}\n")
    with pytest.raises(UserError, match=r"params.yaml: publish.nam is not a setting; did you mean 'name'\?$"):
        run(folder)
    (folder / "params.yaml").write_text("publish: {url: null, name: My set}\n")
    with pytest.raises(UserError, match=r"params.yaml: publish.name is 'My set'; needed a-z, 0-9"):
        run(folder)
    (folder / "params.yaml").write_text("publish: {url: 'http://host/sets', name: toy}\n")
    with pytest.raises(UserError, match=r"^'http://host/sets' is not a store; needed s3://bucket/prefix or a folder$"):
        run(folder)
    (folder / "params.yaml").write_text("publish: {url: null, name: toy}\n")
    with pytest.raises(UserError, match=r"^'s3://' names no bucket"):
        run(folder, "s3://")
    shutil.rmtree(folder / ".dvc")
    with pytest.raises(UserError, match=rf"^{folder}: is not a DVC repository"):
        run(folder)
    assert not (folder / "ran").exists()
