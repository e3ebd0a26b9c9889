"""What a run shows on its page in Prefect: a picture of samples, and tables of what was measured."""

from __future__ import annotations

import base64
from pathlib import Path

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.measured import METRICS, SAMPLES, UTILITY, metrics_table, utility_table


def record(workspace: Path) -> None:
    """Create the artifacts `samples`, `metrics` and `utility` of the run, each where there is something to show."""
    if (samples := workspace / SAMPLES).is_file():
        picture = base64.b64encode(samples.read_bytes()).decode()  # whole: the server need not reach the workspace
        create_markdown_artifact(
            f"![samples](data:image/png;base64,{picture})", key="samples", description=str(SAMPLES)
        )
    if metrics := metrics_table(workspace):
        create_table_artifact(metrics, key="metrics", description=", ".join(map(str, METRICS.values())))
    if utility := utility_table(workspace):
        create_table_artifact(utility, key="utility", description=str(UTILITY))
