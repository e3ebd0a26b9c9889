"""The stage as its command runs it: in a DVC repository, killed, stopped, resumed."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

from pipeline import paths
from pipeline.errors import UserError
from pipeline.gan.model import Model
from pipeline.imageset import ImageSet, Row, write_imageset
from pipeline.imageset.files import sha256_file
from pipeline.params import Document
from pipeline.stages import features, train

REPOSITORY = Path(__file__).parents[2]
SETTINGS: dict[str, Any] = {
    "features": {"images_seen": 1000, "width": 8},
    "train": {"family": "conditional", "images": 12_800, "snapshot_images": 3200, "batch_size": 16, "threads": 1},
    "families": {"conditional": {"width": 32}, "dcgan": {"width": 8}},
}


def _rows() -> Iterator[Row]:
    draw = np.random.default_rng(0)
    for i in range(120):
        image = draw.integers(0, 60, (1, 8, 8), dtype=np.uint8)
        image[0, i % 3 * 2 : i % 3 * 2 + 3] += 180  # a bar, higher or lower: the class
        yield Row(
            split="validation" if i % 4 == 0 else "train", label=i % 3, image=image, path=f"{i}.png", provenance={}
        )


@pytest.fixture(scope="session")
def _made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the inputs of the stage, inside a DVC repository."""
    workspace = tmp_path_factory.mktemp("workspace")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=workspace, check=True)
    shutil.copy(REPOSITORY / "dvc.yaml", workspace)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        write_imageset(
            paths.REAL / paths.IMAGESET,
            _rows(),
            classes=["low", "mid", "high"],
            source={"kind": "made up"},
            resize=None,
            synthetic=False,
        )
        features.run(Document(SETTINGS))
    return workspace


