"""The report: what stands in it is what the stages wrote, and nothing is fetched to show it."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import paths
from pipeline.errors import UserError
from pipeline.imageset import Row, png, write_imageset
from pipeline.report.page import page, write_report

INTERVAL = {"mean": 3.25, "low": 2.5, "high": 4.0}
PICTURE = png.encode(np.zeros((1, 8, 8), np.uint8))


class Text(HTMLParser):
    """The words of a page, and all that its elements refer to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words, self.references, self.opened = "", list[str](), list[str]()
        self.feed(html)
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]

    def handle_data(self, data: str) -> None:
        self.words += f" {data}"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """What all stages leave, made small: two classes, one named like an element of HTML."""
    rows = [
        Row(
            split="train",
            label=label,
            image=np.full((1, 8, 8), 9 * label + place, np.uint8),
            path=f"{label}{place}",
            provenance={},
        )
        for label in range(2)
        for place in range(3)
    ]
    imageset = write_imageset(
        tmp_path / paths.SYNTHETIC / paths.IMAGESET,
        rows,
        classes=("zero", "<b>one"),
        source={"kind": "generator", "licence": "cc-by-4.0", "description": "Drawn for a test"},
        resize=None,
        synthetic=True,
        generator={"family": "conditional", "model_sha256": "ab" * 32, "data_fingerprint": "cd" * 32},
    )
    assert sum(map(sum, imageset.counts.values())) == 6
    row = {
        "data": "5 %",
        "real_images": 1234,
        "protocol": "shared-generator",
        "verdict": "helps",
        "gain_over_real": INTERVAL,
        "gain_over_real_long": INTERVAL,
        "accuracy": {"real_long": {"mean": 94.125}},
        "advised_share": 0.7,
        "class_gain_over_real_long": {"<b>one": INTERVAL},
    }
    entry = {"measures": ["fidelity"], "generated": "6 released images", "real": "8 real images"}
    validation = {"expectations": {"evaluated": 30, "failed": 1}}
    documents: dict[Path, Any] = {
        paths.MODEL / "model.json": {
            "family": "conditional",
            "images_seen": 640_000,
            "data_fingerprint": "cd" * 32,
            "selection": {"metric": "a distance"},
        },
        paths.EVALUATION / "model" / "metrics.json": {"fidelity": {"fid": 0.0625}},
        paths.SYNTHETIC / "report.json": {"drawn": 11, "kept": 6, "dropped": {"near_copy": 5, "duplicate": 0}},
        paths.EVALUATION / "synthetic" / "metrics.json": {
            "fidelity": {"fid": 0.0375},
            "memorization": {"nearer_than_percentile_1": 0.021, "copies": 0},
            "protocol": [entry],
        },
        paths.UTILITY / "utility.json": {
            "rows": [row],
            "synthetic_only_accuracy": 98.9,
            "protocol": ["Intervals are paired."],
        },
        paths.VALIDATION / "real" / "report.json": validation,
        paths.VALIDATION / "synthetic" / "report.json": validation,
    }
    figures = tmp_path / paths.EVALUATION / "synthetic" / "figures"
    figures.mkdir(parents=True)
    (figures / "samples.png").write_bytes(PICTURE)
    (figures / "per_class.csv").write_text("class,agreement\nzero,0.99\n<b>one,0.875\n")
    for path, content in documents.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(json.dumps(content))
    (tmp_path / paths.TRAINING).mkdir()
    (tmp_path / paths.TRAINING / "curves.csv").write_text(
        "images_seen,generator_loss,real_accuracy\n10,1.5,0.75\n20,1.25,\n"
    )
    return tmp_path


def test_the_verdict_comes_first_and_every_number_is_there(workspace: Path) -> None:
    words = Text(page(workspace)).words
    order = ["this set helps with 5 % of them", "What is in it", "How good it is", "What it risks", "How it was made"]
    places = [words.index(part) for part in order]
    assert places == sorted(places)
    for said in (
        "right on 98.9 % of real test images",
        "5 % (1,234) helps +3.25 [+2.50, +4.00] +3.25 [+2.50, +4.00] 70 % shared-generator",
        "FID, in-domain features 0.0625 0.0375",
        "2.1 % is nearer to a training image",
        "drew 11 samples; 6 were kept (dropped: near copy 5)",
        "29 of 30 hold for the real images",
        "fidelity: 6 released images, against 8 real images",
        "Intervals are paired.",
    ):
        assert said in words


