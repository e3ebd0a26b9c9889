"""The report: what stands in it is what the stages wrote, and nothing is fetched to show it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable
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
LOSS = {"mean": -2.25, "low": -3.5, "high": -1.0}
UNSURE = {"mean": -4.5, "low": -9.5, "high": 0.5}
FIGURES = paths.EVALUATION / "synthetic" / "figures"
PICTURES = [  # all that stages draw
    FIGURES / "agreement.png",
    FIGURES / "closest.png",
    FIGURES / "distances.png",
    FIGURES / "samples.png",
    paths.SYNTHETIC / "search.png",
    paths.TRAINING / "interpolation.png",
    paths.UTILITY / "figures" / "utility.png",
]


def picture_of(place: int) -> bytes:
    """A PNG that is none of the others, and wider than a phone."""
    return png.encode(np.full((1, 64, 800), place, np.uint8))


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


def edit(workspace: Path, path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file."""
    content = json.loads((workspace / path).read_text())
    change(content)
    (workspace / path).write_text(json.dumps(content))


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
    row: dict[str, Any] = {
        "data": "5 %",
        "real_images": 1234,
        "protocol": "shared-generator",
        "verdict": "helps",
        "gain_over_real": INTERVAL,
        "gain_over_real_long": INTERVAL,
        "advised_share": 0.7,
        "accuracy": {"real_long": {"mean": 94.125}, "mixed": {"mean": 97.375}},
        "class_gain_over_real_long": {"zero": UNSURE, "<b>one": INTERVAL},
    }
    other = row | {"data": "100 %", "verdict": "harms", "class_gain_over_real_long": {"zero": None, "<b>one": LOSS}}
    tried = {"spread": 1.0, "min_confidence": 0.5, "manifold_neighbours": 0, "surprise": 0.25, "chosen": False}
    entry = {
        "measures": ["fidelity", "floor"],
        "generated": "6 released images",
        "real": "8 real images",
        "extractor_sha256": "ef" * 32,
        "judges_sha256": ["ab" * 32, "cd" * 32],
        "seed": 2,
    }
    validation = {"expectations": {"evaluated": 30, "failed": 1}}
    documents: dict[Path, Any] = {
        paths.MODEL / "model.json": {
            "family": "conditional",
            "images_seen": 640_000,
            "data_fingerprint": "cd" * 32,
            "selection": {"metric": "a distance"},
        },
        paths.EVALUATION / "model" / "metrics.json": {
            "fidelity": {"fid": 0.0625},
            "untrained": {"fid": 13.5},
            "protocol": [entry | {"measures": ["untrained"], "generated": "9 unfiltered samples"}],
        },
        paths.SYNTHETIC / "report.json": {
            "drawn": 11,
            "kept": 6,
            "dropped": {"near_copy": 5, "duplicate": 0},
            "search": [tried, tried | {"spread": 1.2, "surprise": 0.125, "chosen": True}],
            "params": {"seed": 3},
        },
        paths.EVALUATION / "synthetic" / "metrics.json": {
            "fidelity": {"fid": 0.0375},
            "images": 6,
            "memorization": {"nearer_than_percentile_1": 0.021, "copies": 0},
            "memorization_spread": {"nearer_than_percentile_1": 0.002},
            "memorization_floor": {"nearer_than_percentile_1": 0.012},
            "protocol": [entry],
        },
        paths.UTILITY / "utility.json": {
            "rows": [row, other],
            "synthetic_only_accuracy": 98.9,
            "protocol": ["Intervals are paired."],
        },
        paths.VALIDATION / "real" / "report.json": validation,
        paths.VALIDATION / "synthetic" / "report.json": validation,
    }
    for place, path in enumerate(PICTURES):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(picture_of(place))
    (tmp_path / FIGURES / "per_class.csv").write_text("class,agreement\nzero,0.99\n<b>one,0.875\n")
    for path, content in documents.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(json.dumps(content))
    (tmp_path / paths.TRAINING / "curves.csv").write_text(
        "images_seen,generator_loss,real_accuracy\n10,1.5,0.75\n20,1.25,\n"
    )
    (tmp_path / "params.yaml").write_text("publish: {url: null, name: hand-written}\n")
    stages = {"train": {"params": {"params.yaml": {"train.images": 640_000}}}}
    (tmp_path / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": stages}))
    return tmp_path


def test_the_verdict_comes_first_and_every_number_is_there(workspace: Path) -> None:
    words = Text(page(workspace)).words
    assert words.startswith("Hand written: synthetic images")
    order = ["this set helps with 5 % of them", "What is in it", "How good it is", "What it risks", "How it was made"]
    places = [words.index(part) for part in order]
    assert places == sorted(places)
    for said in (
        "right on 98.9 % of real test images. For comparison: trained on 100 % of the real images (1,234) and on "
        "nothing else, a classifier is right on 94.1 %.",
        "5 % (1,234) helps +3.25 [+2.50, +4.00] +3.25 [+2.50, +4.00] 70 % shared-generator",
        "with 95 % intervals; each stands for itself, none is corrected for how many comparisons there are.",
        "FID, in-domain features 0.0625 0.0375",
        "Of 6 images of this set, 2.1 % are nearer to a training image than 99 % of held-out real images are (expected "
        "of new real images: 1.2 %), and 0 are exact copies",
        "drew 11 samples; 6 were kept (dropped: near copy 5)",
        "29 of 30 hold for the real images",
        "Settings train train.images: 640000",
        "Intervals are paired.",
    ):
        assert said in words


def test_what_a_picture_shows_of_the_search_is_said_where_there_was_one(workspace: Path) -> None:
    assert "Of 2 settings that were tried on validation images, spread 1.2 with" in Text(page(workspace)).words
    edit(workspace, paths.SYNTHETIC / "report.json", lambda report: report["search"].__delitem__(0))
    edit(workspace, paths.SYNTHETIC / "report.json", lambda report: report["search"][0].update(surprise=None))
    alone = Text(page(workspace))
    assert "settings that were tried" not in alone.words
    assert len(alone.references) == len(PICTURES)  # the curves instead of the search


def test_every_number_has_its_whole_protocol(workspace: Path) -> None:
    words = Text(page(workspace)).words
    shared = f"extractor sha256 {'ef' * 6} judges sha256 {'ab' * 6}, {'cd' * 6} seed 2"
    assert f"this set: fidelity, floor generated 6 released images real 8 real images {shared}" in words
    assert f"model, unfiltered: untrained generated 9 unfiltered samples real 8 real images {shared}" in words


def test_where_the_set_comes_from(workspace: Path) -> None:
    words = Text(page(workspace)).words
    lock = hashlib.sha256((workspace / "dvc.lock").read_bytes()).hexdigest()
    for said in (
        f"training data fingerprint {'cd' * 32}",
        f"model sha256 {'ab' * 32}",
        "seed 3 git commit unknown",
        f"dvc.lock sha256 {lock}",
        "snapshot chosen by a distance",
    ):
        assert said in words
    (workspace / "dvc.lock").unlink()
    assert "dvc.lock unknown" in Text(page(workspace)).words


def test_the_classes_that_judges_see_least_come_first(workspace: Path) -> None:
    assert re.search(r"judges agree <b>one 87\.5 % zero 99\.0 %", Text(page(workspace)).words)


def test_a_class_that_loses_at_any_share_is_named_before_those_that_may(workspace: Path) -> None:
    words = Text(page(workspace)).words
    assert "<b>one 100 % -2.25 [-3.50, -1.00] loses zero 5 % -4.50 [-9.50, +0.50] Of 3 intervals" in words
    assert "1 class loses: there the whole interval lies below zero." in words
    edit(workspace, paths.UTILITY / "utility.json", lambda utility: utility["rows"].pop())
    words = Text(page(workspace)).words
    assert "zero 5 % -4.50 [-9.50, +0.50] <b>one 5 % +3.25 [+2.50, +4.00] Of 2 intervals" in words
    assert "class loses" not in words


def test_rare_classes_have_levels_gains_and_the_part_to_fill_up_with(workspace: Path) -> None:
    arms = ("real", "real_long", "oversampled", "weighted")
    gains = {arm: INTERVAL | {"mean": mean} for arm, mean in zip(arms, (19, 9, 4, 5), strict=True)}
    levels = {arm: {"mean": mean, "low": 1.0, "high": 99.0} for mean, arm in enumerate((*arms, "filled"), start=50)}
    rare = {"images": {"<b>one": 7}, "verdict": "helps", "advised_share": 0.3}
    rare |= {"recall": levels, "balanced_accuracy": levels, "recall_gain": gains, "balanced_accuracy_gain": gains}
    edit(workspace, paths.UTILITY / "utility.json", lambda utility: utility["rows"][0].update(rare=rare))
    words = Text(page(workspace)).words
    assert "Filling up the rare classes (<b>one) with it helps with 5 % of them (shared-generator: +4.00 [" in words
    assert "rare classes (<b>one with 7 images), with 5 % of the real images" in words
    filled, gained = "54.00 [1.00, 99.00]", "[+2.50, +4.00]"
    assert f"rare classes filled up: helps {filled} {filled}" in words
    told = [("only", 50, 19), ("only, seen as often", 51, 9), ("only, losses weighted by class", 53, 5)]
    for arm, level, gain in told:
        both = f"{level}.00 [1.00, 99.00] +{gain}.00 {gained}"
        assert f"real images {arm} {both} {both}" in words
    assert "synthetic part to fill up with 30 %" in words


def test_it_says_how_the_game_stood(workspace: Path) -> None:
    stands = {"held_out": "validation split", "objective": "non_saturating", "images": 2000, "gap": 0.2}
    stands |= {"train_accuracy": 0.9, "held_out_accuracy": 0.7, "fake_accuracy": 0.8, "train_over_held_out": 0.66}
    stands |= {"held_out_over_fake": 0.77, "calibration_error": 0.05}
    assert "When training ended" not in Text(page(workspace)).words
    (workspace / paths.TRAINING / "game.json").write_text(json.dumps(stands))
    words = Text(page(workspace)).words
    assert "took 90 % of the images that it had learned from for real, 70 % of real images that" in words
    assert "and 80 % of fakes for fakes" in words
    assert "off by 5 points on average" in words
    del stands["calibration_error"]
    (workspace / paths.TRAINING / "game.json").write_text(json.dumps(stands))
    assert "probabilities are off" not in Text(page(workspace)).words


def test_names_are_text_and_never_elements(workspace: Path) -> None:
    assert "<b>one" not in page(workspace)


def test_nothing_is_fetched_and_pictures_are_whole(workspace: Path) -> None:
    references = Text(page(workspace)).references
    pictures = [base64.b64decode(each.removeprefix("data:image/png;base64,")) for each in references]
    assert len(pictures) == len(PICTURES) + 1  # the curves are drawn for the page
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert {picture_of(place) for place in range(len(PICTURES))} < set(pictures)


@pytest.mark.parametrize("path", [*PICTURES, paths.TRAINING / "curves.csv"])
def test_what_no_stage_drew_is_left_out(workspace: Path, path: Path) -> None:
    (workspace / path).unlink()
    assert len(Text(page(workspace)).references) == len(PICTURES)


def test_the_curves_lie_beside_the_page(workspace: Path) -> None:
    write_report(workspace)
    picture = base64.b64encode((workspace / paths.OUT / "curves.png").read_bytes()).decode()
    assert picture in (workspace / paths.OUT / "report.html").read_text()


# Of a frame as wide as a phone, since a window of a browser without a screen is no narrower than 500 pixels.
FRAME = """<iframe src="page.html" width="{width}" height="900" style="border: 0"></iframe><script>
addEventListener("message", (event) => {{ document.title = event.data; }});</script>"""
PROBE = """<script>const verdicts = document.querySelector("table").parentElement;
  addEventListener("load", () => parent.postMessage([innerWidth, document.documentElement.scrollWidth,
  verdicts.scrollWidth <= verdicts.clientWidth,
  ...new Set([...document.querySelectorAll("details table")].map((each) => each.checkVisibility()))].join(" "), "*"));
</script></body>"""


@pytest.fixture
def rendered(workspace: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """In a browser: how wide the frame is, how wide what it shows, whether all of the table of verdicts is seen, and
    whether the folded tables are.
    """
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium is installed")

    def render(width: int, *, printed: bool = False) -> list[str]:
        html = page(workspace).replace("</body>", PROBE)
        (tmp_path / "page.html").write_text(html.replace("@media print {", "@media all {") if printed else html)
        (tmp_path / "frame.html").write_text(FRAME.format(width=width))
        words = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", "--dump-dom"]
        words += [f"--user-data-dir={tmp_path / 'browser'}", "--window-size=1400,1000", f"file://{tmp_path}/frame.html"]
        found = subprocess.run([browser, *words], check=True, capture_output=True, text=True, timeout=300).stdout
        title = re.search("<title>(.*?)</title>", found)
        assert title is not None, found
        return title[1].split()

    return render


@pytest.mark.parametrize("width", [1280, 390])
def test_it_is_as_wide_as_the_screen(rendered: Callable[..., list[str]], width: int) -> None:
    frame, shown, *seen = rendered(width)
    assert (int(frame), seen) == (width, ["true", "false"])
    assert int(shown) <= width


def test_in_print_what_is_folded_is_seen(rendered: Callable[..., list[str]]) -> None:
    assert rendered(1280, printed=True)[3:] == ["true"]


def test_phones_and_printers_are_told_how_to_show_it(workspace: Path) -> None:
    html = page(workspace)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    (printed,) = re.findall(r"@media print \{(.*?)^\}", html, re.MULTILINE | re.DOTALL)
    assert "details::details-content { content-visibility: visible;" in printed
    assert "break-inside: avoid" in printed


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
    (workspace / "dvc.lock").write_text("stages: {train: null}\n")
    with pytest.raises(UserError, match=r"dvc\.lock: stages\.train is missing, empty or of another kind; needed"):
        write_report(workspace)


OF_A_ROW = ("advised_share", "class_gain_over_real_long", "data", "gain_over_real", "protocol", "verdict")


@pytest.mark.parametrize(
    ("path", "change", "lacking"),
    [
        (paths.UTILITY / "utility.json", lambda utility: utility.clear(), "rows"),
        (paths.UTILITY / "utility.json", lambda utility: utility.update(rows=[]), "rows"),
        *(
            (paths.UTILITY / "utility.json", lambda utility, key=key: utility["rows"][1].pop(key), rf"rows\[1\]\.{key}")
            for key in OF_A_ROW
        ),
        (
            paths.UTILITY / "utility.json",
            lambda utility: utility["rows"][0]["gain_over_real"].update(low=None),
            r"rows\[0\]\.gain_over_real\.low",
        ),
        (paths.SYNTHETIC / "report.json", lambda report: report.clear(), "drawn"),
        (paths.SYNTHETIC / "report.json", lambda report: report.update(search=[None]), r"search\[0\]"),
        (paths.MODEL / "model.json", lambda model: model.clear(), "family"),
        (SYNTHETIC / "metrics.json", lambda metrics: metrics.clear(), "protocol"),
        (SYNTHETIC / "metrics.json", lambda metrics: metrics.update(fidelity={"fid": "low"}), r"fidelity\.fid"),
        (paths.EVALUATION / "model" / "metrics.json", lambda metrics: metrics.clear(), "protocol"),
        (paths.VALIDATION / "real" / "report.json", lambda report: report.clear(), "expectations"),
    ],
)
def test_what_an_older_or_damaged_stage_did_not_write_is_named(
    workspace: Path, path: Path, change: Callable[[dict[str, Any]], object], lacking: str
) -> None:
    edit(workspace, path, change)
    with pytest.raises(
        UserError,
        match=rf"^{workspace / path}: {lacking} is missing, empty or of another kind; needed what all stages wrote",
    ):
        write_report(workspace)


def test_a_table_without_its_columns_is_named(workspace: Path) -> None:
    (workspace / FIGURES / "per_class.csv").write_text("class\nzero\n")
    with pytest.raises(UserError, match=r"per_class\.csv: has no column agreement; needed what all stages wrote"):
        write_report(workspace)


@pytest.mark.parametrize(
    ("path", "content", "lacking"),
    [
        (FIGURES / "per_class.csv", "class,agreement\nzero,abc\n", "agreement is 'abc'; needed a number,"),
        (FIGURES / "per_class.csv", "class,agreement\nzero\n", "has a row that is not as long as the first;"),
        (paths.TRAINING / "curves.csv", "images_seen,loss\n10,abc\n", "loss is 'abc'; needed a number,"),
        (paths.TRAINING / "curves.csv", "images_seen\n10,20\n", "has a row that is not as long as the first;"),
    ],
)
def test_a_table_that_is_damaged_is_named(workspace: Path, path: Path, content: str, lacking: str) -> None:
    (workspace / path).write_text(content)
    with pytest.raises(UserError, match=rf"^{workspace / path}: {lacking} needed what all stages wrote"):
        write_report(workspace)
