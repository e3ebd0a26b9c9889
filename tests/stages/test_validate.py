"""The stage on real ImageSets: report and Data Docs are written also when it fails, equal bytes for equal manifests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import FailedError, UserError
from pipeline.imageset import Row, write_imageset
from pipeline.imageset.manifest import write_manifest
from pipeline.params import Document
from pipeline.stages import validate

DOCUMENT = Document({"validate": {"min_images": 30, "min_images_per_class": 5}, "augment": {}})


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))


def write(which: str, *, images: int = 60, repeat_first_in_test: bool = False) -> None:
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (images, 1, 4, 4), dtype=np.uint8)

    def rows() -> Iterator[Row]:
        for i in range(images):
            split = ("train", "validation", "test")[i // 2 % 3] if which == "real" else "train"
            provenance: dict[str, Any] = {"width": 4, "height": 4, "mode": "L"}
            if which == "synthetic":
                provenance = {"seed": 1, "index": i, "spread": 1.0, "confidence": 0.99, "nearest_distance": 0.5}
            yield Row(split=split, label=i % 2, image=pictures[i], path=f"{i}.png", provenance=provenance)
        if repeat_first_in_test:
            yield Row(split="test", label=0, image=pictures[0], path="again.png", provenance=provenance)

    imageset = write_imageset(
        Path("out", which, "imageset"),
        rows(),
        classes=("even", "odd"),
        source={"kind": "made up"},
        resize=None,
        synthetic=which == "synthetic",
    )
    write_manifest(Path("out", which, "manifest.parquet"), imageset)


@pytest.mark.parametrize("which", ["real", "synthetic"])
def test_a_good_set_is_reported_the_same_twice(which: Any) -> None:
    write(which)
    outputs = []
    for _ in range(2):
        validate.run(DOCUMENT, which)
        files = sorted(path for path in Path("out/validation").rglob("*") if path.is_file())
        outputs.append({str(path): path.read_bytes() for path in files})
    assert list(outputs[0]) == [f"out/validation/{which}/docs/index.html", f"out/validation/{which}/report.json"]
    assert outputs[0] == outputs[1]
    report = json.loads(outputs[0][f"out/validation/{which}/report.json"])
    assert report["success"] is True
    assert report["expectations"] == {"evaluated": len(report["verdicts"]), "failed": 0}
    assert report["images"]["all"] == 60
    assert report["images_of_class_in_split"] == (
        {"least": 10, "most": 10} if which == "real" else {"least": 30, "most": 30}
    )
    assert report["duplicates"] == 0


def test_a_leak_fails_in_one_sentence_after_report_and_docs_were_written() -> None:
    write("real", repeat_first_in_test=True)
    with pytest.raises(FailedError) as caught:
        validate.run(DOCUMENT, "real")
    assert str(caught.value) == (
        "out/real/manifest.parquet: 1 of 25 expectations failed: 'no picture is in two splits' (2 of 61 rows: 0.png "
        "(splits_of_content 2), again.png (splits_of_content 2)); see out/validation/real/docs/index.html, and "
        "'validate' in params.yaml for the thresholds"
    )
    report = json.loads(Path("out/validation/real/report.json").read_bytes())
    assert report["success"] is False
    assert report["expectations"]["failed"] == 1
    assert report["duplicates"] == 1
    assert "no picture is in two splits" in Path("out/validation/real/docs/index.html").read_text()


def test_too_few_images_and_too_small_classes_are_both_named() -> None:
    write("real", images=6)
    with pytest.raises(FailedError) as caught:
        validate.run(DOCUMENT, "real")
    assert str(caught.value).startswith(
        "out/real/manifest.parquet: 2 of 25 expectations failed: 'there are at least 30 images' (6); 'every class has "
        "at least 5 images in every split' (1); see "
    )


def test_a_missing_manifest_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match=r"^out/real/manifest.parquet: not found; needed the manifest that 'dvc repro'"):
        validate.run(DOCUMENT, "real")


def test_what_is_not_parquet_is_a_users_mistake() -> None:
    write("real")
    Path("out/real/manifest.parquet").write_text("split,label\n")
    with pytest.raises(UserError, match=r"^out/real/manifest.parquet: is not Parquet"):
        validate.run(DOCUMENT, "real")


def test_a_section_that_is_no_mapping_is_named() -> None:
    write("synthetic")
    with pytest.raises(UserError, match=r"^params\.yaml: augment found nothing, needed a mapping$"):
        validate.run(Document({**DOCUMENT.content, "augment": None}), "synthetic")


def test_a_setting_that_makes_no_sense_is_named_before_anything_is_read() -> None:
    with pytest.raises(UserError, match=r"^params.yaml: validate.min_images is 0; needed at least 1$"):
        validate.run(Document({"validate": {"min_images": 0}}), "real")
