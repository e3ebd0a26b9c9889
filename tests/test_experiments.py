"""Experiments as researchers run them: `dvc exp run --temp` and queues, killed in the midst of training."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from ruamel.yaml import YAML

from pipeline import paths
from pipeline.imageset import Row, write_imageset
from pipeline.params import Document
from pipeline.stages import features

PATIENCE_SECONDS = 300  # on a busy machine
TRAINER = [sys.executable, "-m", "pipeline", "stage", "train"]
QUEUE_WORKER = ["exp", "queue-worker"]
SETTINGS = {
    "features": {"images_seen": 1000, "width": 8},
    "train": {"family": "conditional", "images": 100_000_000, "snapshot_images": 3200, "batch_size": 16, "threads": 1},
    "families": {"conditional": {"width": 32}},
}
STAGES = {
    "train": {
        "cmd": " ".join(TRAINER),
        "params": ["train", "families"],
        "deps": ["out/real", "out/features"],
        "outs": ["out/model", "out/training"],
    }
}


def _rows() -> Iterator[Row]:
    random = np.random.default_rng(0)
    for i in range(120):
        image = random.integers(0, 256, (1, 8, 8), dtype=np.uint8)
        split = "validation" if i % 4 == 0 else "train"
        yield Row(split=split, label=i % 3, image=image, path=f"{i}.png", provenance={})


def dvc(folder: Path, *words: str) -> str:
    """What it said. It may leave a process that has its output open still."""
    with tempfile.TemporaryFile() as said:
        words = (sys.executable, "-m", "dvc", *words)
        status = subprocess.run(words, cwd=folder, stdout=said, stderr=said).returncode
        said.seek(0)
        text = said.read().decode()
    assert status == 0, text
    return text


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Git and DVC repository with the inputs of `train`, which would train for hours."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))
    write_imageset(
        paths.REAL / paths.IMAGESET,
        _rows(),
        classes=["a", "b", "c"],
        source={"kind": "made up"},
        resize=None,
        synthetic=False,
    )
    for file, content in {"params.yaml": SETTINGS, "dvc.yaml": {"stages": STAGES}}.items():
        with (folder / file).open("w") as opened:
            YAML().dump(content, opened)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    dvc(folder, "init", "--quiet")
    features.run(Document(SETTINGS))
    dvc(folder, "add", "--quiet", "out/real", "out/features")
    (folder / "out/.gitignore").write_text("*\n!*.dvc\n")
    for words in (["add", "--all"], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", "begin"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


def wait_for(find: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not find():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def processes(folder: Path, words: list[str]) -> list[psutil.Process]:
    """Those that work for this workspace, wherever they run, whose command has these words."""
    found = psutil.process_iter(["cmdline", "environ"])
    return [
        process
        for process in found
        if set(words) <= set(process.info["cmdline"] or []) and str(folder.parent) in str(process.info["environ"])
    ]


def checkpoints(folder: Path) -> set[Path]:
    return set(folder.glob(".dvc/forgeline-state/*/checkpoints/*-*"))


class Experiment:
    """`dvc exp run --temp` as a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder.parent / "log"
        with self.log.open("wb") as log:
            words = [sys.executable, "-m", "dvc", "exp", "run", "--temp"]
            self.process = subprocess.Popen(words, cwd=folder, stdout=log, stderr=log)

    def kill_midway(self) -> psutil.Process:
        """Kill it once a new checkpoint stands; its trainer, which nobody has told."""
        before = checkpoints(self.folder)
        wait_for(lambda: checkpoints(self.folder) - before or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()
        (trainer,) = processes(self.folder, TRAINER)
        self.process.kill()
        self.process.wait()
        return trainer


@pytest.fixture
def nothing_left(workspace: Path) -> Iterator[None]:
    """No process of the test stays, also when it has failed midway."""
    yield
    for process in processes(workspace, TRAINER):
        with suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])  # by which DVC runs it; dash stays, bash makes way
@pytest.mark.usefixtures("nothing_left")
def test_a_killed_experiment_leaves_no_trainer_and_goes_on_where_it_was(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    monkeypatch.setenv("SHELL", shell)
    trainer = Experiment(workspace).kill_midway()
    assert psutil.wait_procs([trainer], timeout=PATIENCE_SECONDS)[1] == []
    again = Experiment(workspace)
    trainer = again.kill_midway()
    assert psutil.wait_procs([trainer], timeout=PATIENCE_SECONDS)[1] == []
    assert "goes on from the checkpoint at" in again.log.read_text()


@pytest.mark.usefixtures("nothing_left")
def test_a_killed_queue_leaves_no_trainer_and_its_experiment_goes_on_where_it_was(workspace: Path) -> None:
    for attempt in range(2):
        dvc(workspace, "exp", "run", "--queue", "--name", f"attempt-{attempt}")
        before = checkpoints(workspace)
        dvc(workspace, "queue", "start")
        wait_for(lambda before=before: checkpoints(workspace) - before)
        (trainer,) = processes(workspace, TRAINER)
        dvc(workspace, "queue", "stop", "--kill")
        assert psutil.wait_procs([trainer], timeout=PATIENCE_SECONDS)[1] == []
        wait_for(lambda: not processes(workspace, QUEUE_WORKER))  # DVC starts no other beside one that is about to end
    assert "goes on from the checkpoint at" in dvc(workspace, "queue", "logs", "attempt-1")
