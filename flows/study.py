"""`forgeline study`: the same-data study, one DVC experiment for each share of the real training images.

In each, generator and classifiers have the same images, this share of them. So a verdict of it holds for somebody who
has as few, and all verdicts together say from how many images on, or up to how many, a synthetic set helps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import dvc.api
from rich.console import Console
from rich.table import Table

from flows.commands import dvc as run_dvc
from flows.graph import read_stages
from pipeline import paths
from pipeline.delivery.workspace import interval
from pipeline.doctor import read_all_params
from pipeline.errors import FailedError, ending
from pipeline.imageset.files import atomic_folder
from pipeline.params import Document


def study(workspace: Path, shares: Sequence[float], seeds: int) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of utility.json that the experiments of the shares, in (0, 1], ended with; and those that failed.

    The smallest share comes first. The experiments stay, as `same-data-SHARE`; what one made before is restored and not
    made again, so that a study which was interrupted goes on. One that fails, as where a generator of few images gives
    copies of them only, leaves the others their turn. Also writes out/study, table.csv and study.png, where there is a
    row.
    """
    from pipeline.report.utility import draw
    from pipeline.stages.utility import table

    document = read_all_params(workspace)
    read_stages(workspace)
    kept = _absolute_source(document)
    if document.mapping("train").get("warm_start"):  # what a parent learned from would count too
        kept["train.warm_start"] = "null"
    rows, failed = [], []
    shares = sorted(set(shares))
    for number, share in enumerate(shares, start=1):
        name = f"same-data-{share:g}"
        print(f"study: experiment {number} of {len(shares)}, {name}", flush=True)
        settings = {"ingest.train_fraction": share, "utility.fractions": "[1.0]", "utility.seeds": seeds, **kept}
        if _experiment_ends_well(workspace, name, settings):
            found = dvc.api.read(str(paths.UTILITY / "utility.json"), repo=str(workspace), rev=name)
            rows += json.loads(found)["rows"]
        else:
            failed.append(name)
    if not rows:
        return rows, failed
    with atomic_folder(workspace / paths.STUDY) as folder:
        (folder / "table.csv").write_text(table(rows), encoding="utf-8")
        draw(folder / "study.png", rows)
    return rows, failed


def _experiment_ends_well(workspace: Path, name: str, settings: Mapping[str, object]) -> bool:
    """Run it in a copy of the workspace, whose own files stay as they are. It says itself why it fails."""
    with suppress(FailedError):  # there is none yet
        run_dvc(workspace, "exp", "remove", name)
    words = [f"--set-param=++{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "dvc", "exp", "run", "--temp", "--name", name, *words, "utility"]
    return subprocess.run(command, cwd=workspace).returncode == 0


def _absolute_source(document: Document) -> dict[str, str]:
    """Raw data that lies here by a relative path, which a copy elsewhere does not find by it."""
    source = document.content.get("source", {})
    texts = {key: source[key] for key in ("url", "root") if isinstance(source.get(key), str)}
    local = {key: text for key, text in texts.items() if "://" not in text}
    return {f"source.{key}": json.dumps(str(Path(path).resolve())) for key, path in local.items()}


def _table(rows: Sequence[Mapping[str, Any]], seeds: int) -> Table:
    shown = Table(box=None, pad_edge=False, caption_justify="left", caption_style="dim")
    for column in ("real images", "real only", "with synthetic", "points gained"):
        shown.add_column(column, justify="right", no_wrap=True)
    shown.add_column("verdict")
    for row in rows:
        gain, accuracy = row["gain_over_real_long"], row["accuracy"]
        shown.add_row(
            f"{row['real_images']:,} ({row['data']})",
            *(f"{accuracy[arm]['mean']:.2f}%" for arm in ("real_long", "mixed")),
            interval(gain),
            row["verdict"],
        )
    shown.caption = (
        "same-data: each generator had the images that its classifiers have. Real only: seen as often. "
        f"{seeds} seeds, paired 95 % t intervals, real test images."
    )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(prog="forgeline study")
    parser.add_argument("shares", nargs="+", type=float)
    parser.add_argument("--seeds", type=int, required=True)
    given = parser.parse_args()
    with ending():
        rows, failed = study(Path.cwd(), given.shares, given.seeds)
        if rows:
            Console().print(_table(rows, given.seeds))
            print(paths.STUDY / "table.csv", paths.STUDY / "study.png", sep="\n")
        if failed:
            raise FailedError(f"{', '.join(failed)} failed, as said above; what was made is kept, and used again")


if __name__ == "__main__":
    main()
