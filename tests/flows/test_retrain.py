"""The flow on a real Prefect server: what its client reads there afterwards is what happened."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.sorting import TaskRunSort
from reports import INTERVAL, METRICS, ROW, UTILITY, write_report

from flows.artifacts import SAMPLES
from flows.retrain import RunResult, retrain
from pipeline.errors import UserError

Workspace = Callable[[str], Path]

STAGES = """
  last: {cmd: cp b.txt c.txt, deps: [b.txt], outs: [c.txt]}
  middle: {cmd: ./middle.sh, deps: [a.txt, middle.sh], outs: [b.txt]}
  probe: {cmd: echo a > a.txt, outs: [a.txt], always_changed: true}
"""


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def three_stages(workspace: Workspace) -> Workspace:
    def make(middle: str) -> Path:
        folder = workspace(STAGES)
        script = folder / "middle.sh"
        script.write_text(f"#!/bin/sh\n{middle}\n")
        script.chmod(0o755)
        return folder

    return make


def tasks_of(client: SyncPrefectClient, run: FlowRun, expected: dict[str, str]) -> dict[str, str | None]:
    """The names of the run's tasks, and of the states that they ended in, as soon as they are the expected ones.

    A server writes down what became of tasks a moment after it was told.
    """
    for _ in range(100):
        tasks = client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])),
            sort=TaskRunSort.END_TIME_DESC,
            limit=100,
        )
        found = {task.name: task.state_name for task in tasks}
        if found == expected:
            break
        time.sleep(0.1)
    return found


def flow_run_of(client: SyncPrefectClient, state: State[Any]) -> FlowRun:
    assert state.state_details.flow_run_id is not None
    return client.read_flow_run(state.state_details.flow_run_id)


def test_stages_run_in_the_order_of_the_graph_and_the_second_time_only_the_probe(
    three_stages: Workspace, client: SyncPrefectClient
) -> None:
    folder = three_stages("cp a.txt b.txt")
    states = [retrain(folder, return_state=True) for _ in range(2)]
    first, second = (state.result() for state in states)
    assert isinstance(first, RunResult)
    assert [(run.stage, run.outcome) for run in first.stages] == [
        ("probe", "ran"),
        ("middle", "ran"),
        ("last", "ran"),
    ]
    assert [run.outcome for run in second.stages] == ["ran", "unchanged", "unchanged"]
    assert (folder / "c.txt").read_text() == "a\n"
    runs = [flow_run_of(client, state) for state in states]
    assert [run.state_name for run in runs] == ["Completed", "Completed"]
    again = {"probe": "Completed", "middle": "Skipped", "last": "Skipped", "publish": "Skipped"}
    assert tasks_of(client, runs[1], again) == again


def test_a_failed_stage_fails_the_flow_with_its_own_sentence_and_stops_it(
    three_stages: Workspace, client: SyncPrefectClient
) -> None:
    folder = three_stages("echo forgeline: params.yaml: middle.size is 0 >&2; exit 2")
    state = retrain(folder, return_state=True)
    with pytest.raises(UserError, match=r"^stage 'middle': params.yaml: middle.size is 0$"):
        state.result()
    run = flow_run_of(client, state)
    assert (run.state_name, run.state.message) == ("Failed", "stage 'middle': params.yaml: middle.size is 0")
    ended = {"probe": "Completed", "middle": "Failed"}
    assert tasks_of(client, run, ended) == ended
    assert not (folder / "c.txt").exists()


def test_what_was_measured_can_be_read_from_the_server(workspace: Workspace, client: SyncPrefectClient) -> None:
    folder = workspace("  one: {cmd: 'true'}\n")
    (folder / SAMPLES).parent.mkdir(parents=True)
    (folder / SAMPLES).write_bytes(b"\x89PNG samples")
    write_report(folder, METRICS["model"], fidelity={"fid": 1.5, "kid": 0.0003364309353605943})
    write_report(folder, METRICS["synthetic"], fidelity={"fid": 0.5}, images=123_456)
    write_report(folder, UTILITY, rows=[UTILITY_ROW])
    run = flow_run_of(client, retrain(folder, return_state=True))
    wanted = {"artifacts": {"flow_run_id": {"any_": [str(run.id)]}}}
    found = client.request("POST", "/artifacts/filter", json=wanted).json()
    artifacts = {artifact["key"]: artifact["data"] for artifact in found}
    assert {artifact["key"]: artifact["description"].split()[-1] for artifact in found} == {
        "samples": str(SAMPLES),
        "metrics": str(METRICS["synthetic"]),
        "utility": str(UTILITY),
    }
    picture = base64.b64encode(b"\x89PNG samples").decode()
    assert artifacts["samples"] == f"![samples](data:image/png;base64,{picture})"
    assert json.loads(artifacts["metrics"]) == [
        {"metric": "fidelity.fid", "model": 1.5, "synthetic": 0.5},
        {"metric": "fidelity.kid", "model": 0.0003364, "synthetic": None},
        {"metric": "images", "model": None, "synthetic": 123_456},
        {"metric": "memorization.copies", "model": None, "synthetic": 0},
        {"metric": "memorization.nearer_than_percentile_1", "model": None, "synthetic": 0.01},
        {"metric": "memorization_spread.nearer_than_percentile_1", "model": None, "synthetic": 0.002},
        {"metric": "memorization_floor.nearer_than_percentile_1", "model": None, "synthetic": 0.012},
    ]
    assert json.loads(artifacts["utility"]) == [
        {
            "real images": "10% (126)",
            "protocol": "same-data",
            "over real only": "+1.50 [+1.00, +2.00]",
            "over as many images seen": "-0.25 [-0.75, +0.25]",
            "verdict": "no difference",
        }
    ]


def test_what_filling_up_rare_classes_does_stands_above_the_table(
    workspace: Workspace, client: SyncPrefectClient
) -> None:
    folder = workspace("  one: {cmd: 'true'}\n")
    arms = dict.fromkeys(("real", "real_long", "oversampled", "weighted", "filled"), INTERVAL)
    rare = {"images": {"c": 4}, "advised_share": 0.0, "verdict": "helps"}
    rare |= dict.fromkeys(("recall", "recall_gain", "balanced_accuracy", "balanced_accuracy_gain"), arms)
    write_report(folder, UTILITY, rows=[UTILITY_ROW | {"rare": rare}])
    run = flow_run_of(client, retrain(folder, return_state=True))
    wanted = {"artifacts": {"flow_run_id": {"any_": [str(run.id)]}, "key": {"any_": ["utility"]}}}
    (artifact,) = client.request("POST", "/artifacts/filter", json=wanted).json()
    assert artifact["description"].endswith(f", from {UTILITY}; filling up rare classes with 10% helps")
    assert [row["verdict"] for row in json.loads(artifact["data"])] == ["no difference"]


UTILITY_ROW = ROW | {
    "data": "10%",
    "real_images": 126,
    "verdict": "no difference",
    "gain_over_real": {"mean": 1.5, "low": 1.0, "high": 2.0},
    "gain_over_real_long": {"mean": -0.25, "low": -0.75, "high": 0.25},
}


def test_what_a_stage_did_not_write_whole_ends_the_run_with_its_name(
    workspace: Workspace, client: SyncPrefectClient
) -> None:
    folder = workspace("  one: {cmd: 'true'}\n")
    write_report(folder, UTILITY, rows=[{}])
    run = flow_run_of(client, retrain(folder, return_state=True))
    assert run.state_name == "Failed"
    assert (run.state.message or "").startswith(f"{folder / UTILITY}: rows[0].data is missing, empty or of another")


def test_a_remote_stage_that_is_none_is_told_before_anything_runs(three_stages: Workspace, prefect_server: str) -> None:
    folder = three_stages("cp a.txt b.txt")
    (folder / "params.yaml").write_text("publish: {url: null, name: toy}\nrun: {remote_stages: [midle]}\n")
    with pytest.raises(UserError, match=r"^params.yaml: run.remote_stages has 'midle'; did you mean 'middle'\?$"):
        retrain(folder)
    assert not (folder / "a.txt").exists()


def test_a_misspelt_setting_of_a_later_stage_is_told_before_anything_runs(
    workspace: Workspace, prefect_server: str
) -> None:
    folder = workspace("  one: {cmd: echo > one.txt, outs: [one.txt]}\n  augment: {cmd: 'true', deps: [one.txt]}\n")
    (folder / "params.yaml").write_text("publish: {url: null, name: toy}\naugment: {sed: 1}\n")
    with pytest.raises(UserError, match=r"params.yaml: augment.sed is not a setting; did you mean 'seed'\?$"):
        retrain(folder)
    assert not (folder / "one.txt").exists()


def test_a_remote_stage_never_runs_here(three_stages: Workspace, client: SyncPrefectClient) -> None:
    folder = three_stages("cp a.txt b.txt")
    (folder / "params.yaml").write_text("publish: {url: null, name: toy}\nrun: {remote_stages: [middle]}\n")
    state = retrain(folder, return_state=True)
    assert state.is_failed()
    assert state.message == (
        "params.yaml: run.remote_stages names middle; needed a git remote 'origin' that the other machine knows too"
    )
    assert not (folder / "b.txt").exists()
    run = flow_run_of(client, state)
    expected = {"probe": "Completed", "middle": "Failed"}
    assert tasks_of(client, run, expected) == expected
