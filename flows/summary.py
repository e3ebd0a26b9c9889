"""The end of `forgeline run` on the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from flows.measured import DOCS, SAMPLES, metrics_table, utility_table
from flows.retrain import RunResult

_HEADLINES = {
    "agreement.mean": "judges agree with the asked-for class",
    "fidelity.fid": "FID, in-domain features",
    "floor.fid": "… of real images, held out",
    "untrained.fid": "… of the untrained generator",
    "memorization.nearer_than_percentile_1": "nearer to training than 99 % of held-out images",
    "modes.pixel_spread": "spread of pixels, against real",
}


def print_summary(workspace: Path, result: RunResult) -> None:
    """What was measured, in two small tables, and where the release, the samples and the Data Docs are."""
    console = Console()
    measured = {row["metric"]: row for row in metrics_table(workspace)}
    if any(name in measured for name in _HEADLINES):
        table = Table("measured", box=None, pad_edge=False)
        columns = [name for name in next(iter(measured.values())) if name != "metric"]
        for column in columns:
            table.add_column(column, justify="right")
        for name, title in _HEADLINES.items():
            if name in measured:
                values = [measured[name][column] for column in columns]
                table.add_row(title, *("" if value is None else f"{value:.4g}" for value in values))
        console.print(table)
    if utility := utility_table(workspace):
        table = Table(*utility[0], box=None, pad_edge=False)
        for row in utility:
            table.add_row(*row.values())
        console.print(table)
    places = {"samples": SAMPLES, **{f"Data Docs, {which}": path for which, path in DOCS.items()}}
    if result.published:
        console.print(f"release: {result.published.url}", soft_wrap=True, highlight=False)
    for name, path in places.items():
        if (workspace / path).is_file():
            console.print(f"{name}: {path}", soft_wrap=True, highlight=False)