@pytest.fixture
def workspace(_made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(_made_once, tmp_path / "workspace")
    monkeypatch.chdir(tmp_path / "workspace")
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "workspace"


def _document(**changes: Any) -> Document:
    return Document({**SETTINGS, "train": SETTINGS["train"] | changes})


class Command:
    """`forgeline stage train`, many times: each a process of its own, forked from one that has imported everything."""

    _SERVER = """
import os, sys
from pipeline.cli import main
from pipeline.stages import train
sys.argv = ["forgeline", "stage", "train"]
for line in sys.stdin:
    if (child := os.fork()) == 0:
        main()
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

    def __init__(self, workspace: Path) -> None:
        self.workspace, self.log, self.running = workspace, workspace / "log", -1
        with self.log.open("a") as log:
            self.server = subprocess.Popen(
                [sys.executable, "-c", self._SERVER],
                cwd=workspace,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def start(self, document: Document) -> int:
        """The process id of a new run with these settings."""
        with (self.workspace / "params.yaml").open("w") as file:
            YAML().dump(document.content, file)
        assert self.server.stdin is not None
        self.server.stdin.write("run\n")
        self.server.stdin.flush()
        self.running = self._read()
        return self.running

    def status(self) -> int:
        """The exit status of the run that was started last, when it has ended; minus the signal that killed it."""
        return self._read()

    def stop_midway(self, signal_number: int) -> int:
        """Send the signal once a checkpoint stands; the exit status."""
        self.wait_for_a_new_checkpoint()
        os.kill(self.running, signal_number)
        return self.status()

    def wait_for_a_new_checkpoint(self) -> None:
        """Or for the end of the run."""
        before = self._checkpoints()
        while self._checkpoints() <= before and Path(f"/proc/{self.running}").exists():
            time.sleep(0.01)

    def _checkpoints(self) -> set[str]:
        return {path.name for path in self.workspace.glob(".dvc/forgeline-state/*/checkpoints/*-*")}

    def _read(self) -> int:
        assert self.server.stdout is not None
        return int(self.server.stdout.readline())

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left running, also when the test has failed midway."""
        if Path(f"/proc/{self.running}").exists():
            os.kill(self.running, signal.SIGKILL)
        self.server.communicate()


def _outputs(workspace: Path) -> dict[str, bytes]:
    """Every output file; they are taken away."""
    found = [path for folder in ("out/model", "out/training") for path in (workspace / folder).rglob("*")]
    contents = {str(path.relative_to(workspace)): path.read_bytes() for path in found if path.is_file()}
    shutil.rmtree(workspace / "out/model")
    shutil.rmtree(workspace / "out/training")
    return contents


def _states(workspace: Path) -> list[Path]:
    return [path for path in (workspace / ".dvc" / "forgeline-state").iterdir() if path.is_dir()]


def test_killed_at_ten_random_moments_it_ends_with_the_bytes_of_an_uninterrupted_run(workspace: Path) -> None:
    with Command(workspace) as command:
        command.start(_document())
        began = time.monotonic()
        assert command.status() == 0
        took = time.monotonic() - began
        whole = _outputs(workspace)

        moments = random.Random(2)
        for attempt in range(10):
            running = command.start(_document())
            if attempt % 2:  # after some progress; else anywhere, also while starting or writing the outputs
                command.wait_for_a_new_checkpoint()
            time.sleep(moments.uniform(0, took / 4 if attempt % 2 else took))
            with suppress(ProcessLookupError):
                os.kill(running, signal.SIGKILL)
            assert command.status() in (-signal.SIGKILL, 0)
        command.start(_document())
        assert command.status() == 0
    assert _outputs(workspace) == whole
    resumed = re.findall(r"goes on from the checkpoint at ([\d,]+) images", command.log.read_text())
    assert len(set(resumed)) > 1
    assert _states(workspace) == []


def test_told_to_stop_it_keeps_its_state_and_says_how_to_go_on(workspace: Path) -> None:
    long = _document(images=100_000_000)
    with Command(workspace) as command:
        command.start(long)
        assert command.stop_midway(signal.SIGTERM) == 128 + signal.SIGTERM
        said = command.log.read_text()
        (stopped,) = re.findall(r"stopped by SIGTERM at ([\d,]+) images; the same command goes on from there", said)
        command.start(long)
        assert command.stop_midway(signal.SIGINT) == 128 + signal.SIGINT
    assert f"goes on from the checkpoint at {stopped} images" in command.log.read_text()
    assert not (workspace / "out/model").exists()


def test_told_to_stop_while_snapshots_are_scored_it_ends_with_the_same_bytes_later(workspace: Path) -> None:
    document = _document(images=320, snapshot_images=16)  # hardly a moment in which none is scored
    with Command(workspace) as command:
        command.start(document)
        assert command.status() == 0
        whole = _outputs(workspace)
        command.start(document)
        assert command.stop_midway(signal.SIGTERM) == 128 + signal.SIGTERM
        command.start(document)
        assert command.status() == 0
    assert _outputs(workspace) == whole


def test_a_stopped_run_goes_on_with_the_threads_that_were_fastest_when_it_began(workspace: Path) -> None:
    long = _document(images=100_000_000, threads=None)
    with Command(workspace) as command:
        command.start(long)
        command.stop_midway(signal.SIGTERM)
        command.start(long)
        command.stop_midway(signal.SIGTERM)
    assert len(re.findall(r"CPU threads: \d+ of \d+, the fastest by trial", command.log.read_text())) == 1
    assert "goes on from the checkpoint" in command.log.read_text()


def test_with_changed_settings_it_starts_afresh_and_says_what_changed(workspace: Path) -> None:
    with Command(workspace) as command:
        command.start(_document(images=100_000_000))
        command.stop_midway(signal.SIGTERM)
        command.start(_document(images=160, seed=7))
        assert command.status() == 0
    assert "starts afresh" in command.log.read_text()
    assert "another train.images, train.seed\n" in command.log.read_text()
    assert len(_states(workspace)) == 1  # the unfinished one may still be gone on with


def test_two_runs_with_the_same_inputs_do_not_meet(workspace: Path) -> None:
    with Command(workspace) as command, Command(workspace) as other:
        command.start(_document(images=100_000_000))
        command.wait_for_a_new_checkpoint()
        other.start(_document(images=100_000_000))
        assert other.status() == 1
        assert command.stop_midway(signal.SIGTERM) == 128 + signal.SIGTERM
    assert "another process is training with the same inputs" in other.log.read_text()


def test_two_processes_that_torchrun_starts_make_the_model_that_one_makes(workspace: Path) -> None:
    settings = {"family": "dcgan", "images": 640, "snapshot_images": 320}
    train.run(_document(**settings))
    alone = Model.load(paths.MODEL)
    stood = json.loads(Path("out/training/game.json").read_text())
    _outputs(workspace)
    with (workspace / "params.yaml").open("w") as file:
        YAML().dump(_document(**settings, processes=2).content, file)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run([*torchrun, "-m", "pipeline", "stage", "train"], capture_output=True, text=True, check=True)
    assert ended.stderr.count("kept the generator") == 1
    together = Model.load(paths.MODEL)
    assert together.images_seen == alone.images_seen
    assert together.selection["score"] == pytest.approx(alone.selection["score"], rel=0.05)
    ours, theirs = (model.sample(seed=1, start=0, count=30)[0].astype(int) for model in (together, alone))
    assert abs(ours - theirs).mean() < 1  # gray levels: bfloat16 rounds sums of half a batch otherwise
    stands = json.loads(Path("out/training/game.json").read_text())
    assert stands.keys() == stood.keys()
    assert (stands["objective"], stands["images"]) == (stood["objective"], stood["images"])
    assert [value for value in stands.values() if isinstance(value, float)] == pytest.approx(
        [value for value in stood.values() if isinstance(value, float)], abs=0.05
    )
    assert _states(workspace) == []


def test_processes_are_told_to_stop_through_the_one_that_started_them(workspace: Path) -> None:
    long = _document(images=100_000_000, processes=2)
    with Command(workspace) as command:
        command.start(long)
        assert command.stop_midway(signal.SIGTERM) == 128 + signal.SIGTERM
        said = command.log.read_text()
        (stopped,) = re.findall(r"stopped by SIGTERM at ([\d,]+) images", said)
        command.start(long)
        command.wait_for_a_new_checkpoint()
        os.kill(command.running, signal.SIGKILL)  # its processes see that it is gone
        assert command.status() == -signal.SIGKILL
        while "stopped by" not in command.log.read_text().removeprefix(said):
            time.sleep(0.1)
    assert f"goes on from the checkpoint at {stopped} images" in command.log.read_text()


def test_when_one_process_is_killed_all_end(workspace: Path) -> None:
    with Command(workspace) as command:
        command.start(_document(images=100_000_000, processes=2))
        command.wait_for_a_new_checkpoint()
        children = Path(f"/proc/{command.running}/task/{command.running}/children").read_text().split()
        os.kill(int(children[1]), signal.SIGKILL)
        assert command.status() == 1
    assert "process 1 of the 2 that trained together was killed by SIGKILL" in command.log.read_text()
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_another_number_of_processes_than_torchrun_started_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"^train\.processes is 4, and torchrun started 2; "):
        train.run(_document(processes=4))


