"""`python -m flows.work --pool NAME`: a worker of a work pool of type `process`, on a machine that may be taken away.

Prefect's own worker kills its runs when it is told to end. This one tells them to end too, and waits for what they
leave to the next: a trainer's last checkpoint, mirrored, and a lease that is free.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
from abc import ABC
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import anyio
import httpx
import psutil
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import AwaitingRetry
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult
from websockets.exceptions import ConnectionClosed

from pipeline.errors import UserError, ending
from pipeline.running import REMOTE_POOL

if TYPE_CHECKING:
    from anyio.abc import TaskStatus
    from prefect.client.schemas.objects import FlowRun

_LOOK_SECONDS = 0.5  # between looks for runs that were being started
_ASK_SECONDS = 5.0  # between looks for the server
# The server closes a connection after as many seconds: used just then, it would look as if the server were away.
_ASKS_ANEW = {"limits": httpx.Limits(max_keepalive_connections=0)}


class Worker(ProcessWorker, ABC):  # Prefect registers each worker by its type in place of others, but no ABC
    """Works until `end`, and then waits for its runs; it waits for a server that is away, as after `forgeline down`."""

    told = False

    async def __aenter__(self) -> Self:  # without Prefect's runner of flows that this process would submit
        return await super(ProcessWorker, self).__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        await super(ProcessWorker, self).__aexit__(*error)

    async def sync_with_backend(self) -> None:
        with suppress(httpx.TransportError):  # Prefect tells of it by tracebacks, and ends after some ten minutes
            await super().sync_with_backend()

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        with suppress(httpx.TransportError):
            return await super().get_and_submit_flow_runs()
        return []

    async def end(self, working: asyncio.Task[None]) -> None:
        """End `working`, which is `start`, and the runs, each of which is told once: twice is at once."""
        self.told = True
        working.cancel()
        asked = set[int]()
        while not working.done():
            for run in psutil.Process().children():
                if run.pid not in asked:
                    asked.add(run.pid)
                    with suppress(psutil.NoSuchProcess):
                        run.terminate()
            await asyncio.wait([working], timeout=_LOOK_SECONDS)

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        """As Prefect's own, but not cut off by the worker's end; a run that ends for it waits for the next worker.

        But not a stage that was handed over: the run which did so hands it over again.
        """
        with anyio.CancelScope(shield=True):
            result = await super().run(flow_run, configuration, task_status)
            if self.told and self.work_pool.name != REMOTE_POOL:
                state = (await self.client.read_flow_run(flow_run.id)).state
                if state is not None and state.is_crashed():
                    await self.client.set_flow_run_state(flow_run.id, AwaitingRetry(), force=True)
        return result


async def watch() -> None:
    """Say, once each time, that the server is away and that it is there again; requests first try again in silence."""
    away = False
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        async with get_client(httpx_settings=_ASKS_ANEW) as client:
            while True:
                if isinstance(await client.api_healthcheck(), httpx.TransportError) != away:
                    away = not away
                    found = f"at {PREFECT_API_URL.value()} is away: asks again until it is there"
                    print(f"the server {found if away else 'is there again'}", flush=True)
                await asyncio.sleep(_ASK_SECONDS)


def overlook(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A socket to the server that was cut, as while the machine slept, is nothing to tell of: the worker opens another.

    Two of Prefect's tasks learn of it at once, and of the one that nobody asks asyncio tells by a traceback.
    """
    if not isinstance(context.get("exception"), ConnectionClosed):
        loop.default_exception_handler(context)


async def work(worker: Worker) -> None:
    """Until SIGTERM or Ctrl-C; a second one does not wait."""
    working, told = asyncio.create_task(worker.start()), asyncio.Event()
    watching = asyncio.create_task(watch())
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(overlook)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    telling = asyncio.create_task(told.wait())
    await asyncio.wait([working, telling], return_when=asyncio.FIRST_COMPLETED)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
    if told.is_set():
        print("told to end: waits for what its runs leave to the next", flush=True)
        await worker.end(working)
    for task in (telling, watching):
        task.cancel()
    with suppress(asyncio.CancelledError):
        await working


def main() -> None:
    """Exit status: 0 told to end, 1 failed, 2 the user's words are off."""
    parser = argparse.ArgumentParser(prog="python -m flows.work")
    parser.add_argument("--pool", required=True, metavar="NAME", help="the work pool, made where there is none")
    parser.add_argument("--name", help="of this worker, HOST-PID where it is not said")
    parser.add_argument("--limit", type=int, metavar="COUNT", help="runs at once")
    words = parser.parse_args()
    with ending():
        if words.name is not None and {"/", "%"} & set(words.name):
            raise UserError(f"--name: is '{words.name}'; needed one without / and %")
        if words.limit is not None and words.limit < 1:
            raise UserError(f"--limit: is {words.limit}; needed at least 1")
        if not PREFECT_API_URL.value():
            raise UserError("PREFECT_API_URL: is not set; needed the address of the Prefect server that has the pool")
        name = words.name or f"{socket.gethostname()}-{os.getpid()}"
        asyncio.run(work(Worker(work_pool_name=words.pool, name=name, limit=words.limit)))


if __name__ == "__main__":
    main()
