"""What becomes of a set that the gate refused: the run says so, and it is kept in the store under a channel of its own.

Runs are whole, on outputs that stages have left: only that these have nothing to do.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from reports import REPORTS, ROW, UTILITY, write_report

from flows.retrain import REFUSED, publish, retrain
from pipeline.delivery import find, list_releases, open_store
from pipeline.delivery.keeping import promote
from pipeline.delivery.pointer import LATEST, Pointer
from pipeline.delivery.settings import PublishSettings
from pipeline.errors import UserError
from pipeline.imageset import Row, write_imageset

REASON = "fidelity.fid: 0.9, needed at most 0.01 worse than 0.1 of toy@ab"
STAGES = """stages:
  probe: {cmd: ls data > list.txt, outs: [list.txt], always_changed: true}
  copy: {cmd: cp list.txt copy.txt, deps: [list.txt], outs: [copy.txt]}
"""


@pytest.fixture
def workspace(empty_repository: Path, tmp_path: Path) -> Path:
    """What the stages leave, in small, in a repository whose stages are others."""
    folder = tmp_path / "workspace"
    shutil.copytree(empty_repository, folder)
    (folder / "dvc.yaml").write_text(STAGES)
    (folder / "data").mkdir()
    for path in REPORTS:
        write_report(folder, path)
    write_report(folder, UTILITY, rows=[ROW | {"verdict": "harms"}])
    (folder / "out/evaluation/synthetic/figures").mkdir()
    (folder / "out/evaluation/synthetic/figures/per_class.csv").write_text("class,agreement\n")
    (folder / "out/model/weights.safetensors").write_bytes(b"weights")
    (folder / "dvc.lock").write_text("{schema: '2.0', stages: {}}\n")
    model = hashlib.sha256(b"weights" + (folder / "out/model/model.json").read_bytes()).hexdigest()
    image = np.zeros((1, 8, 8), np.uint8)
    write_imageset(
        folder / "out/synthetic/imageset",
        (Row(split="train", label=i % 3, image=image + np.uint8(i), path=f"{i}.png", provenance={}) for i in range(9)),
        classes=("a", "b", "c"),
        source={"licence": "CC0", "description": "numbers"},
        resize=None,
        synthetic=True,
        generator={"family": "conditional", "model_sha256": model, "data_fingerprint": "cd" * 32},
    )
    return folder


@flow
def published(workspace: Path, refusal: str | None) -> Any:
    """The task in a flow of its own, as its log needs one."""
    url = str(workspace / "sets")
    return publish(workspace, url, PublishSettings(url=url, name="toy"), refusal, return_state=True).result()


def test_a_refused_set_is_kept_marked_and_explained_and_can_be_promoted_by_hand(
    workspace: Path, prefect_server: str
) -> None:
    url = str(workspace / "sets")
    made = published(workspace, REASON)
    assert made.new
    pointer = Pointer.read(open_store(url), "toy", REFUSED)
    assert pointer is not None
    assert (pointer.version, pointer.moves[0].why) == (made.version, REASON)
    with pytest.raises(UserError, match="has no published version yet"):
        find(f"{url}/toy")
    assert [release.channels for release in list_releases(open_store(url))] == [(REFUSED,)]
    promote(f"{url}/toy@{REFUSED}", why="I looked at it")
    assert find(f"{url}/toy").manifest.version == made.version


def test_a_set_that_passes_later_becomes_the_latest(workspace: Path, prefect_server: str) -> None:
    url = str(workspace / "sets")
    refused, passed = published(workspace, REASON), published(workspace, None)
    assert passed.version == refused.version
    assert find(f"{url}/toy").manifest.version == passed.version


def settings(workspace: Path, url: str | None, **gate: object) -> None:
    content = {"publish": {"url": url, "name": "toy"}, "run": {"gate": gate}}
    (workspace / "params.yaml").write_text(json.dumps(content))


def run(workspace: Path) -> State[Any]:
    """A scheduled run, as far as it came."""
    state: State[Any] = retrain(workspace, scheduled=True, return_state=True)
    return state


NEEDED = "harms nowhere or helps somewhere"
HARMS = f"utility: harms with 100 %, needed {NEEDED}"


def test_a_run_whose_set_is_refused_says_so_with_every_demand_and_publishes_nothing_as_the_latest(
    workspace: Path, prefect_server: str
) -> None:
    settings(workspace, "sets")
    state = run(workspace)
    assert (state.name, state.is_completed(), state.message) == ("Refused", True, HARMS)
    assert state.result().refusal == HARMS
    with get_client(sync_client=True) as client:
        wanted = {
            "artifacts": {"flow_run_id": {"any_": [str(state.state_details.flow_run_id)]}, "key": {"any_": ["gate"]}}
        }
        (artifact,) = client.request("POST", "/artifacts/filter", json=wanted).json()
    assert artifact["description"] == f"against no champion; refused: {HARMS}"
    rows = {row["demand"]: row for row in json.loads(artifact["data"])}
    assert rows["utility"] == {"demand": "utility", "holds": False, "found": "harms with 100 %", "needed": NEEDED}
    assert {tuple(row) for row in rows.values()} == {("demand", "holds", "found", "needed")}
    assert [row["holds"] for name, row in rows.items() if name != "utility"] == [True] * 2
    pointer = Pointer.read(open_store(str(workspace / "sets")), "toy", REFUSED)
    assert pointer is not None
    assert pointer.moves[0].why == HARMS
    assert Pointer.read(open_store(str(workspace / "sets")), "toy") is None


def test_a_refused_set_is_looked_at_again_when_the_gate_demands_something_else(
    workspace: Path, prefect_server: str
) -> None:
    settings(workspace, "sets")
    assert [run(workspace).name for _ in range(2)] == ["Refused", "Nothing new"]
    settings(workspace, "sets", utility="any")
    assert [run(workspace).name for _ in range(2)] == ["Completed", "Nothing new"]
    (release,) = list_releases(open_store(str(workspace / "sets")))
    assert set(release.channels) == {LATEST, REFUSED}


def test_a_set_that_was_published_nowhere_is_published_when_there_is_a_place_for_it(
    workspace: Path, prefect_server: str
) -> None:
    settings(workspace, None, utility="any")
    assert [run(workspace).name for _ in range(2)] == ["Completed", "Nothing new"]
    settings(workspace, "sets", utility="any")
    published = run(workspace).result().published
    assert find(f"{workspace}/sets/toy").manifest.version == published.version
