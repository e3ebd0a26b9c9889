"""infra/prefect.yaml and prefect-remote.yaml deploy the flows as their comments say."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists
from prefect.flows import load_flow_from_entrypoint
from ruamel.yaml import YAML

from flows.telling import SILENT_SECONDS
from pipeline.running import HEARTBEAT_SECONDS, PATIENCE_SECONDS, POOL, REMOTE_DEPLOYMENT, REMOTE_POOL, RETRIES

ROOT = Path(__file__).parents[2]


def test_the_deployment_waits_for_its_schedule_and_runs_one_at_a_time(
    prefect_server: str, prefect_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with get_client(sync_client=True) as client:
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        subprocess.run(
            [sys.executable, "-m", "prefect", "deploy", "--prefect-file", "infra/prefect.yaml", "--all"],
            cwd=ROOT,
            env=os.environ | {"PREFECT_API_URL": prefect_server},
            check=True,
            capture_output=True,
        )
        deployment = client.read_deployment_by_name("retrain/nightly")
    assert deployment.work_pool_name == "forgeline"
    assert [(schedule.schedule.cron, schedule.active) for schedule in deployment.schedules] == [("0 2 * * *", False)]
    assert deployment.global_concurrency_limit is not None
    assert deployment.global_concurrency_limit.limit == 1
    settings = deployment.parameter_openapi_schema["properties"]
    assert {name: "description" in setting for name, setting in settings.items()} == {
        "workspace": True,
        "publish_url": True,
        "scheduled": True,
    }
    assert deployment.parameters == {"scheduled": True}
    assert deployment.entrypoint == "flows/retrain.py:retrain"
    monkeypatch.chdir(ROOT)
    assert load_flow_from_entrypoint(deployment.entrypoint).name == "retrain"


def test_the_file_for_other_machines_deploys_what_needs_no_clone_there(prefect_server: str, prefect_home: Path) -> None:
    with get_client(sync_client=True) as client:
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=REMOTE_POOL, type="process"))
        subprocess.run(
            [sys.executable, "-m", "prefect", "deploy", "--prefect-file", "infra/prefect-remote.yaml", "--all"],
            cwd=ROOT,
            env=os.environ | {"PREFECT_API_URL": prefect_server},
            check=True,
            capture_output=True,
        )
        deployment = client.read_deployment_by_name(REMOTE_DEPLOYMENT)
    assert deployment.work_pool_name == REMOTE_POOL
    assert not deployment.pull_steps
    settings = deployment.parameter_openapi_schema["properties"]
    assert all("description" in setting for setting in settings.values())
    assert deployment.entrypoint is not None
    assert load_flow_from_entrypoint(deployment.entrypoint).name == "elsewhere"


@pytest.mark.parametrize("file", ["prefect.yaml", "prefect-remote.yaml"])
def test_a_run_that_waits_for_the_server_is_not_taken_for_a_silent_one(file: str) -> None:
    (deployment,) = YAML(typ="safe").load(ROOT / "infra" / file)["deployments"]
    environment = deployment["work_pool"]["job_variables"]["env"]
    retries, heartbeat = (
        int(environment[name]) for name in ("PREFECT_CLIENT_MAX_RETRIES", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY")
    )
    assert (retries, heartbeat) == (RETRIES, HEARTBEAT_SECONDS)  # as `forgeline run` has it too
    waits = [2 * 2**retry for retry in range(retries)]
    assert sum(waits) == PATIENCE_SECONDS
    longest = 1.2 * sum(waits)  # Prefect's jitter
    assert longest + 3 * heartbeat < SILENT_SECONDS < 2 * longest
