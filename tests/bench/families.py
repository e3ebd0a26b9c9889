"""How families compare after the same time: `python tests/bench/families.py --minutes 10 dcgan wgan_gp …`.

Runs in a workspace whose params.yaml is a recipe such as mnist. Each family gets as many images as it sees in that
time on this machine, by a rate measured first in CPU time, so that what else runs here costs it nothing, and is one
DVC experiment named after it, so that `dvc exp show` and `dvc plots diff` tell the rest; its grid stays as
out/families/NAME.png. Collapse shows in what the judges see: modes among all samples, their KL divergence from the
real shares, the share of the rarest and of the commonest class in proportion to the real one; and in the diversity of
the worst class.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from pipeline import paths
from pipeline.gan import machine
from pipeline.gan.batches import Batches
from pipeline.gan.family import ImageSpec, load_family
from pipeline.gan.training import Snapshot, Trainer
from pipeline.imageset import ImageSet
from pipeline.params import Document

_CALIBRATION_SECONDS = 20.0
_GRIDS = Path("out/families")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="+", metavar="FAMILY")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training for each family (default: 10)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch (default: all)")
    arguments = parser.parse_args()
    _dvc("repro", "features")
    rates = {name: _images_a_second(name, arguments.threads) for name in arguments.families}
    rows = {name: _measure(name, int(rate * 60 * arguments.minutes), arguments.threads) for name, rate in rates.items()}
    _show(rows, arguments.minutes, arguments.threads)


def _measure(name: str, images: int, threads: int) -> dict[str, Any]:
    """Train and evaluate one family as an experiment; its metrics and what it cost."""
    settings = {
        "train.family": name,
        "train.images": images,
        "train.snapshot_images": max(1, images // 10),
        "++train.threads": threads,
    }
    sets = [word for key, value in settings.items() for word in ("-S", f"{key}={value}")]
    experiment = f"bench-{name}"
    subprocess.run([sys.executable, "-m", "dvc", "exp", "remove", experiment], capture_output=True, check=False)
    said = _dvc("exp", "run", "--name", experiment, *sets, "evaluate@model")
    metrics = json.loads((paths.EVALUATION / "model" / "metrics.json").read_bytes())
    _GRIDS.mkdir(exist_ok=True)
    shutil.copy(paths.TRAINING / "samples.png", _GRIDS / f"{name}.png")
    cost = re.search(r"^train: [\d,]+ images in (.+, \d+ CPU-seconds)$", said, re.MULTILINE)
    return {
        "images": images,
        "cost": cost[1] if cost else "",
        "metrics": metrics,
        "judged": _shares(),
        "diversity": _diversity(),
    }


def _images_a_second(name: str, threads: int) -> float:
    """Of the trainer alone, without snapshots, on the training split; in a second of CPU time on each thread."""
    real, module = ImageSet.open(paths.REAL / paths.IMAGESET), load_family(name)
    document = Document.load(paths.PARAMS)
    config = document.section(f"families.{name}", module.Config)
    spec = ImageSpec(channels=real.channels, image_size=real.image_size, classes=len(real.classes))
    torch.set_num_threads(threads)
    batches = Batches(
        *real.arrays("train"),
        batch_size=document.content["train"]["batch_size"],
        seed=0,
        device=machine.device(),
    )
    far = 10**9
    nothing = Snapshot(0, score=0.0, diversity=1.0, least_diverse="")
    family = module.Family(config, spec).to(machine.device())
    trainer = Trainer(family, batches, images=far, snapshot_images=far, judge=lambda *_: nothing)
    trainer.advance()
    clock = time.monotonic if torch.cuda.is_available() else lambda: time.process_time() / threads
    begun, before = clock(), trainer.images_seen
    while clock() - begun < _CALIBRATION_SECONDS:
        trainer.advance()
    return (trainer.images_seen - before) / (clock() - begun)


def _shares() -> list[float]:
    """Of each class among what the judges see, relative to its share of the training images."""
    with (paths.EVALUATION / "model" / "figures" / "per_class.csv").open() as file:
        judged = [int(row["judged"]) for row in csv.DictReader(file)]
    real = ImageSet.open(paths.REAL / paths.IMAGESET).counts["train"]
    return [(found / sum(judged)) / (there / sum(real)) for found, there in zip(judged, real, strict=True)]


def _diversity() -> float:
    """Of the kept snapshot's least diverse class, in proportion to real images."""
    with (paths.TRAINING / "snapshots.csv").open() as file:
        kept = min(csv.DictReader(file), key=lambda row: float(row["score"]))
    return float(kept["diversity"])


def _dvc(*words: str) -> str:
    """What the command said, which is shown as it comes."""
    said = []
    command = [sys.executable, "-m", "dvc", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            said.append(line)
    if process.returncode:
        sys.exit(process.returncode)
    return "".join(said)


def _show(rows: dict[str, dict[str, Any]], minutes: float, threads: int) -> None:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()}, {threads} threads"
    table = Table(
        title=f"{minutes:g} minutes each on {device}; torch {torch.__version__}", title_justify="left", box=None
    )
    numbers = ("FID", "precision", "recall", "coverage", "modes", "KL", "rarest", "commonest", "diversity")
    for column in ("family", "images seen", "cost", *numbers):
        table.add_column(column, justify="left" if column == "family" else "right")
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['images']:,}",
            row["cost"],
            *_fidelity(row["metrics"]["fidelity"]),
            *_balance(row["metrics"]["modes"]),
            f"{min(row['judged']):.2f}",
            f"{max(row['judged']):.2f}",
            f"{row['diversity']:.2f}",
        )
    metrics = next(iter(rows.values()))["metrics"]
    if floor := metrics.get("floor"):
        table.add_row("real images", "", "", *_fidelity(floor), *_balance(metrics["modes_floor"]), "", "", "")
    table.caption = "\n".join(f"{key}: {value}" for entry in metrics["protocol"] for key, value in entry.items())
    table.caption_justify = "left"
    Console(width=140).print(table)


def _fidelity(block: dict[str, float]) -> list[str]:
    return [f"{block['fid']:.3f}", *(f"{block[name]:.3f}" for name in ("precision", "recall", "coverage"))]


def _balance(block: dict[str, float]) -> list[str]:
    return [f"{block['classes_seen']}", f"{block['kl_from_real']:.3f}"]


if __name__ == "__main__":
    main()
