"""Reports as the stages leave them, whole and in small: a test changes what it is about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline import paths

METRICS = {which: paths.EVALUATION / which / "metrics.json" for which in ("model", "synthetic")}
UTILITY = paths.UTILITY / "utility.json"
INTERVAL = {"mean": 3.0, "low": 2.0, "high": 4.0}
ENTRY = {"measures": ["fidelity"], "generated": "9 images", "real": "8 real images"}
ROW: dict[str, Any] = {
    "data": "100 %",
    "real_images": 60,
    "protocol": "same-data",
    "verdict": "helps",
    "advised_share": 0.3,
    "accuracy": {"real_long": {"mean": 90.0}, "mixed": {"mean": 93.0}},
    "gain_over_real": INTERVAL,
    "gain_over_real_long": INTERVAL,
    "class_gain_over_real_long": {},
}
REPORTS: dict[Path, dict[str, Any]] = {
    paths.MODEL / "model.json": {
        "family": "conditional",
        "images_seen": 1000,
        "data_fingerprint": "cd" * 32,
        "selection": {"metric": "fid"},
    },
    METRICS["model"]: {"protocol": [ENTRY]},
    paths.SYNTHETIC / "report.json": {
        "drawn": 9,
        "kept": 9,
        "dropped": {},
        "search": [{"spread": 1.0, "min_confidence": 0.5, "manifold_neighbours": 0, "surprise": None, "chosen": True}],
        "params": {"seed": 3},
    },
    METRICS["synthetic"]: {
        "images": 9,
        "memorization": {"copies": 0, "nearer_than_percentile_1": 0.01},
        "memorization_spread": {"nearer_than_percentile_1": 0.002},
        "memorization_floor": {"nearer_than_percentile_1": 0.012},
        "protocol": [ENTRY],
    },
    UTILITY: {"rows": [ROW], "synthetic_only_accuracy": 50.0, "protocol": ["same-data: the same."]},
    **{
        paths.VALIDATION / which / "report.json": {"expectations": {"evaluated": 9, "failed": 0}}
        for which in ("real", "synthetic")
    },
}


def write_report(workspace: Path, path: Path, **changes: object) -> None:
    """The report of that path, with other or more keys."""
    (workspace / path).parent.mkdir(parents=True, exist_ok=True)
    (workspace / path).write_text(json.dumps(REPORTS[path] | changes))
