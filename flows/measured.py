"""What a run measured, as tables: for the run's page in Prefect, and for the end of `forgeline run`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline import paths

METRICS = {which: paths.EVALUATION / which / "metrics.json" for which in ("model", "synthetic")}
UTILITY = paths.UTILITY / "utility.json"
SAMPLES = paths.EVALUATION / "synthetic" / "figures" / "samples.png"
DOCS = {which: paths.VALIDATION / which / "docs" / "index.html" for which in ("real", "synthetic")}


def metrics_table(workspace: Path) -> list[dict[str, Any]]:
    """A row for each number of the metrics files, by its dotted name, with a column for each file that is there."""
    found = {
        which: dict(_numbers(json.loads((workspace / path).read_bytes())))
        for which, path in METRICS.items()
        if (workspace / path).is_file()
    }
    names = dict.fromkeys(name for numbers in found.values() for name in numbers)
    return [{"metric": name, **{which: numbers.get(name) for which, numbers in found.items()}} for name in names]


def utility_table(workspace: Path) -> list[dict[str, Any]]:
    """A row for each amount of real data: by how many points the synthetic images help, with the 95 % interval."""
    if not (workspace / UTILITY).is_file():
        return []
    return [
        {
            "real data": f"{row['data']} ({row['real_images']:,} images)",
            "protocol": row["protocol"],
            "gain over real only": _interval(row["gain_over_real"]),
            "… that sees as many images": _interval(row["gain_over_real_long"]),
            "verdict": row["verdict"],
        }
        for row in json.loads((workspace / UTILITY).read_bytes())["rows"]
    ]


def _interval(gain: Mapping[str, float]) -> str:
    return f"{gain['mean']:+.2f} [{gain['low']:+.2f}, {gain['high']:+.2f}]"


def _numbers(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            yield prefix + name, value