def test_the_worst_class_is_named_first_with_what_it_gains(workspace: Path) -> None:
    words = Text(page(workspace)).words
    assert re.search(r"<b>one 87\.5 % \+3\.25 \[\+2\.50, \+4\.00\] zero 99\.0 %", words)


def test_rare_classes_are_named_with_what_filling_them_up_gains(workspace: Path) -> None:
    path = workspace / paths.UTILITY / "utility.json"
    content = json.loads(path.read_text())
    gains = {arm: INTERVAL | {"mean": mean} for arm, mean in {"real_long": 9, "oversampled": 4, "weighted": 5}.items()}
    content["rows"][0]["rare"] = {"images": {"<b>one": 7}, "verdict": "helps", "recall_gain": gains}
    path.write_text(json.dumps(content))
    words = Text(page(workspace)).words
    assert "Filling up the rare classes (<b>one) with it helps with 5 % of them (shared-generator)." in words
    assert "5 % (7 images) helps +9.00 [+2.50, +4.00] +4.00 [+2.50, +4.00] +5.00 [+2.50, +4.00]" in words


def test_it_says_how_the_game_stood(workspace: Path) -> None:
    stands = {"held_out": "validation split", "objective": "non_saturating", "images": 2000, "gap": 0.2}
    stands |= {"train_accuracy": 0.9, "held_out_accuracy": 0.7, "fake_accuracy": 0.8, "train_over_held_out": 0.66}
    stands |= {"held_out_over_fake": 0.77, "calibration_error": 0.05}
    assert "told rightly" not in Text(page(workspace)).words
    (workspace / paths.TRAINING / "game.json").write_text(json.dumps(stands))
    words = Text(page(workspace)).words
    assert "told rightly 90 % of the images that it had learned from, 70 % of real images" in words
    assert "off by 5 points on average" in words
    del stands["calibration_error"]
    (workspace / paths.TRAINING / "game.json").write_text(json.dumps(stands))
    assert "probabilities are off" not in Text(page(workspace)).words


def test_names_are_text_and_never_elements(workspace: Path) -> None:
    assert "<b>one" not in page(workspace)


def test_nothing_is_fetched_and_pictures_are_whole(workspace: Path) -> None:
    references = Text(page(workspace)).references
    pictures = [base64.b64decode(each.removeprefix("data:image/png;base64,")) for each in references]
    assert len(pictures) == 2  # samples and curves; those that no stage drew are left out
    assert PICTURE in pictures
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)


def test_equal_outputs_give_an_equal_page(workspace: Path) -> None:
    assert page(workspace) == page(workspace)
    assert (workspace / write_report(workspace)).read_text() == page(workspace)


SYNTHETIC = paths.EVALUATION / "synthetic"


@pytest.mark.parametrize(
    "path", [paths.UTILITY / "utility.json", SYNTHETIC / "metrics.json", SYNTHETIC / "figures" / "per_class.csv"]
)
def test_before_evaluation_it_says_what_is_missing(workspace: Path, path: Path) -> None:
    (workspace / path).unlink()
    with pytest.raises(
        UserError, match=rf"^{workspace / path}: is not there; needed what all stages wrote, run 'dvc repro' first$"
    ):
        write_report(workspace)
    assert not (workspace / paths.OUT / "report.html").exists()


@pytest.mark.parametrize("content", ["", "[]"])
@pytest.mark.parametrize(
    "path", [paths.MODEL / "model.json", SYNTHETIC / "metrics.json", paths.UTILITY / "utility.json"]
)
def test_what_no_stage_wrote_is_named(workspace: Path, path: Path, content: str) -> None:
    (workspace / path).write_text(content)
    with pytest.raises(
        UserError, match=rf"{path}: is not a JSON object; needed what all stages wrote, run 'dvc repro'"
    ):
        write_report(workspace)


def test_a_lock_without_stages_is_named(workspace: Path) -> None:
    (workspace / "dvc.lock").write_text("schema: '2.0'\nstages:\n")
    with pytest.raises(UserError, match=r"dvc\.lock: stages found nothing, needed a mapping$"):
        write_report(workspace)
