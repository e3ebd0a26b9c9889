"""validate: what must hold for the manifest of the real or of the synthetic images, before anybody builds on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import paths
from pipeline.errors import FailedError, UserError
from pipeline.expectations.thresholds import Thresholds as Params
from pipeline.imageset import ImageSet
from pipeline.imageset.files import atomic_folder, write_atomically
from pipeline.params import Document

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.expectations.check import Report

_NAMED = 5  # failed expectations, in the sentence that a failure ends with


def read_params(document: Document) -> Params:
    """`validate` of params.yaml."""
    return document.section("validate", Params)


def run(document: Document, which: Literal["real", "synthetic"]) -> None:
    """Write report.json and the Data Docs of `which`. Raises FailedError when an expectation does not hold."""
    params = read_params(document)
    source, target = paths.OUT / which, paths.VALIDATION / which
    manifest = read_manifest(source / paths.MANIFEST)
    classes = ImageSet.open(source / paths.IMAGESET).classes

    from pipeline.expectations import suites  # takes seconds to import: after what can be wrong at once
    from pipeline.expectations.check import check

    if which == "real":
        suite = suites.real_suite(params, classes)
    else:  # with other counts there are other rows: the manifest tells DVC
        unequal = document.mapping("augment").get("class_counts")
        suite = suites.synthetic_suite(params, classes, balanced=not unequal)
    report = check(suites.with_counts(manifest, classes), suite)
    with atomic_folder(target / "docs") as docs:
        (docs / "index.html").write_text(report.page, encoding="utf-8")
    content = json.dumps(count_images(manifest) | report.to_json(), indent=2, ensure_ascii=False)
    write_atomically(target / "report.json", f"{content}\n".encode())
    if not report.success:
        raise FailedError(
            f"{source / paths.MANIFEST}: {failure(report)}; see {target / 'docs' / 'index.html'}, "
            f"and 'validate' in {document.name} for the thresholds"
        )
    print(f"{which}: all {len(report.verdicts)} expectations hold for {len(manifest):,} images")


def read_manifest(path: Path) -> pd.DataFrame:
    """The manifest as a frame. Raises UserError when it is not there or is not Parquet."""
    try:
        frame: pd.DataFrame = pq.read_table(path).to_pandas()
    except FileNotFoundError:
        raise UserError(f"{path}: not found; needed the manifest that 'dvc repro' writes") from None
    except pa.ArrowInvalid:
        raise UserError(f"{path}: is not Parquet; needed the manifest that 'dvc repro' writes") from None
    return frame


def count_images(manifest: pd.DataFrame) -> dict[str, Any]:
    """Numbers for `dvc metrics show`: images by split, the classes' sizes, pictures that are there more than once."""
    if not {"split", "label", "content"} <= set(manifest.columns):
        return {"images": {"all": len(manifest)}}
    splits = manifest["split"].value_counts()
    sizes = manifest.groupby(["split", "label"]).size()
    return {
        "images": {"all": len(manifest), **{split: int(splits[split]) for split in sorted(splits.index)}},
        "images_of_class_in_split": {"least": int(sizes.min()), "most": int(sizes.max())} if len(sizes) else {},
        "duplicates": int(manifest["content"].duplicated().sum()),
    }


def failure(report: Report) -> str:
    """What a failed report ends with: which expectations, and what was found instead."""
    if not report.verdicts:
        return "no expectation was evaluated; needed at least one"
    named = [f"'{verdict.expectation}' ({verdict.observed})" for verdict in report.failed[:_NAMED]]
    more = len(report.failed) - len(named)
    rest = f" and {more} more" if more else ""
    return f"{len(report.failed)} of {len(report.verdicts)} expectations failed: {'; '.join(named)}{rest}"
