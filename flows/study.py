"""`forgeline study`: the same-data study, one DVC experiment for each share of the real training images.

In each, generator and classifiers have the same images, this share of them. So a verdict of it holds for somebody who
has as few, and all verdicts together say from how many images on, or up to how many, a synthetic set helps. Generators
that differ in their seed only may give sets of very different use: of several, a verdict holds for the next one too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
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
from pipeline.metrics.utility import Interval, rare_verdict, t_interval, verdict
from pipeline.params import Document

Row = dict[str, Any]  # of utility.json
_GAINS = ("gain_over_real", "gain_over_real_long")
_RARE_GAINS = ("recall_gain", "balanced_accuracy_gain")


@dataclass(frozen=True)
class Study:
    """What its experiments ended with, and the names of those that failed."""

    sets: list[list[Row]] = field(default_factory=list)  # of each share, in the order of the generators' seeds
    failed: list[str] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        """One for each share."""
        return [over_generators(sets) for sets in self.sets]


def study(workspace: Path, shares: Sequence[float], seeds: int, generators: int) -> Study:
    """Run the experiments of the shares, in (0, 1], the smallest first; each has `generators`, by seeds that follow.

    The experiments stay, as `same-data-SHARE`, or `same-data-SHARE-seed-SEED` for a second generator and its next; what
    one made before is restored and not made again, so that a study which was interrupted goes on. One that fails, as
    where a generator of few images gives copies of them only, leaves the others their turn; a share that is left with
    one generator of several has no row. Also writes out/study, table.csv and study.png, where there is a row.
    """
    from pipeline.report.utility import draw
    from pipeline.stages.train import read_params
    from pipeline.stages.utility import table

    document = read_all_params(workspace)
    read_stages(workspace)
    kept = _absolute_source(document)
    if document.mapping("train").get("warm_start"):  # what a parent learned from would count too
        kept["train.warm_start"] = "null"
    found, number = Study(), 0
    shares = sorted(set(shares))
    first = read_params(document)[0].seed
    for share in shares:
        sets = []
        for seed in range(first, first + generators):
            number += 1
            name = f"same-data-{share:g}" + (f"-seed-{seed}" if seed > first else "")
            print(f"study: experiment {number} of {len(shares) * generators}, {name}", flush=True)
            settings = {"ingest.train_fraction": share, "utility.fractions": "[1.0]", "utility.seeds": seeds, **kept}
            if _experiment_ends_well(workspace, name, settings | {"train.seed": seed}):
                text = dvc.api.read(str(paths.UTILITY / "utility.json"), repo=str(workspace), rev=name)
                sets += json.loads(text)["rows"]
            else:
                found.failed.append(name)
        if len(sets) >= min(generators, 2):
            found.sets.append(sets)
    if rows := found.rows:
        with atomic_folder(workspace / paths.STUDY) as folder:
            (folder / "table.csv").write_text(table(rows), encoding="utf-8")
            draw(folder / "study.png", rows, found.sets)
    return found


def over_generators(sets: Sequence[Row]) -> Row:
    """One row of those of several sets of a share: means over them, with intervals over the generators' own means."""
    if len(sets) == 1:
        return sets[0]

    def over(found: Sequence[dict[Any, Any]]) -> dict[Any, Any]:
        """Of an interval, or of each in a dict of such."""
        if "mean" in found[0]:
            return asdict(t_interval([each["mean"] for each in found]))
        return {name: over([each[name] for each in found]) for name in found[0]}

    row = {name: sets[0][name] for name in ("data", "data_fraction", "protocol", "real_images")}
    row |= {name: over([each[name] for each in sets]) for name in ("accuracy", *_GAINS)}
    row["verdict"] = verdict([Interval(**row[gain]) for gain in _GAINS])
    if "rare" in sets[0]:
        rare = [each["rare"] for each in sets]
        merged = {name: over([each[name] for each in rare]) for name in (*_RARE_GAINS, "recall", "balanced_accuracy")}
        gains = ({arm: Interval(**gain) for arm, gain in merged[name].items()} for name in _RARE_GAINS)
        row["rare"] = {"images": rare[0]["images"], "verdict": rare_verdict(*gains), **merged}
    return row


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


def _table(found: Study, seeds: int) -> Table:
    shown = Table(box=None, pad_edge=False, caption_justify="left", caption_style="dim")
    for column in ("real images", "real only", "with synthetic", "points gained"):
        shown.add_column(column, justify="right", no_wrap=True)
    shown.add_column("verdict")
    for row in found.rows:
        gain, accuracy = row["gain_over_real_long"], row["accuracy"]
        shown.add_row(
            f"{row['real_images']:,} ({row['data']})",
            *(f"{accuracy[arm]['mean']:.2f}%" for arm in ("real_long", "mixed")),
            interval(gain),
            row["verdict"],
        )
    shown.caption = (
        "same-data: each generator had the images that its classifiers have. Real only: seen as often. "
        f"{seeds} seeds, paired, real test images; 95 % t intervals over the "
    )
    several = [sets for sets in found.sets if len(sets) > 1]
    shown.caption += "generators, whose sets gain, * where the card advises to mix it in:" if several else "seeds."
    for sets in several:
        gains = (f"{row['gain_over_real_long']['mean']:+.2f}" + "*" * bool(row["advised_share"]) for row in sets)
        shown.caption += f"\n{sets[0]['real_images']:,} ({sets[0]['data']}): " + " ".join(gains)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(prog="forgeline study")
    parser.add_argument("shares", nargs="+", type=float)
    parser.add_argument("--seeds", type=int, required=True)
    parser.add_argument("--generators", type=int, required=True)
    given = parser.parse_args()
    with ending():
        found = study(Path.cwd(), given.shares, given.seeds, given.generators)
        if found.sets:
            Console().print(_table(found, given.seeds))
            print(paths.STUDY / "table.csv", paths.STUDY / "study.png", sep="\n")
        if found.failed:
            raise FailedError(f"{', '.join(found.failed)} failed, as said above; what was made is kept, and used again")


if __name__ == "__main__":
    main()