def test_curves_may_begin_before_the_generator_has_stepped(workspace: Path) -> None:
    settings = {**SETTINGS, "families": {"conditional": {"width": 32, "discriminator_steps": 3}}}
    train.run(Document({**settings, "train": SETTINGS["train"] | {"images": 160, "snapshot_images": 160}}))
    with Path("out/training/curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["generator_loss"]) for row in rows[:4]] == [False, False, True, False]
    assert all(row["discriminator_loss"] for row in rows)


@pytest.mark.parametrize("family", ["conditional", "dcgan"])
def test_the_outputs_are_whole_and_say_how_the_snapshot_was_chosen(workspace: Path, family: str) -> None:
    train.run(_document(family=family, images=640, snapshot_images=160))
    model = Model.load(Path("out/model"))
    real = ImageSet.open(Path("out/real/imageset"))
    assert (model.classes, model.data_fingerprint, model.family) == (real.classes, real.fingerprint, family)
    with Path("out/training/snapshots.csv").open() as file:
        snapshots = {int(row["images_seen"]): float(row["score"]) for row in csv.DictReader(file)}
    assert list(snapshots) == [0, 160, 320, 480, 640]
    assert snapshots[model.images_seen] == min(snapshots.values()) == model.selection["score"]
    assert model.selection["real_images"] == 30
    with Path("out/training/curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["images_seen"]) for row in rows] == list(range(16, 641, 16))
    assert set(rows[0]) == {"images_seen", "discriminator_loss", "generator_loss", "real_accuracy", "fake_accuracy"}
    with Image.open("out/training/interpolation.png") as strip:
        assert strip.size == ((10 * 9 - 1) * 6, (3 * 9 - 1) * 6)
    stands = json.loads(Path("out/training/game.json").read_text())
    assert (stands["objective"], stands["held_out"], stands["images"]) == ("non_saturating", "validation split", 2000)
    assert all(
        0 <= value <= 1 for name, value in stands.items() if name.endswith(("_accuracy", "_over_fake", "_error"))
    )
    inputs = json.loads(Path("out/training/inputs.json").read_text())
    assert (inputs["data"], inputs["train.threads"]) == (real.fingerprint, 1)
    grids = set(Path("out/training/grids").iterdir())
    assert {path.name for path in grids} == {f"{images_seen:08d}.png" for images_seen in snapshots}
    sizes = {Image.open(io.BytesIO(path.read_bytes())).size for path in grids | {Path("out/training/samples.png")}}
    assert sizes == {((10 * 9 - 1) * 6, (3 * 9 - 1) * 6)}  # ten columns, a row for each class


def test_old_unfinished_states_are_forgotten_and_young_ones_kept(workspace: Path) -> None:
    states = workspace / ".dvc" / "forgeline-state"
    for name, days in {"old": 8, "young": 6}.items():
        (states / name).mkdir(parents=True)
        long_ago = time.time() - days * 24 * 3600
        os.utime(states / name, (long_ago, long_ago))
    train.run(_document(images=160))
    assert [path.name for path in _states(workspace)] == ["young"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"family": "dcgn"}, "params.yaml: train.family is 'dcgn'; did you mean 'dcgan'?"),
        ({"batch_size": 1}, "params.yaml: train.batch_size is 1; needed at least 2"),
        (
            {"batch_size": 15, "processes": 2},
            "params.yaml: train.batch_size is 15; needed a multiple of the 2 processes",
        ),
        ({"seed": -1}, "params.yaml: train.seed is -1; needed at least 0"),
        ({"class_balance": 1.5}, "params.yaml: train.class_balance is 1.5; needed at most 1"),
        ({"seed": 2**32}, f"params.yaml: train.seed is {2**32}; needed at most {2**32 - 1}"),
        ({"threads": 3_000_000_000}, "params.yaml: train.threads is 3000000000; needed at most 1024"),
    ],
)
def test_settings_that_are_off_are_named(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        train.read_params(_document(**changes))
    assert str(refused.value) == sentence


def test_images_that_the_family_cannot_make_are_refused_before_anything_is_written(workspace: Path) -> None:
    shutil.rmtree("out/real")
    rows = (dataclasses.replace(row, image=np.pad(row.image, ((0, 0), (0, 20), (0, 20)))) for row in _rows())
    write_imageset(
        paths.REAL / paths.IMAGESET,
        rows,
        classes=["low", "mid", "high"],
        source={"kind": "made up"},
        resize=None,
        synthetic=False,
    )
    with pytest.raises(UserError, match=r"out/real/imageset: images are 28×28; .*power of two"):
        train.run(_document(family="dcgan"))
    assert not Path("out/model").exists()


def test_classes_can_be_seen_by_the_roots_of_their_sizes(workspace: Path) -> None:
    images = [np.full((1, 8, 8), i, np.uint8) for i in range(104)]
    rows = [Row(split="train", label=int(i < 4), image=each, path="", provenance={}) for i, each in enumerate(images)]
    real = write_imageset(workspace / "rare", rows, classes=["often", "rare"], source={}, resize=None, synthetic=False)
    params, config = train.read_params(_document(class_balance=0.5))
    batches = train._batches(params, train._family(params, config, real), real, torch.device("cpu"))
    seen = torch.cat([batches.at(step).labels for step in range(1000)]).double().mean()
    assert abs(seen - 2 / 12) < 0.02  # √4 to √100


def test_outside_a_dvc_repository_it_says_what_is_needed(workspace: Path) -> None:
    shutil.rmtree(".dvc")
    with pytest.raises(UserError, match="is not a DVC repository"):
        train.run(_document())


def test_a_warm_start_begins_where_its_parent_is_best_and_another_model_is_refused(workspace: Path) -> None:
    train.run(_document(images=3200, snapshot_images=1600))
    model = Model.load(paths.MODEL)
    score = model.selection["score"]
    assert model.parent is None
    paths.PARENT.mkdir()
    shutil.copy(paths.TRAINING / paths.PLAYERS, paths.PARENT)
    train.run(_document(images=1600, snapshot_images=1600, warm_start="nightly"))
    rows = list(csv.DictReader((paths.TRAINING / "snapshots.csv").read_text().splitlines()))
    assert float(rows[0]["score"]) == score
    assert Model.load(paths.MODEL).parent == sha256_file(paths.PARENT / paths.PLAYERS)
    assert float(rows[1]["score"]) != score
    other = _document()
    other.content["families"] = {"conditional": {"width": 16}}
    with pytest.raises(UserError, match=r"train.warm_start names a model of another .* is \(.*; needed"):
        train.run(other)
