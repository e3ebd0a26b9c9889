"""`forgeline up` and `down` as their own processes: a real server and worker on loopback, a workspace of one stage.

The tests share them and build on each other, in the order in which they stand.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort, LogSort
from prefect.events import Event
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_API_PORT, temporary_settings
from prefect.states import Cancelling, Completed, Running, Scheduled
from processes import kill_all, wait_for

from flows.telling import automate
from flows.up import Process, Standing, _free_port
from pipeline.doctor import prefect_answers
from pipeline.running import REMOTE_DEPLOYMENT, REMOTE_POOL, UP

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 300  # on a busy machine


def stages(folder: Path, one: str = "echo > one.txt") -> str:
    """Wherever they run, `folder` says whether the first one waits, and is told that it does."""
    one = f"if test -e {folder}/wait; then echo $$ > {folder}/pid; sleep 600; fi; {one}"
    two = "if test -e broken; then echo it broke; exit 3; fi"
    return (
        f"stages:\n  one: {{cmd: '{one}', deps: [given], outs: [one.txt]}}\n"
        f"  two: {{cmd: '{two}', always_changed: true}}\n"
    )


def port_of_its_own() -> int:
    """A free port that the system gives to nobody who asks for any: it is still free between `down` and `up`."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.sample(range(first // 2, first), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("a hundred ports are taken")


