"""`forgeline run` as its own process: what a person sees, its exit status, and what is left when it is ended."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.run import run
from pipeline.doctor import prefect_answers
from pipeline.errors import FailedError, UserError

Workspace = Callable[[str], Path]

WAITS = "  one: {cmd: sleep 600 & echo $!; echo $$; wait}\n"


def start(folder: Path, url: str = "", **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flows"],
        cwd=folder,
        env=os.environ | {"PREFECT_API_URL": url} | environment,
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


class Server:
    """A Prefect server that is killed and started again, always at the same address."""

    def __init__(self, database: Path, home: Path) -> None:
        shutil.copy(database, home)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.home, self.url = home, f"http://127.0.0.1:{self.port}/api"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)],
            env=os.environ | {"PREFECT_HOME": str(self.home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not prefect_answers(self.url):
            assert self.process.poll() is None
            time.sleep(0.1)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server(prefect_database: Path, tmp_path: Path) -> Iterator[Server]:
    found = Server(prefect_database, tmp_path)
    yield found
    found.kill()


HELD = "".join(
    f"  {name}: {{cmd: 'echo begun; until test -e {name}; do sleep 0.1; done', always_changed: true}}\n"
    for name in ("one", "two")
)


def begun(command: subprocess.Popen[str]) -> None:
    """Wait until a stage of HELD has begun."""
    assert command.stderr is not None
    next(line for line in command.stderr if line.strip() == "begun")


def test_a_server_that_is_killed_and_started_again_midway_has_the_whole_run(
    workspace: Workspace, server: Server
) -> None:
    folder = workspace(HELD)
    with start(folder, server.url) as command:
        for name in ("one", "two"):
            begun(command)
            server.kill()
            (folder / name).touch()  # the stage ends while nobody answers
            time.sleep(2)
            server.start()
        _, err = command.communicate()
    assert command.returncode == 0, err
    with temporary_settings({PREFECT_API_URL: server.url}), get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs()
        assert run.state_name == "Completed"
        states = {task.name: task.state_name for task in client.read_task_runs()}
        assert states == {"one": "Completed", "two": "Completed", "publish": "Skipped"}


def test_a_server_that_is_gone_for_good_is_told_in_a_sentence(workspace: Workspace, server: Server) -> None:
    folder = workspace(HELD)
    with start(folder, server.url, PREFECT_CLIENT_MAX_RETRIES="1") as command:
        begun(command)
        server.kill()
        for name in ("one", "two"):
            (folder / name).touch()
        _, err = command.communicate()
    assert (command.returncode, "Traceback" in err) == (1, False), err
    assert f"forgeline: the Prefect server at {server.url} is gone" in err


def test_a_server_that_does_not_answer_is_told_before_anything_runs(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
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
