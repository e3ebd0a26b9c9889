"""docs/faults.md: every test that it names is there; and those of its faults that no one module is the subject of.

A disk that fills up is a real one: a small tmpfs in a mount namespace of its own, for which nobody need be root where
users may have namespaces.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench.repository import scheduled
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.events.schemas.automations import AutomationCore
from prefect.settings import PREFECT_API_URL, temporary_settings
from processes import kill_all, wait_for

from flows.up import Standing
from pipeline import paths
from pipeline.imageset import Row, write_imageset
from pipeline.params import Document
from pipeline.running import UP
from pipeline.stages import features

ROOT = Path(__file__).parents[1]
PATIENCE_SECONDS = 600  # on a busy machine


def test_every_test_that_the_list_of_faults_names_is_there() -> None:
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`", (ROOT / "docs/faults.md").read_text())
    assert len(named) >= 20
    missing = [(file, test) for file, test in named if f"\ndef {test}(" not in (ROOT / file).read_text()]
    assert missing == []


def on_a_disk_of(size: str, place: Path, program: str, *words: str | Path, cwd: Path) -> str:
    """What the Python program prints, run where a disk of that size is mounted at `place`."""
    place.mkdir(parents=True, exist_ok=True)
    space = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f'mount -t tmpfs -o size={size} tmpfs "$0"'
    if subprocess.run([*space, mount, place], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount a disk in a namespace of users")
    command = [*space, f'{mount} && exec "$@"', place, sys.executable, "-c", program, *words]
    ended = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


WRITES = """
import sys
from pathlib import Path
import numpy as np
from pipeline.errors import FailedError
from pipeline.imageset import Row, write_imageset
disk = Path(sys.argv[1])
def rows():
    for i in range(3000):
        image = np.random.default_rng(i).integers(0, 256, (1, 32, 32), dtype=np.uint8)
        yield Row(split="train", label=i % 2, image=image, path=f"{i}", provenance={})
try:
    write_imageset(disk / "set", rows(), classes=["a", "b"], source={}, resize=None, synthetic=False)
except FailedError as error:
    print(error)
print(*disk.iterdir())
"""


@pytest.mark.parametrize("size", ["1m", "5m"])  # in the spool; in the shards, when the spool stands already
def test_a_disk_that_is_full_while_a_set_is_written(tmp_path: Path, size: str) -> None:
    disk = tmp_path / "disk"
    said = on_a_disk_of(size, disk, WRITES, disk, cwd=tmp_path)
    assert said == f"{disk / 'set'}: cannot be written (No space left on device)\n\n"


INGESTS = """
import os, subprocess, sys
stage = [sys.executable, "-m", "pipeline", "stage"]
subprocess.run([*stage, "source"], check=True)
ended = subprocess.run([*stage, "ingest"], stderr=subprocess.PIPE, text=True)
print(ended.returncode, ended.stderr.splitlines()[-1])
print(*os.listdir("out"))
"""


def test_a_disk_that_is_full_in_a_stage(tmp_path: Path) -> None:
    document = {"source": {"kind": "digits"}, "ingest": {"image_size": 32, "channels": 3, "test_fraction": 0.3}}
    (tmp_path / "params.yaml").write_text(json.dumps(document))
    (tmp_path / "dvc.yaml").write_text("stages: {source: {cmd: x}, ingest: {cmd: x}}")
    said = on_a_disk_of("200k", tmp_path / "out", INGESTS, cwd=tmp_path).splitlines()
    assert said == ["1 forgeline: out: cannot be written (No space left on device)", "inventory.json"]


SETTINGS: dict[str, Any] = {
    "features": {"images_seen": 1000, "width": 8},
    "train": {"family": "conditional", "images": 12_800, "snapshot_images": 6400, "batch_size": 16, "threads": 1},
    "families": {"conditional": {"width": 32}},
}

# Another program takes what is left of the disk, as often as something becomes free, until the trainer has ended.
TRAINS = """
import subprocess, sys
from pathlib import Path
from pipeline.gan.checkpoint import Checkpoints
train = [sys.executable, "-m", "pipeline", "stage", "train"]
state = Path(".dvc/forgeline-state")
trainer = subprocess.Popen(train, stderr=subprocess.PIPE, text=True)
while not list(state.glob("*/checkpoints/*-*")):
    assert trainer.poll() is None, trainer.stderr.read()
with (state / "taken").open("wb", buffering=0) as taken:
    while trainer.poll() is None:
        try:
            taken.write(bytes(4096))
        except OSError:
            pass
