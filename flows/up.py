"""`forgeline up` and `forgeline down`: a Prefect server, a worker and the deployment, on a single machine."""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psutil

from flows.run import QUIET
from flows.workers import online, starter
from pipeline.doctor import prefect_answers, read_all_params
from pipeline.errors import FailedError, UserError, ending
from pipeline.imageset.files import write_atomically
from pipeline.running import POOL, PROCESS, REMOTE_DEPLOYMENT, REMOTE_POOL, UP, RunSettings, read_run_settings

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

DEPLOYMENT = "retrain/nightly"
PREFECT_FILE, REMOTE_PREFECT_FILE = Path("infra/prefect.yaml"), Path("infra/prefect-remote.yaml")
IMAGE_PREFECT_FILE = Path("infra/prefect-image.yaml")
_START_SECONDS = 300  # of a busy machine; one that fails ends sooner
_END_SECONDS = 60  # longer than a stage has to end, which its run and then the worker wait for


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process by its id and by when it began, since ids are used again.

    `began` is the boot of the machine, and the clock ticks from then on: a time of day moves when the clock is set.
    """

    pid: int
    began: str

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process that has this id now. Raises psutil.NoSuchProcess where none has."""
        try:
            ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]  # after the name, see proc(5)
        except (FileNotFoundError, ProcessLookupError):
            raise psutil.NoSuchProcess(pid) from None
        return cls(pid=pid, began=f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {ticks}")

    def find(self) -> psutil.Process | None:
        """None where it has ended."""
        try:
            found = psutil.Process(self.pid)
            alive = Process.of(self.pid) == self and found.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return found if alive else None


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What `up` has started: the API of its server, or of the one that was there, and its processes by name."""

    url: str
    processes: Mapping[str, Process]

    @classmethod
    def read(cls, state: Path) -> Standing | None:
        """None where nothing was started yet."""
        try:
            content = json.loads((state / "up.json").read_bytes())
        except FileNotFoundError:
            return None
        processes = {name: Process(**process) for name, process in content["processes"].items()}
        return cls(url=content["url"], processes=processes)

    def write(self, state: Path) -> None:
        write_atomically(state / "up.json", json.dumps(asdict(self), indent=1).encode())


def up(workspace: Path, say: Callable[[str], None]) -> str:
    """Start what does not run yet, deploy the flow of `workspace`, and return the URL of the API.

    Raises UserError, before anything starts, when settings or files are not what is needed, FailedError when the
    server or the worker does not start.
    """
    workspace = workspace.resolve()
    settings = read_run_settings(read_all_params(workspace))
    if not (workspace / PREFECT_FILE).is_file():
        raise UserError(f"{workspace / PREFECT_FILE}: is not there; needed the root of a clone of Forgeline")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from prefect.settings import PREFECT_API_URL, temporary_settings

    _check_cron(settings)
    state = workspace / UP
    state.mkdir(parents=True, exist_ok=True)
    before = Standing.read(state)
    processes = {name: each for name, each in (before.processes if before else {}).items() if each.find()}
    standing = Standing(url=before.url if before else "", processes=processes)
    standing = _serve(standing, PREFECT_API_URL.value(), workspace, say)
    with temporary_settings({PREFECT_API_URL: standing.url}):
        _deploy(workspace, standing.url, settings, say)
        _work(standing, workspace, say)
    return standing.url


def down(workspace: Path, say: Callable[[str], None]) -> None:
    """End the worker and then the server, each only where `up` has started it.

    The runs that it is at end before the worker, and wait for the next one.
    """
    state = workspace.resolve() / UP
    standing = Standing.read(state)
    running = {
        name: found for name, process in (standing.processes if standing else {}).items() if (found := process.find())
    }
    for name in ("worker", "server"):
        if name in running:
            _end(running[name])
            say(f"{name}: ended")
    if standing:
        Standing(url=standing.url, processes={}).write(state)  # the next server takes the same port
    if not running:
        say("nothing that 'forgeline up' started here runs")


def _check_cron(settings: RunSettings) -> None:
    from prefect.client.schemas.schedules import CronSchedule

    if settings.cron is None:
        return
    try:
        CronSchedule(cron=settings.cron, timezone=settings.timezone)
    except ValueError:
        raise UserError(
            f"params.yaml: run.cron is '{settings.cron}' in the time zone '{settings.timezone}'; needed five fields "
            "such as '0 2 * * *', and a zone such as UTC or Europe/Berlin"
        ) from None


def _serve(standing: Standing, configured: str | None, workspace: Path, say: Callable[[str], None]) -> Standing:
    """Standing with a server that answers: the one of PREFECT_API_URL, the one of an earlier `up`, or a new one."""
    if "server" in standing.processes and prefect_answers(standing.url):
        say(f"server: runs already, its page is {_page(standing.url)}")
        return standing
    if configured and configured != standing.url:
        if standing.processes:
            raise UserError(
                f"PREFECT_API_URL: is {configured}, but what 'forgeline up' started here is for {standing.url}; needed "
                "that one, or 'forgeline down' first"
            )
        if not prefect_answers(configured):
            raise FailedError(
                f"PREFECT_API_URL: nobody answers at {configured}; needed a server there, or no PREFECT_API_URL, and "
                "'forgeline up' starts one"
            )
        say(f"server: that of PREFECT_API_URL, its page is {_page(configured)}")
        return Standing(url=configured, processes={})
    if configured and "server" not in standing.processes and prefect_answers(configured):
        return standing
    port = _free_port(standing.url)
    url = f"http://127.0.0.1:{port}/api"
    if "worker" in standing.processes and url != standing.url and (worker := standing.processes["worker"].find()):
        _end(worker)  # of a server that is gone
        standing = Standing(url=url, processes={})
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "flows.ordering",
        "PREFECT_API_URL": url,
    }
    process = _start("server", command, workspace, environment)
    standing = Standing(url=url, processes={**standing.processes, "server": Process.of(process.pid)})
    standing.write(workspace / UP)
    _wait(process, workspace / UP / "server.log", lambda: prefect_answers(url), "the Prefect server")
    say(f"server: started, its page is {_page(url)}")
    return standing


def _deploy(workspace: Path, url: str, settings: RunSettings, say: Callable[[str], None]) -> None:
    """The work pools, and what the files in infra deploy into them, with the schedule of params.yaml."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.exceptions import ObjectNotFound

    from flows.telling import WEBHOOK, automate, notification_block

    with get_client(sync_client=True) as client:
        _make_pool(client, POOL)
        _deploy_file(PREFECT_FILE, workspace, url)
        deployment = client.read_deployment_by_name(DEPLOYMENT)
        deployments = [deployment.id]
        if settings.remote_stages:
            if (kind := _make_pool(client, REMOTE_POOL)) == PROCESS:
                _deploy_file(REMOTE_PREFECT_FILE, workspace, url)
            else:
                say(
                    f"deployment: {REMOTE_DEPLOYMENT} is left as it is, as the pool '{REMOTE_POOL}' is of type {kind}: "
                    f"prefect deploy --prefect-file {IMAGE_PREFECT_FILE} --all --job-variable image=IMAGE"
                )
            with suppress(ObjectNotFound):
                deployments.append(client.read_deployment_by_name(REMOTE_DEPLOYMENT).id)
            say(f"remote stages: {', '.join(settings.remote_stages)}, {_who_does_them(client, url)}")
        schedule = CronSchedule(cron=settings.cron, timezone=settings.timezone) if settings.cron else None
        for each in deployment.schedules:
            client.update_deployment_schedule(deployment.id, each.id, active=bool(schedule), schedule=schedule)
        block = notification_block(client, settings.notify)
        automate(client, deployments, block)
    when = f"runs at '{settings.cron}' {settings.timezone}" if settings.cron else "no schedule, as run.cron names none"
    say(f"deployment: {DEPLOYMENT}, {when}")
    nobody = f"nobody: run.notify names no block, and {WEBHOOK} no webhook"
    say(f"told of the end of runs: {(settings.notify or 'the webhook of $' + WEBHOOK) if block else nobody}")


def _who_does_them(client: SyncPrefectClient, url: str) -> str:
    """Which workers are there for the stages of run.remote_stages, else how to start one.

    None is started here: it would take the work from the machines that params.yaml means.
    """
    if names := online(client, REMOTE_POOL):
        return f"by the worker {', '.join(names)}"
    server = urlsplit(url)
    how = f"as soon as a worker is there: PREFECT_API_URL={url} {starter(client, REMOTE_POOL)}"
    if server.hostname not in ("127.0.0.1", "localhost"):
        return how
    port = server.port or 80
    tunnel = f"ssh -N -R {port}:{server.hostname}:{port} MACHINE"
    return f"{how}\n    on another machine too, while '{tunnel}' runs here, as the server is for this machine only"


def _make_pool(client: SyncPrefectClient, pool: str) -> str:
    """The type of the work pool, made where there is none."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    with suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=pool, type=PROCESS))
    return client.read_work_pool(pool).type


def _deploy_file(file: Path, workspace: Path, url: str) -> None:
    """All deployments of the file."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--prefect-file", str(file), "--all"]
    environment = os.environ | {"PREFECT_API_URL": url}
    told = subprocess.run(command, cwd=workspace, env=environment, capture_output=True, text=True)
    if told.returncode:
        lines = [line.strip(" │╭╰─╮╯") for line in (told.stdout + told.stderr).splitlines()]
        raise FailedError(f"{file}: cannot be deployed: {([*filter(None, lines)] or ['no word'])[-1]}")