class Machine:
    """A workspace with code of its own, which does not change under the tests when that of the checkout does."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_API")},
            "PREFECT_HOME": str(home),
            "PREFECT_SERVER_API_PORT": str(port_of_its_own()),
            "PYTHONPATH": str(folder),
            "COLUMNS": "200",
            "PREFECT_WORKER_HEARTBEAT_SECONDS": "10",  # a worker that is gone is missed after three
        }

    def forgeline(self, *words: str, status: int = 0) -> str:
        ended = subprocess.run(
            [sys.executable, "-m", "pipeline", *words],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert ended.returncode == status, ended.stdout
        assert "Traceback" not in ended.stdout
        return ended.stdout

    def log(self, name: str) -> str:
        """Of the server or the worker, since it was started."""
        return (self.folder / UP / f"{name}.log").read_text()

    def change(self, one: str) -> None:
        """The command of the stage `one`, committed."""
        (self.folder / "dvc.yaml").write_text(stages(self.folder, one))
        for words in (["add", "--all"], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", "t"]):
            subprocess.run(["git", *words], cwd=self.folder, check=True)

    def standing(self) -> Standing:
        found = Standing.read(self.folder / UP)
        assert found is not None
        return found

    def processes(self) -> dict[str, psutil.Process | None]:
        return {name: process.find() for name, process in self.standing().processes.items()}

    def set(self, run: dict[str, Any]) -> None:
        """The section `run` of params.yaml."""
        (self.folder / "params.yaml").write_text(f"publish: {{url: null, name: toy}}\nrun: {json.dumps(run)}\n")


def make_machine(empty_repository: Path, database: Path, root: Path) -> Machine:
    folder, home = root / "workspace", root / "home"
    shutil.copytree(empty_repository, folder)
    (folder / "dvc.yaml").write_text(stages(folder))
    (folder / "given").write_text("for one\n")
    for package in ("flows", "pipeline"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "infra").mkdir()
    for name in ("prefect.yaml", "prefect-remote.yaml"):
        shutil.copy(ROOT / "infra" / name, folder / "infra")
    home.mkdir()
    shutil.copy(database, home)
    found = Machine(folder, home)
    found.set({"cron": "0 3 * * 1", "timezone": "Europe/Berlin"})
    return found


@pytest.fixture(scope="module")
def machine(
    empty_repository: Path, prefect_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    found = make_machine(empty_repository, prefect_database, tmp_path_factory.mktemp("machine"))
    yield found
    for process in found.processes().values() if (found.folder / UP).exists() else ():
        if process:
            process.kill()


class Hook:
    """A webhook on loopback that keeps what it is told."""

    def __init__(self) -> None:
        texts = self.texts = list[str]()

        class Takes(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                texts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Takes)
        self.url = f"http://127.0.0.1:{self.server.server_port}/marked-hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def heard(self, run: str) -> str | None:
        return next((text for text in self.texts if run in text), None)

    def told(self, run: str) -> str:
        """What it was told of the run, as soon as it was."""
        return wait_for(lambda: self.heard(run))


@pytest.fixture(scope="module")
def hook() -> Iterator[Hook]:
    found = Hook()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def client(machine: Machine) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: machine.standing().url}), get_client(sync_client=True) as client:
        yield client


def ended(client: SyncPrefectClient, run: UUID, meanwhile: Callable[[], None] = lambda: None) -> FlowRun:
    def find() -> FlowRun | None:
        meanwhile()
        found = client.read_flow_run(run)
        return found if found.state and found.state.is_final() else None

    return wait_for(find)


def test_what_is_wrong_is_told_before_anything_starts(machine: Machine) -> None:
    machine.set({"cron": "at night"})
    assert machine.forgeline("up", status=2) == (
        "forgeline: params.yaml: run.cron is 'at night' in the time zone 'UTC'; needed five fields such as "
        "'0 2 * * *', and a zone such as UTC or Europe/Berlin\n"
    )
    machine.set({"crom": "0 3 * * 1"})
    assert "run.crom is not a setting; did you mean 'cron'?" in machine.forgeline("up", status=2)
    assert not (machine.folder / UP).exists()
    assert machine.forgeline("down") == "nothing that 'forgeline up' started here runs\n"
    machine.set({"cron": "0 3 * * 1", "timezone": "Europe/Berlin"})


def test_up_starts_server_worker_and_deployment_and_says_where(machine: Machine) -> None:
    told = machine.forgeline("up")
    page = machine.standing().url.removesuffix("/api")
    assert f"server: started, its page is {page}\n" in told
    assert "deployment: retrain/nightly, runs at '0 3 * * 1' Europe/Berlin\n" in told
    assert "worker: started, for the pool 'forgeline'\n" in told
    assert None not in machine.processes().values()


def test_up_again_changes_nothing_but_what_params_yaml_says_by_now(machine: Machine, client: SyncPrefectClient) -> None:
    before = machine.standing()
    deployment = client.read_deployment_by_name("retrain/nightly")
    assert [(each.schedule.cron, each.active) for each in deployment.schedules] == [("0 3 * * 1", True)]
    machine.set({})
    told = machine.forgeline("up")
    assert re.findall(r"^(\w+): (?:runs already|retrain/nightly, no schedule)", told, re.MULTILINE) == [
        "server",
        "deployment",
        "worker",
    ]
    assert machine.standing() == before
    again = client.read_deployment_by_name("retrain/nightly")
    assert again.id == deployment.id
    assert [each.active for each in again.schedules] == [False]


def test_it_is_told_when_the_last_worker_is_gone(machine: Machine, client: SyncPrefectClient, hook: Hook) -> None:
    machine.environment["FORGELINE_WEBHOOK"] = hook.url
    machine.forgeline("up")
    del machine.environment["FORGELINE_WEBHOOK"]
    (told,) = client.read_automations_by_name("forgeline: failed")
    deployment = client.read_deployment_by_name("retrain/nightly").id
    automate(client, [deployment], told.actions[0].block_document_id, no_worker_seconds=10)
    worker = machine.processes()["worker"]
    assert worker is not None
    worker.kill()
    assert hook.told("'forgeline up' starts one").startswith("Forgeline: no worker\n")
    assert "worker: started" in machine.forgeline("up")


def test_late_runs_do_not_pile_up(machine: Machine, client: SyncPrefectClient) -> None:
    (machine.folder / "wait").touch()
    deployment = client.read_deployment_by_name("retrain/nightly")
    yesterday = Scheduled(scheduled_time=datetime.now(UTC) - timedelta(days=1))
    runs = [client.create_flow_run_from_deployment(deployment.id, state=yesterday).id for _ in range(3)]

    def two_are_cancelled() -> list[UUID] | None:
        names = {run: client.read_flow_run(run).state_name for run in runs}
        running = [run for run, name in names.items() if name == "Running"]
        return running if sorted(names.values()) == ["Cancelled", "Cancelled", "Running"] else None

    (running,) = wait_for(two_are_cancelled)
    wait_for(lambda: True if (machine.folder / "pid").exists() else None)
    assert client.read_flow_run(running).deployment_id == deployment.id


def test_down_ends_the_run_the_worker_and_the_server(machine: Machine) -> None:
    stage = psutil.Process(int((machine.folder / "pid").read_text()))
    processes = [process for process in machine.processes().values() if process]
    assert machine.forgeline("down") == "worker: ended\nserver: ended\n"
    assert psutil.wait_procs([stage, *processes], timeout=10)[1] == []
    assert re.findall("Crash|Traceback", machine.log("worker")) == []
    assert machine.forgeline("down") == "nothing that 'forgeline up' started here runs\n"
    (machine.folder / "wait").unlink()


def test_up_after_down_has_the_same_page_and_history_and_says_who_is_told(machine: Machine, hook: Hook) -> None:
    page = machine.standing().url
    machine.environment["FORGELINE_WEBHOOK"] = hook.url
    told = machine.forgeline("up")
    assert machine.standing().url == page
    assert "told of the end of runs: the webhook of $FORGELINE_WEBHOOK" in told
    assert hook.url not in told


def test_up_from_a_shell_without_the_webhook_still_tells_it(machine: Machine, client: SyncPrefectClient) -> None:
    """The tests below see that it does."""
    del machine.environment["FORGELINE_WEBHOOK"]
    assert "told of the end of runs: the webhook of $FORGELINE_WEBHOOK" in machine.forgeline("up")
    assert {each.name for each in client.read_automations()} == {
        f"forgeline: {what}" for what in ("silent", "no worker", "failed", "refused", "done")
    }


def test_the_run_that_down_ended_waited_for_the_next_up(
    machine: Machine, client: SyncPrefectClient, hook: Hook
) -> None:
    (run,) = [run for run in client.read_flow_runs() if run.state_name != "Cancelled"]
    assert run.state_name in ("AwaitingRetry", "Pending", "Running", "Completed")
    assert ended(client, run.id).state_name == "Completed"
    assert "Crashed" not in {state.name for state in client.read_flow_run_states(run.id)}
    assert hook.told(run.name).startswith("Forgeline: done\n")  # though this server never saw how the run waited for it
    assert [text for text in hook.texts if text.startswith("Forgeline: failed\n")] == []


def logs_of(client: SyncPrefectClient, run: FlowRun) -> list[str]:
    """What the page of the run says."""
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
    return [log.message for log in client.read_logs(wanted, sort=LogSort.TIMESTAMP_ASC)]


def test_success_is_told(machine: Machine, client: SyncPrefectClient, hook: Hook) -> None:
    (machine.folder / "given").write_text("for one again\n")
    deployment = client.read_deployment_by_name("retrain/nightly")
    run = client.create_flow_run_from_deployment(deployment.id)
    assert ended(client, run.id).state_name == "Completed"
    assert (machine.folder / "one.txt").exists()
    assert hook.told(run.name).startswith(f"Forgeline: done\nretrain {run.name}: publish.url names no place\n")


def test_the_schedule_of_params_yaml_makes_runs_that_run_and_are_told_of(
    machine: Machine, client: SyncPrefectClient, hook: Hook
) -> None:
    """At once: Prefect waits a quarter of an hour where a run was scheduled less than five minutes before."""
    (machine.folder / "given").write_text("for the schedule\n")
    machine.set({"cron": "* * * * *"})
    machine.forgeline("up")

    def by_the_schedule() -> FlowRun | None:
        """A run of it that has begun and made something."""
        runs = [run for run in client.read_flow_runs() if run.auto_scheduled and run.state_name == "Completed"]
        return runs[0] if runs else None

    run = wait_for(by_the_schedule)
    assert run.deployment_id == client.read_deployment_by_name("retrain/nightly").id
    machine.set({})
    machine.forgeline("up")
    assert hook.told(run.name).startswith("Forgeline: done\n")
    # What was still to come is gone, what had begun comes to its end, and is not in the way of the next.
    wait_for(lambda: all(run.state and run.state.is_final() for run in client.read_flow_runs()) or None)
    # Once, or again in the same words: Prefect looks at an event anew where its database was locked meanwhile.
    assert len({text for text in hook.texts if run.name in text}) == 1


def test_failure_is_told_with_its_reason(machine: Machine, client: SyncPrefectClient, hook: Hook) -> None:
    (machine.folder / "broken").touch()
    deployment = client.read_deployment_by_name("retrain/nightly")
    run = client.create_flow_run_from_deployment(deployment.id)
    assert ended(client, run.id).state_name == "Failed"
    assert hook.told(run.name).startswith(f"Forgeline: failed\nretrain {run.name}: stage 'two': it broke\n")
    (machine.folder / "broken").unlink()
    last = wait_for(lambda: next((log for log in logs_of(client, run) if log == "stage 'two': it broke"), None))
    (where,) = [log for log in logs_of(client, run) if log.startswith("stage 'two' failed; ")]
    task = client.read_task_run(UUID(where.rpartition("/")[2]))
    assert (task.name, task.state_name) == ("two", "Failed")
    for log in ("\n".join(logs_of(client, run)), machine.log("worker")):
        assert last in log
        assert re.findall("Traceback|NoneType", log) == []


def test_a_mistake_in_params_yaml_is_a_sentence_and_one_of_ours_keeps_its_traceback(
    machine: Machine, client: SyncPrefectClient
) -> None:
    deployment = client.read_deployment_by_name("retrain/nightly")
    machine.set({"crom": "0 3 * * 1"})
    run = ended(client, client.create_flow_run_from_deployment(deployment.id).id)
    machine.set({})
    assert run.state is not None
    assert (run.state.name, run.state.message) == (
        "Failed",
        "params.yaml: run.crom is not a setting; did you mean 'cron'?",
    )
    wait_for(lambda: run.state.message in logs_of(client, run) or None)
    assert "Traceback" not in machine.log("worker")
    flow = machine.folder / "flows" / "retrain.py"
    code = flow.read_text()
    flow.write_text(code.replace("    graph = read_stages(workspace)\n", "    graph = read_stages(workspace)[1000]\n"))
    run = ended(client, client.create_flow_run_from_deployment(deployment.id).id)
    flow.write_text(code)
    assert run.state_name == "Failed"
    wait_for(lambda: "in _retrain\n    graph = read_stages(workspace)[1000]" in machine.log("worker") or None)


def test_a_refusal_is_told_with_its_reason(client: SyncPrefectClient, hook: Hook) -> None:
    """That a flow ends so is tested in test_refused.py: here the server learns of such an end."""
    deployment = client.read_deployment_by_name("retrain/nightly")
    run = client.create_flow_run_from_deployment(deployment.id, state=Running())
    client.set_flow_run_state(run.id, Completed(name="Refused", message="utility harms"), force=True)
    assert hook.told(run.name).startswith(f"Forgeline: refused\nretrain {run.name}: utility harms\n")


@contextmanager
def remote_worker(machine: Machine, command: str, folder: Path) -> Iterator[None]:
    """What `command` starts, as another machine has it: with a cache and settings of its own."""
    environment = machine.environment | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "FORGELINE_CACHE": str(folder / "cache"),
    }
    with (folder / "log").open("wb") as log:
        worker = psutil.Popen(["sh", "-c", f"exec env {command}"], cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        yield
    finally:
        kill_all(worker)


def says_that_it_waits(client: SyncPrefectClient) -> bool:
    return any("no worker of it is online" in log.message for log in client.read_logs(sort=LogSort.TIMESTAMP_DESC))


@pytest.fixture(scope="module")
def remotes(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> None:
    """All that a machine elsewhere shares with this one."""
    folder = tmp_path_factory.mktemp("remotes")
    for words in (
        ["git", "init", "--quiet", "--bare", str(folder / "git")],
        ["git", "remote", "add", "origin", str(folder / "git")],
        [sys.executable, "-m", "dvc", "remote", "add", "--quiet", "--default", "store", str(folder / "dvc")],
    ):
        subprocess.run(words, cwd=machine.folder, check=True)


def test_a_deployment_for_a_pool_of_another_type_is_left_as_it_is(machine: Machine, client: SyncPrefectClient) -> None:
    pool = client.create_work_pool(WorkPoolCreate(name=REMOTE_POOL, type="docker"))
    machine.set({"remote_stages": ["one"]})
    left = (
        f"deployment: {REMOTE_DEPLOYMENT} is left as it is, as the pool '{REMOTE_POOL}' is of type docker: "
        "prefect deploy --prefect-file infra/prefect-image.yaml --all --job-variable image=IMAGE\n"
    )
    told = machine.forgeline("up")
    assert left in told
    assert f"prefect worker start --pool {REMOTE_POOL} --install-policy if-not-present\n" in told
    name, _, deployment = REMOTE_DEPLOYMENT.partition("/")
    flow = client.create_flow_from_name(name)
    made = client.create_deployment(flow, deployment, entrypoint="of/an/image.py:it", work_pool_name=REMOTE_POOL)
    assert left in machine.forgeline("up")
    assert client.read_deployment(made).entrypoint == "of/an/image.py:it"
    (silent,) = client.read_automations_by_name("forgeline: silent")
    assert str(made) in str(silent.trigger)
    client.delete_deployment(made)
    client.delete_work_pool(pool.name)


def test_remote_stages_wait_for_the_worker_that_up_says_how_to_start(
    machine: Machine, client: SyncPrefectClient, remotes: None, tmp_path: Path
) -> None:
    machine.change("pwd > one.txt")
    machine.set({"remote_stages": ["one"]})
    told = machine.forgeline("up")
    found = re.search(r"^remote stages: one, as soon as a worker is there: (.+)$", told, re.MULTILINE)
    assert found is not None
    port = machine.standing().url.rsplit(":", 1)[1].partition("/")[0]
    assert f"'ssh -N -R {port}:127.0.0.1:{port} MACHINE'" in told
    deployment = client.read_deployment_by_name("retrain/nightly")
    run = client.create_flow_run_from_deployment(deployment.id)
    wait_for(lambda: says_that_it_waits(client) or None)
    with remote_worker(machine, found[1], tmp_path):
        assert ended(client, run.id).state_name == "Completed"
        assert re.search(r"^remote stages: one, by the worker \S", machine.forgeline("up"), re.MULTILINE)
    assert (machine.folder / "one.txt").read_text().startswith(str(tmp_path / "cache"))


def test_a_run_that_is_cancelled_ends_its_remote_stage_too(
    machine: Machine, client: SyncPrefectClient, remotes: None, tmp_path: Path
) -> None:
    written = machine.folder / "pid"
    written.unlink()
    (machine.folder / "wait").touch()
    machine.change("echo cancelled > one.txt")
    command = f"PREFECT_API_URL={machine.standing().url} python -m flows.work --pool {REMOTE_POOL}"
    deployment = client.read_deployment_by_name("retrain/nightly")
    with remote_worker(machine, command, tmp_path):
        run = client.create_flow_run_from_deployment(deployment.id)

        def begun() -> str | None:
            state = client.read_flow_run(run.id).state
            assert state is None or not state.is_final(), state
            return (written.exists() and written.read_text()) or None

        stage = psutil.Process(int(wait_for(begun)))
        client.set_flow_run_state(run.id, Cancelling())
        assert ended(client, run.id).state_name == "Cancelled"
        assert psutil.wait_procs([stage], timeout=PATIENCE_SECONDS)[1] == []
        (elsewhere,) = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)
        assert ended(client, elsewhere.id).state_name == "Cancelled"
    (machine.folder / "wait").unlink()
    machine.set({})
    machine.forgeline("up")


def test_down_in_the_middle_of_a_remote_stage_is_quiet_and_after_the_next_up_the_run_goes_on(
    machine: Machine, client: SyncPrefectClient, remotes: None, tmp_path: Path
) -> None:
    written = machine.folder / "pid"
    written.unlink(missing_ok=True)
    machine.change("echo ended > one.txt")
    (machine.folder / "wait").touch()  # after the commit, so that it can go away without another
    machine.set({"remote_stages": ["one"]})
    machine.forgeline("up")
    command = (
        f"PREFECT_API_URL={machine.standing().url} PREFECT_WORKER_HEARTBEAT_SECONDS=1 "
        "PREFECT_CLIENT_MAX_RETRIES=9 "  # its requests fail only after a quarter of an hour, and it says so at once
        f"python -m flows.work --pool {REMOTE_POOL}"
    )
    deployment, before = client.read_deployment_by_name("retrain/nightly"), len(machine.log("worker"))
    with remote_worker(machine, command, tmp_path):
        run = client.create_flow_run_from_deployment(deployment.id)
        stage = psutil.Process(int(wait_for(lambda: (written.exists() and written.read_text()) or None)))
        assert machine.forgeline("down") == "worker: ended\nserver: ended\n"
        assert psutil.wait_procs([stage], timeout=PATIENCE_SECONDS)[1] == []
        assert re.findall("Crash|Traceback", machine.log("worker")[before:]) == []
        (machine.folder / "wait").unlink()
        away = f"the server at {machine.standing().url} is away: asks again until it is there"
        wait_for(lambda: away in (tmp_path / "log").read_text() or None)
        machine.forgeline("up")
        assert ended(client, run.id).state_name == "Completed"
        log = (tmp_path / "log").read_text()
        assert re.findall("Crash|Traceback", log) == []
        assert (log.count(away), log.count("the server is there again")) == (1, 1)
    assert (machine.folder / "one.txt").read_text() == "ended\n"
    machine.set({})
    machine.forgeline("up")


def test_a_run_that_is_silent_is_ended_and_told_of(machine: Machine, client: SyncPrefectClient, hook: Hook) -> None:
    """One of a stage that was handed over is ended too; who waited for it tells."""
    machine.set({"remote_stages": ["one"]})
    machine.forgeline("up")
    names = ("retrain/nightly", REMOTE_DEPLOYMENT)
    deployments = [client.read_deployment_by_name(name).id for name in names]
    (silent,) = client.read_automations_by_name("forgeline: silent")
    assert [str(each) in str(silent.trigger) for each in deployments] == [True, True]
    (told,) = client.read_automations_by_name("forgeline: failed")
    automate(client, deployments, told.actions[0].block_document_id, silent_seconds=10)
    runs = []
    for name, deployment in zip(names, deployments, strict=True):
        parameters = {} if name == "retrain/nightly" else dict.fromkeys(STAGE_PARAMETERS, "")
        run = client.create_flow_run_from_deployment(deployment, state=Running(), parameters=parameters)
        state = ended(client, run.id, SignsOfLife(client, run.id, deployment)).state
        assert state is not None
        assert (state.name, state.message) == ("Crashed", "silent for 10 seconds: its machine or its process is gone")
        runs.append(run)
    assert hook.told(runs[0].name).startswith("Forgeline: failed\n")


class SignsOfLife:
    """Of a run whose machine is then gone, and again after a minute.

    Prefect's server says that an automation is changed before it goes by it: signs between are waited upon as before.
    They go by the client, as `emit_event` sends to the server that the process knew first, which may be another test's.
    """

    def __init__(self, client: SyncPrefectClient, run: UUID, deployment: UUID) -> None:
        self.client, self.next = client, 0.0
        self.event = {
            "event": "prefect.flow-run.heartbeat",
            "resource": {"prefect.resource.id": f"prefect.flow-run.{run}"},
            "related": [
                {"prefect.resource.id": f"prefect.deployment.{deployment}", "prefect.resource.role": "deployment"}
            ],
        }

    def __call__(self) -> None:
        if time.monotonic() < self.next:
            return
        self.next = time.monotonic() + 60
        self.client.request("POST", "/events", json=[Event.model_validate(self.event).model_dump(mode="json")])


STAGE_PARAMETERS = ("stage", "repository", "commit", "folder", "params", "lock")


def test_the_address_of_the_webhook_is_in_no_log_and_not_readable_in_the_database(machine: Machine, hook: Hook) -> None:
    machine.forgeline("down")
    home = Path(machine.environment["PREFECT_HOME"])
    files = [path for root in (machine.folder, home) for path in root.rglob("*") if path.is_file()]
    assert [path for path in files if b"marked-hook" in path.read_bytes()] == []


def test_up_for_a_server_that_several_machines_have_starts_none(
    empty_repository: Path, prefect_database: Path, prefect_server: str, tmp_path: Path
) -> None:
    machine = make_machine(empty_repository, prefect_database, tmp_path)
    machine.environment["PREFECT_API_URL"] = prefect_server
    told = machine.forgeline("up")
    assert f"server: that of PREFECT_API_URL, its page is {prefect_server.removesuffix('/api')}\n" in told
    try:
        assert (machine.standing().url, list(machine.processes())) == (prefect_server, ["worker"])
        assert "worker: runs already" in machine.forgeline("up")
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name("retrain/nightly")
            assert [(each.schedule.cron, each.active) for each in deployment.schedules] == [("0 3 * * 1", True)]
            assert len(client.read_automations_by_name("forgeline: silent")) == 1
            client.delete_deployment(deployment.id)
    finally:
        assert machine.forgeline("down") == "worker: ended\n"
    assert prefect_answers(prefect_server)


def test_the_port_is_that_of_prefects_settings_where_it_is_free() -> None:
    port, before = port_of_its_own(), port_of_its_own()
    with temporary_settings({PREFECT_SERVER_API_PORT: port}):
        with socket.create_server(("127.0.0.1", port)):
            assert _free_port("") != port
        assert _free_port("") == port
        assert _free_port(f"http://127.0.0.1:{before}/api") == before


@pytest.fixture
def process() -> Iterator[Process]:
    with subprocess.Popen(["sleep", "600"]) as started:
        yield Process.of(started.pid)
        started.kill()


def test_a_process_is_found_though_the_clock_was_set(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's time of its boot moves with the clock, and by it what psutil says of when a process began."""
    before = psutil.Process(process.pid).create_time()
    booted = psutil.boot_time()
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: booted + 3600)
    assert psutil.Process(process.pid).create_time() == pytest.approx(before + 3600)
    found = process.find()
    assert found is not None
    assert found.pid == process.pid


def test_another_process_of_the_same_id_is_not_taken_for_it(process: Process) -> None:
    boot, ticks = process.began.split()
    assert Process(pid=process.pid, began=f"{boot} {int(ticks) - 1}").find() is None
    assert Process(pid=process.pid, began=f"{boot[::-1]} {ticks}").find() is None
