"""The data before a run beside the data after it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prefect.artifacts import create_table_artifact

from flows.commands import dvc
from flows.place import Place
from pipeline import paths
from pipeline.errors import FailedError, ForgelineError
from pipeline.imageset import ImageSet

_REAL = paths.REAL / paths.IMAGESET


@contextmanager
def data_before(place: Place) -> Iterator[ImageSet | None]:
    """The real images as they are now, kept while stages make others; None where there are none yet."""
    here = place.workspace / _REAL
    if place.own and place.remembered.lock is not None and not here.exists():
        with suppress(FailedError):  # the cache was emptied: there is nothing to compare with
            dvc(place.workspace, "pull" if place.pull else "checkout", str(paths.REAL))
    if not here.is_dir():
        yield None
        return
    near = place.clone / ".dvc" / "tmp"
    near.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=near) as temporary:
        copy = Path(temporary) / paths.IMAGESET
        shutil.copytree(here, copy, copy_function=_link)
        try:
            found = ImageSet.open(copy)
        except ForgelineError:  # of another version of Forgeline
            yield None
            return
        yield found


def record_drift(before: ImageSet | None, workspace: Path) -> None:
    """Create the artifact `drift` of the run, where the real images became others."""
    if before is None or not (workspace / _REAL).is_dir():
        return
    now = ImageSet.open(workspace / _REAL)
    if now.fingerprint == before.fingerprint:
        return
    create_table_artifact(drift_table(before, now, workspace), key="drift", description=f"{_REAL} before and now")


def drift_table(before: ImageSet, now: ImageSet, workspace: Path) -> list[dict[str, Any]]:
    """A row for each split, each class and each distance."""
    from pipeline.metrics.drift import drift
    from pipeline.metrics.judges import Judges

    found = drift(before, now, Judges.load(workspace / paths.FEATURES).extractor)
    rows = [_row(f"images, {split}", f"{then:,}", f"{today:,}") for split, (then, today) in found.images.items()]
    rows += [_row(f"share of {name}", f"{then:.1%}", f"{today:.1%}") for name, (then, today) in found.shares.items()]
    rows.append(_row("class balance, total variation distance", "", f"{found.balance:.3f}"))
    floor, distance = (f"{value:.4g}" if value is not None else "too few" for value in (found.floor, found.features))
    rows.append(_row("Fréchet distance in features (before: of two halves)", floor, distance))
    return rows


def _row(what: str, before: str, now: str) -> dict[str, Any]:
    return {"what": what, "before": before, "now": now}


def _link(source: str, target: str) -> None:
    """A hard link, since stages replace files and never write into them; a copy where the file system has none."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)