def _work(standing: Standing, workspace: Path, say: Callable[[str], None]) -> None:
    """A worker that is online, started where there is none of ours."""
    if "worker" in standing.processes:
        standing.write(workspace / UP)
        say("worker: runs already")
        return
    name = f"{socket.gethostname()}-{os.getpid()}"
    command = ["flows.work", "--pool", POOL, "--name", name]
    process = _start("worker", command, workspace, {"PREFECT_API_URL": standing.url})
    Standing(url=standing.url, processes={**standing.processes, "worker": Process.of(process.pid)}).write(
        workspace / UP
    )
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        log = workspace / UP / "worker.log"
        _wait(process, log, lambda: name in online(client, POOL), "the worker")
    say(f"worker: started, for the pool '{POOL}'")


def _start(name: str, command: list[str], workspace: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A Python module as a process that outlives this one; what it says goes to a log."""
    with (workspace / UP / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=workspace,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait(process: subprocess.Popen[bytes], log: Path, ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            if process.poll() is None:
                _end(psutil.Process(process.pid))
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            raise FailedError(f"{what} did not start: {(lines or ['it said nothing'])[-1].strip()}; see {log}")
        time.sleep(0.2)


def _end(process: psutil.Process) -> None:
    """SIGTERM, and after a while SIGKILL to it and to what it has started."""
    try:
        family = [process, *process.children(recursive=True)]
        process.terminate()
    except psutil.NoSuchProcess:
        return
    _, left = psutil.wait_procs(family, timeout=_END_SECONDS)
    for each in left:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=_END_SECONDS)


def _free_port(url: str) -> int:
    """The port that `up` used before, else that of Prefect's settings (4200, where they say nothing), else any."""
    from prefect.settings import PREFECT_SERVER_API_PORT

    before = [int(url.rsplit(":", 1)[1].partition("/")[0])] if url.startswith("http://127.0.0.1:") else []
    for port in (*before, PREFECT_SERVER_API_PORT.value(), 0):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(listener.getsockname()[1])
    raise AssertionError("the system gives a free port")


def _page(url: str) -> str:
    return url.removesuffix("/api")


def main() -> None:
    """Exit status: 0 done, 1 failed, 2 the user's words are off."""
    parser = argparse.ArgumentParser(prog="forgeline")
    parser.add_argument("what", choices=["up", "down"])
    what = parser.parse_args().what
    with ending():
        if what == "down":
            down(Path.cwd(), print)
            return
        url = up(Path.cwd(), print)
        print(f"for commands of yours: export PREFECT_API_URL={url}\nnow: prefect deployment run {DEPLOYMENT}")


if __name__ == "__main__":
    main()
