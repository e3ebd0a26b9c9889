"""The table of how the real images moved, on the page of a scheduled run that began with others."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bars import bars, write_set
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State

from flows.retrain import retrain
from pipeline import paths
from pipeline.params import Document
from pipeline.stages import features

STAGES = """
  probe: {{cmd: echo > list.txt, outs: [list.txt], always_changed: true}}
  set: {{cmd: mkdir -p out && cp -r {made}/$(cat which) out/real, deps: [which, list.txt], outs: [out/real]}}
  judges: {{cmd: cp -r {made}/features out/features, deps: [out/real], outs: [out/features]}}
"""


def table_of(state: State[Any]) -> dict[str, tuple[str, str]] | None:
    """Before and now by row, of the artifact `drift` of the run; None where it has none."""
    wanted = {"flow_run_id": {"any_": [str(state.state_details.flow_run_id)]}, "key": {"any_": ["drift"]}}
    with get_client(sync_client=True) as client:
        found = client.request("POST", "/artifacts/filter", json={"artifacts": wanted}).json()
    return {row["what"]: (row["before"], row["now"]) for row in json.loads(found[0]["data"])} if found else None


def test_a_run_whose_data_are_others_has_a_table_of_what_moved(
    workspace: Callable[[str], Path], prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "made"
    folder = workspace(STAGES.format(made=made))
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    images, labels = bars(240, 1)
    rest = {"validation": bars(30, 5), "test": bars(150, 2)}
    fewer = (images[labels != 2], labels[labels != 2])
    for name, train in {"all": (images, labels), "fewer": fewer}.items():
        write_set(made / name / paths.IMAGESET, {"train": train, **rest}, synthetic=False)
    shutil.copytree(made / "all", tmp_path / paths.REAL)
    features.run(Document({"features": {"images_seen": 1000, "width": 8}}))
    shutil.move(tmp_path / paths.FEATURES, made)

    def run(which: str) -> State[Any]:
        (folder / "which").write_text(which)
        for words in (
            ["add", "--all"],
            ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "--allow-empty", "-qm", "t"],
        ):
            subprocess.run(["git", *words], cwd=folder, check=True)
        state: State[Any] = retrain(folder, scheduled=True, return_state=True)
        assert state.is_completed(), state.message
        return state

    subprocess.run(["git", "checkout", "-q", "-b", "main"], cwd=folder, check=True)
    (folder / ".gitignore").write_text("/out\n/list.txt\n")
    (folder / "params.yaml").write_text(
        "publish: {url: null, name: toy}\nrun: {branch: main, record: nightly, gate: {champion: []}}\n"
    )
    assert table_of(run("all")) is None  # there was nothing before
    table = table_of(run("fewer"))
    assert table is not None
    floor, distance = (float(value) for value in table.pop("Fréchet distance in features (before: of two halves)"))
    assert 0 < floor < distance
    assert table == {
        "images, train": ("240", "160"),
        "images, validation": ("30", "30"),
        "images, test": ("150", "150"),
        "share of low": ("33.3%", "41.2%"),
        "share of middle": ("33.3%", "41.2%"),
        "share of high": ("33.3%", "17.6%"),
        "class balance, total variation distance": ("", "0.157"),
    }
    (folder / "dvc.yaml").write_text((folder / "dvc.yaml").read_text().replace("cp -r", "cp -R"))
    assert table_of(run("fewer")) is None  # made again, the same
