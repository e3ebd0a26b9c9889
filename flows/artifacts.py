"""What a run shows on its page in Prefect: a picture of samples, and tables of what was measured."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from pipeline import paths
from pipeline.delivery.outputs import read_report
from pipeline.delivery.workspace import interval
from pipeline.report.page import write_report

SAMPLES = paths.EVALUATION / "synthetic" / "figures" / "samples.png"
METRICS = {which: paths.EVALUATION / which / "metrics.json" for which in ("model", "synthetic")}
UTILITY = paths.UTILITY / "utility.json"


def record(workspace: Path) -> None:
    """Create the artifacts `samples`, `metrics` and `utility` of the run, each where there is something to show.

    Where a set was made, the report is written too, a page in the workspace. Raises UserError when what a stage left is
    damaged, or of an older stage.
    """
    if (samples := workspace / SAMPLES).is_file():
        picture = base64.b64encode(samples.read_bytes()).decode()  # whole: the server need not reach the workspace
        said = f"Images of each class, real ones and then synthetic ones, from {SAMPLES}"
        create_markdown_artifact(f"![samples](data:image/png;base64,{picture})", key="samples", description=said)
    if metrics := metrics_table(workspace):
        said = f"What was measured, to four digits; all are in {' and '.join(map(str, METRICS.values()))}"
        create_table_artifact(metrics, key="metrics", description=said)
    if (workspace / UTILITY).is_file():
        utility = read_report(workspace, UTILITY)
        rows = utility_table(utility)
        said = f"Points of accuracy that a classifier gains by the synthetic images, [95 % intervals], from {UTILITY}"
        for row in utility["rows"]:
            if "rare" in row:
                said += f"; filling up rare classes with {row['data']} {row['rare']['verdict']}"
        create_table_artifact(rows, key="utility", description=said)
    if (workspace / paths.SYNTHETIC / "report.json").is_file():
        write_report(workspace)


HEADLINES = ("fidelity.fid", "fidelity.recall", "agreement.mean", "memorization.copies")


def headlines(workspace: Path) -> list[dict[str, Any]]:
    """The few rows of the table that a commit message has room for."""
    return [row for row in metrics_table(workspace) if row["metric"] in HEADLINES]


def metrics_table(workspace: Path) -> list[dict[str, Any]]:
    """A row for each number of the metrics files, by its dotted name, with a column for each file that is there.

    What is no whole number is rounded to four digits.
    """
    found = {
        which: dict(_numbers(read_report(workspace, path)))
        for which, path in METRICS.items()
        if (workspace / path).is_file()
    }
    names = dict.fromkeys(name for numbers in found.values() for name in numbers)
    return [{"metric": name, **{which: numbers.get(name) for which, numbers in found.items()}} for name in names]


def utility_table(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each amount of real data: by how many points the synthetic images help, with the 95 % interval.

    A page 1,400 pixels wide has room for it.
    """
    return [
        {
            "real images": f"{row['data']} ({row['real_images']:,})",
            "protocol": row["protocol"],
            "over real only": interval(row["gain_over_real"]),
            "over as many images seen": interval(row["gain_over_real_long"]),
            "verdict": row["verdict"],
        }
        for row in report["rows"]
    ]


def _numbers(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            yield prefix + name, value if isinstance(value, int) else float(f"{value:.4g}")
