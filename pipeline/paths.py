"""Where the stages of dvc.yaml leave their outputs, relative to the workspace (the folder of dvc.yaml)."""

import os
import subprocess
import sys
from pathlib import Path

PARAMS = Path("params.yaml")
OUT = Path("out")

INVENTORY = OUT / "inventory.json"  # source
REAL = OUT / "real"  # ingest: imageset/, manifest.parquet, quarantine.json
FEATURES = OUT / "features"  # features
PARENT = OUT / "parent"  # parent: parent.json, and players.safetensors where training begins from another model
MODEL = OUT / "model"  # train
TRAINING = OUT / "training"  # train: curves.csv, snapshots.csv, samples.png, grids/, players.safetensors
SYNTHETIC = OUT / "synthetic"  # augment: imageset/, manifest.parquet
VALIDATION = OUT / "validation"  # validate: real/, synthetic/, each report.json and docs/
EVALUATION = OUT / "evaluation"  # evaluate: model/, synthetic/, each metrics.json and figures/
UTILITY = OUT / "utility"  # utility: utility.json, table.csv, choices.csv, figures/
STUDY = OUT / "study"  # no stage's: 'forgeline study' leaves table.csv and study.png there

IMAGESET = "imageset"
MANIFEST = "manifest.parquet"
QUARANTINE = "quarantine.json"
PLAYERS = "players.safetensors"  # of out/training: all that a later training may begin from


def cache() -> Path:
    """$FORGELINE_CACHE, or else ~/.cache/forgeline: what this machine can do without, and is faster with."""
    return Path(os.environ.get("FORGELINE_CACHE") or Path.home() / ".cache" / "forgeline")


def dvc_cache() -> Path | None:
    """The DVC cache in use here, beside which is kept what is no output; None outside of a DVC repository."""
    found = subprocess.run([sys.executable, "-m", "dvc", "cache", "dir"], capture_output=True, text=True, check=False)
    return None if found.returncode else Path(found.stdout.strip())
