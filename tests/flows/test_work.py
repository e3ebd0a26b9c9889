"""The worker that waits for its runs, by real signals; a stage that was handed over is in test_handover.py."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL, temporary_settings
from websockets.exceptions import ConnectionClosedError

from flows import work

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 300  # on a busy machine
FLOW = """
import time
from pathlib import Path

from prefect import flow

@flow
def toy():
    here = Path({folder!r})
    if (here / "begun").exists():
        return
    (here / "begun").touch()
    try:
        time.sleep(3600)
    finally:
        time.sleep(2)  # longer than a worker that does not wait
        (here / "flushed").touch()
"""

PAIR = """
import os
import time
from pathlib import Path

from prefect import flow

@flow
def toy():
    here = Path({folder!r})
    (here / f"{{os.getpid()}}.here").touch()
    while len(list(here.glob("*.here"))) < 2:
        time.sleep(0.1)
    for line in range(200):
        print(line)
    time.sleep(5)
"""


@contextmanager
def worker(folder: Path, url: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "flows.work", "--pool", "toys", "--limit", "1"]
    environment = {
        "PREFECT_API_URL": url,
        "PREFECT_LOGGING_LOG_PRINTS": "true",
        "PREFECT_WORKER_HEARTBEAT_SECONDS": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PYTHONPATH": str(ROOT),
    }
    with (
        (folder / "log").open("ab") as log,
        subprocess.Popen(command, cwd=folder, env=os.environ | environment, stdout=log, stderr=log) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_whose_worker_is_told_to_end_is_flushed_and_waits_for_the_next(
    prefect_server: str, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "toy.py").write_text(FLOW.format(folder=str(tmp_path)))
    with get_client(sync_client=True) as client:
        deployment = deploy(client, f"toy-{number}", tmp_path)
        run = client.create_flow_run_from_deployment(deployment)

        def state() -> State:
            found = client.read_flow_run(run.id).state
            assert found is not None
            return found

        with worker(tmp_path, prefect_server) as process:
            wait_for(lambda: (tmp_path / "begun").exists(), process)
            process.send_signal(number)
            assert process.wait(PATIENCE_SECONDS) == 0
        assert (tmp_path / "flushed").exists()
        assert state().name == "AwaitingRetry"
        with worker(tmp_path, prefect_server) as process:
            wait_for(lambda: state().is_final(), process)
        assert state().is_completed()


def test_two_workers_at_once_each_have_a_run(prefect_server: str, tmp_path: Path) -> None:
    """Signs of life, states and lines of the log meet in one database, that of the server."""
    (tmp_path / "toy.py").write_text(PAIR.format(folder=str(tmp_path)))
    with get_client(sync_client=True) as client:
        deployment = deploy(client, "pair", tmp_path)
        runs = [client.create_flow_run_from_deployment(deployment).id for _ in range(2)]

        def states() -> list[str | None]:
            return [client.read_flow_run(run).state_name for run in runs]

        with worker(tmp_path, prefect_server) as one, worker(tmp_path, prefect_server) as other:
            wait_for(lambda: states() == ["Completed", "Completed"], one)
            assert other.poll() is None
    assert "database is locked" not in (tmp_path / "log").read_text()


def deploy(client: SyncPrefectClient, name: str, folder: Path) -> UUID:
    """A deployment of toy.py in the folder."""
    if "toys" not in {pool.name for pool in client.read_work_pools()}:
        client.create_work_pool(WorkPoolCreate(name="toys", type="process"))
    flow = client.create_flow_from_name("toy")
    return client.create_deployment(flow, name, entrypoint="toy.py:toy", path=str(folder), work_pool_name="toys")


def wait_for(true: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)


class AnswersOnce(BaseHTTPRequestHandler):
    """It keeps a connection and closes it just when it is used again, as a server may after some idle seconds."""

    protocol_version = "HTTP/1.1"
    answers = 0
    used = False

    def do_GET(self) -> None:
        if self.used:
            self.close_connection = True
            return
        self.used = True
        AnswersOnce.answers += 1
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"true")

    def log_message(self, *_: object) -> None: ...


def test_a_server_is_away_when_it_is_gone_and_not_when_it_closes_a_kept_connection(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(work, "_ASK_SECONDS", 0.01)

    async def look(server: ThreadingHTTPServer) -> str:
        watching = asyncio.create_task(work.watch())
        async with asyncio.timeout(PATIENCE_SECONDS):
            while AnswersOnce.answers < 3:
                await asyncio.sleep(0.01)
            healthy = capsys.readouterr().out
            await asyncio.to_thread(server.shutdown)
            server.server_close()
            while not (said := capsys.readouterr().out):
                await asyncio.sleep(0.01)
        watching.cancel()
        assert healthy == ""
        return said

    server = ThreadingHTTPServer(("127.0.0.1", 0), AnswersOnce)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/api"
    with temporary_settings({PREFECT_API_URL: url}):
        assert asyncio.run(look(server)) == f"the server at {url} is away: asks again until it is there\n"


def test_a_socket_that_was_cut_is_not_told_of_and_any_other_error_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody asks a task about, asyncio tells when the task is gone: by a traceback, if nothing else is set."""
    told = []

    def tell(_: object, context: dict[str, Any]) -> None:
        told.append(str(context["exception"]))

    monkeypatch.setattr(asyncio.BaseEventLoop, "default_exception_handler", tell)

    async def fail(error: Exception) -> None:
        raise error

    async def start() -> None:
        await asyncio.wait([asyncio.create_task(fail(ConnectionClosedError(None, None)))])
        await asyncio.wait([asyncio.create_task(fail(ValueError("marked")))])
        gc.collect()

    worker = work.Worker(work_pool_name="toys")
    monkeypatch.setattr(worker, "start", start)
    monkeypatch.setattr(work, "watch", lambda: asyncio.sleep(PATIENCE_SECONDS))
    asyncio.run(work.work(worker))
    assert told == ["marked"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "PREFECT_API_URL: is not set; needed the address of the Prefect server that has the pool"),
        (["--limit", "0"], "--limit: is 0; needed at least 1"),
        (["--name", "a/b"], "--name: is 'a/b'; needed one without / and %"),
    ],
)
def test_a_wrong_word_is_a_sentence(tmp_path: Path, words: list[str], sentence: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"PREFECT_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "flows.work", "--pool", "toys", *words]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (2, f"forgeline: {sentence}\n")