print(trainer.returncode, trainer.stderr.read().splitlines()[-1])
(checkpoints,) = state.glob("*/checkpoints")
whole = [path.name for path in checkpoints.glob("*-*")]
found = Checkpoints(checkpoints)
assert found.load() is not None
print(found.images_seen == max(int(name.split("-")[0]) for name in whole), Path("out/model").exists())
(state / "taken").unlink()
again = subprocess.run(train, stderr=subprocess.PIPE, text=True)
print(again.returncode, f"goes on from the checkpoint at {found.images_seen:,} images" in again.stderr)
"""


@pytest.fixture
def trainable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with the inputs of the stage `train`."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], check=True)
    (folder / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())
    (folder / "params.yaml").write_text(json.dumps(SETTINGS))
    draw = np.random.default_rng(0)

    def rows() -> Iterator[Row]:
        for i in range(120):
            image = draw.integers(0, 60, (1, 8, 8), dtype=np.uint8)
            image[0, i % 3 * 2 : i % 3 * 2 + 3] += 180
            split = "validation" if i % 4 == 0 else "train"
            yield Row(split=split, label=i % 3, image=image, path=f"{i}.png", provenance={})

    place = paths.REAL / paths.IMAGESET
    write_imageset(place, rows(), classes=["a", "b", "c"], source={}, resize=None, synthetic=False)
    features.run(Document(SETTINGS))
    return folder


def test_a_disk_that_fills_up_while_a_model_is_trained(trainable: Path) -> None:
    subprocess.run([sys.executable, "-m", "pipeline", "stage", "train"], check=True, capture_output=True)
    undisturbed = {path.name: path.read_bytes() for path in paths.MODEL.iterdir()}
    paths.MODEL.rename("undisturbed")
    said = on_a_disk_of("8m", trainable / ".dvc/forgeline-state", TRAINS, cwd=trainable).splitlines()
    assert re.fullmatch(r"1 forgeline: .*no space left on the disk.*", said[0])
    assert said[1:] == ["True False", "0 True"]
    assert {path.name: path.read_bytes() for path in paths.MODEL.iterdir()} == undisturbed


STAGES = """stages:
  probe: {{cmd: ls data > list.txt, outs: [list.txt], always_changed: true}}
  copy:
    cmd: if test -e {here}/wait; then echo $$ > {here}/pid; sleep 600; fi; cp list.txt copy.txt
    deps: [list.txt]
    outs: [copy.txt]
"""
PARAMS = "publish: {url: null, name: toy}\nsource: {url: data}\nrun: {branch: main, record: nightly}\n"


def test_a_machine_that_vanishes_in_a_scheduled_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker, the run and its stage are killed, so that nobody says a word any more. The server ends the run, as it
    is silent, and the next run, which had no place beside it, removes what it left."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    clone = scheduled(tmp_path, STAGES.format(here=tmp_path), PARAMS)
    (tmp_path / "wait").touch()
    try:
        forgeline(clone, "up")
        url = standing(clone).url
        with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name("retrain/nightly").id
            (silent,) = client.read_automations_by_name("forgeline: silent")
            silent.trigger.within = timedelta(seconds=35)  # longer than from one heartbeat to the next
            client.update_automation(
                silent.id, AutomationCore.model_validate(silent.model_dump(exclude={"id", "owner_resource"}))
            )
            run = client.create_flow_run_from_deployment(deployment)
            wait_for(lambda: ((tmp_path / "pid").exists() and heartbeats(url, run)) or None)
            worker = standing(clone).processes["worker"].find()
            assert worker is not None
            kill_all(worker)
            left = clone / ".dvc/tmp/forgeline/runs"
            assert len(list(left.glob("*.lock"))) == 1

            lost = ended(client, run)
            assert lost.state is not None
            assert lost.state.name == "Crashed"
            assert (lost.state.message or "").endswith("its machine or its process is gone")

            (tmp_path / "wait").unlink()
            forgeline(clone, "up")
            assert ended(client, client.create_flow_run_from_deployment(deployment)).state_name == "Completed"
            assert list(left.iterdir()) == []
    finally:
        forgeline(clone, "down")


def forgeline(clone: Path, word: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pipeline", word], cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def standing(clone: Path) -> Standing:
    found = Standing.read(clone / UP)
    assert found is not None
    return found


def heartbeats(url: str, run: FlowRun) -> int:
    """How many signs of life the server has heard of the run."""
    wanted = {
        "event": {"name": ["prefect.flow-run.heartbeat"]},
        "resource": {"id": [f"prefect.flow-run.{run.id}"]},
    }
    body = json.dumps({"filter": wanted}).encode()
    asked = urllib.request.Request(f"{url}/events/filter", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return int(json.load(answer)["total"])


def ended(client: SyncPrefectClient, run: FlowRun) -> FlowRun:
    def find() -> FlowRun | None:
        found = client.read_flow_run(run.id)
        return found if found.state and found.state.is_final() else None

    return wait_for(find)
