from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from reports import ENTRY, ROW

from pipeline.delivery import list_releases, open_store, verify
from pipeline.delivery.showing import put_table, releases_table
from pipeline.delivery.workspace import publish_workspace
from pipeline.errors import FailedError, UserError
from pipeline.imageset import ImageSet, Row, write_imageset

INTERVAL = {"mean": 3.21, "low": 1.5, "high": 4.9}
LEVEL = {"mean": 82, "low": 80, "high": 84}


def utility_row(data: str, verdict: str, protocol: str) -> dict[str, Any]:
    gains = {"gain_over_real": INTERVAL, "gain_over_real_long": INTERVAL, "class_gain_over_real_long": {"b": INTERVAL}}
    return ROW | {"data": data, "verdict": verdict, "protocol": protocol, **gains}


REPORTS: dict[str, Any] = {
    "synthetic/report.json": {
        "drawn": 50,
        "kept": 36,
        "dropped": {"near_copy": 14},
        "search": [
            {"spread": 1.2, "min_confidence": 0.5, "manifold_neighbours": 0, "surprise": None, "chosen": True},
        ],
        "params": {"seed": 3, "spread": 1.2},
    },
    "model/model.json": {
        "family": "conditional",
        "images_seen": 1000,
        "data_fingerprint": "cd" * 32,
        "selection": {"metric": "fid"},
    },
    "evaluation/model/metrics.json": {"fidelity": {"fid": 2.0}, "protocol": [ENTRY]},
    "evaluation/synthetic/metrics.json": {
        "fidelity": {"fid": 1.23456, "kid": float("nan")},
        "agreement": {"mean": 0.99},
        "modes": {"classes_covered": 3},
        "images": 36,
        "memorization": {"copies": 0, "nearer_than_percentile_1": 0.01},
        "memorization_spread": {"nearer_than_percentile_1": 0.002},
        "memorization_floor": {"nearer_than_percentile_1": 0.012},
        "protocol": [
            ENTRY | {"generated": "36 images", "extractor_sha256": "ab" * 32, "seed": 2},
            ENTRY | {"measures": ["agreement", "modes"], "judges_sha256": ["cd" * 32, "ef" * 32]},
        ],
    },
    "utility/utility.json": {
        "synthetic_only_accuracy": 98.76,
        "rows": [
            utility_row("5 %", "helps", "shared-generator"),
            utility_row("10 %", "helps", "shared-generator"),
            utility_row("100 %", "makes no difference", "same-data"),
        ],
        "protocol": ["same-data: the same.", "shared-generator: more.", "real: an arm.", "Intervals are wide."],
    },
    "validation/real/report.json": {"expectations": {"evaluated": 9, "failed": 0}},
    "validation/synthetic/report.json": {"expectations": {"evaluated": 9, "failed": 0}},
}


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def lock(workspace: Path) -> None:
    """dvc.lock as DVC writes it (JSON is YAML), for what is in the workspace now."""
    size = sum(path.stat().st_size for path in (workspace / "out/synthetic").rglob("*") if path.is_file())
    stages = {
        "source": {"params": {"params.yaml": {"source": {"kind": "digits"}}}},
        "train": {"params": {"params.yaml": {"train": {"images": 1000}, "families.conditional": {}}}},
        "evaluate@synthetic": {
            "deps": [{"path": "out/synthetic", "size": size}, {"path": "pipeline/gan", "size": 1}],
            "params": {"params.yaml": {"evaluate": {"seed": 2}}},
        },
    }
    write(workspace / "dvc.lock", json.dumps({"schema": "2.0", "stages": stages}).encode())


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """What the stages leave, in small."""
    root = tmp_path / "workspace"
    for path, content in REPORTS.items():
        write(root / "out" / path, json.dumps(content).encode())
    write(root / "out/model/weights.safetensors", b"weights")
    model = hashlib.sha256(b"weights" + (root / "out/model/model.json").read_bytes()).hexdigest()
    random = np.random.default_rng(0)
    write_imageset(
        root / "out/synthetic/imageset",
        (
            Row(
                split="train",
                label=i % 3,
                image=random.integers(0, 256, (3, 8, 8), np.uint8),
                path=f"{i}.png",
                provenance={},
            )
            for i in range(36)
        ),
        classes=("a", "b", "c"),
        source={"licence": "CC BY 4.0", "description": "Drawn by a generator that learned from digits"},
        resize=None,
        synthetic=True,
        generator={"family": "conditional", "model_sha256": model, "data_fingerprint": "cd" * 32},
    )
    lock(root)
    return root


def edit(workspace: Path, path: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a stage wrote."""
    content = json.loads((workspace / "out" / path).read_bytes())
    change(content)
    write(workspace / "out" / path, json.dumps(content).encode())


def card(workspace: Path, store: str) -> str:
    """The card of what is published to a new store."""
    return (Path(publish_workspace(workspace, store, "digits").url) / "README.md").read_text()


def manifest(workspace: Path) -> dict[str, Any]:
    (path,) = workspace.glob("releases/digits/*/manifest.json")
    content: dict[str, Any] = json.loads(path.read_bytes())
    return content


def test_a_workspace_is_published_whole(workspace: Path) -> None:
    published = publish_workspace(workspace, "releases", "digits")
    found = verify(str(workspace / "releases/digits"))
    assert (found.version, published.new) == (published.version, True)
    lineage = manifest(workspace)["lineage"]
    assert lineage["params"] == {
        "source": {"kind": "digits"},
        "train": {"images": 1000},
        "families.conditional": {},
        "evaluate": {"seed": 2},
    }
    assert lineage["seed"] == 3
    assert lineage["metrics"]["evaluation/synthetic"]["fidelity"] == {"fid": 1.23456, "kid": None}
    assert lineage["validation"]["validation/real"] == {"expectations": {"evaluated": 9, "failed": 0}}
    files = {file["path"] for file in manifest(workspace)["files"]}
    assert files >= {"utility/utility.json", "evaluation/synthetic.json", "validation/real.json", "dvc.lock"}
    assert "weights.safetensors" not in str(files)


def test_the_card_says_what_was_measured(workspace: Path) -> None:
    text = (Path(publish_workspace(workspace, "releases", "digits").url) / "README.md").read_text()
    for words in (
        "helps with 5 %, 10 % of them (shared-generator: +3.21 [+1.50, +4.90], +3.21 [+1.50, +4.90] points); makes no",
        "difference with 100 % of them (same-data: +3.21 [+1.50, +4.90] points). Trained",
        "right on 98.8 % of real test images",
        "| gain with 5 % of the real images (60) over these only | +3.21 points [+1.50, +4.90] |",
        "*shared-generator: more. Intervals are wide.*",
        "| FID, lower is better | 1.235 |",
        "*generated: 36 images; real: 8 real images; extractor sha256: abababababab; seed: 2*",
        "| classes with at least a tenth of their real share | 3 |",
        "*generated: 9 images; real: 8 real images; judges sha256: cdcdcdcdcdcd, efefefefefef*",
        "near copy 14",
        "| 60 (5 %), shared-generator | 30 % |",
        "CC BY 4.0",
    ):
        assert words in text, words


def test_a_list_has_the_verdict_without_its_numbers(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish_workspace(workspace, "releases", "digits")
    releases = list(list_releases(open_store(str(workspace / "releases"))))
    put_table(releases_table(releases))
    assert (
        "  Added to real images, this set helps with 5 %, 10 % of them (shared-generator); makes no difference with "
        "100 % of them (same-data). Trained on this set alone, a classifier is right on 98.8 % of real test images.\n"
    ) in capsys.readouterr().out
    assert "+3.21 [+1.50, +4.90]" in releases[0].verdict


def rare(verdict: str) -> dict[str, Any]:
    arms = ("real", "real_long", "oversampled", "weighted")
    gains, levels = dict.fromkeys(arms, INTERVAL), dict.fromkeys((*arms, "filled"), LEVEL)
    return {
        "images": {"c": 4},
        "verdict": verdict,
        "advised_share": 0.45,
        "recall": levels,
        "recall_gain": gains,
        "balanced_accuracy": levels,
        "balanced_accuracy_gain": gains,
    }


def test_the_card_says_what_filling_up_rare_classes_gains(workspace: Path) -> None:
    def make_rare(utility: dict[str, Any]) -> None:
        utility["rows"][2]["rare"] = rare("helps")
        utility["protocol"] += ["filled: filled up.", "weighted: by class.", "Rare is what is rare."]

    assert "synthetic part of a rare class" not in card(workspace, "without")
    edit(workspace, "utility/utility.json", make_rare)
    text = card(workspace, "with")
    gain = "82.00 % [80.00, 84.00]; filling up gains +3.21 points [+1.50, +4.90] over it |"
    for words in (
        "Filling up the rare classes (c) with it helps with 100 % of them (same-data: +3.21 [+1.50, +4.90] points). T",
        "| recall of rare classes with 100 % of the real images, rare classes filled up | 82.00 % [80.00, 84.00] |",
        f"| recall of rare classes with 100 % of the real images, real images only | {gain}",
        f"| balanced accuracy with 100 % of the real images, real images only, losses weighted by class | {gain}",
        "filled: filled up. weighted: by class. Rare is what is rare.*",
        "| synthetic part of a rare class |\n| --- | --- |\n| 60 (100 %), same-data | 45 % |",
        "none where they show no gain over oversampling.*",
    ):
        assert words in text, words


def test_the_card_names_the_shares_that_it_harms_with_and_the_classes_that_lose(workspace: Path) -> None:
    def harm(utility: dict[str, Any]) -> None:
        utility["rows"][1] |= {"verdict": "harms", "rare": rare("harms")}
        loss, unsure = {"mean": -2.5, "low": -4.0, "high": -1.0}, {"mean": -9.0, "low": -20.0, "high": 2.0}
        utility["rows"][1]["class_gain_over_real_long"] = {"a": unsure, "b": loss, "c": None}

    assert "Recognizing" not in card(workspace, "harmless")
    edit(workspace, "utility/utility.json", harm)
    text = card(workspace, "digits")
    for words in (
        "- Training a classifier with 10 % of the real images (shared-generator): it was measured to be worse",
        "- Filling up the rare classes with 10 % of the real images (shared-generator): that was measured to harm.",
        "- Recognizing 'b' (-2.50 points [-4.00, -1.00] with 10 % of the real images): a classifier was measured to do",
        "none is corrected for how many classes and shares there are.",
    ):
        assert words in text, words
    assert "'a' (" not in text


def test_the_grid_is_of_synthetic_images_only(workspace: Path) -> None:
    published = publish_workspace(workspace, "releases", "digits")
    grid = np.asarray(Image.open(Path(published.url) / "grid.png"))
    images, labels = ImageSet.open(workspace / "out/synthetic/imageset").arrays("train")
    scale = grid.shape[0] // (3 * 9 - 1)
    small = grid[::scale, ::scale]
    for label in range(3):
        for column, image in enumerate(images[labels == label][:10]):
            cell = small[label * 9 : label * 9 + 8, column * 9 : column * 9 + 8]
            np.testing.assert_array_equal(cell, image.transpose(1, 2, 0))


def with_verdicts(workspace: Path, *verdicts: str) -> None:
    rows = [utility_row(f"{10 * place} %", verdict, "same-data") for place, verdict in enumerate(verdicts, start=1)]
    content = REPORTS["utility/utility.json"] | {"rows": rows}
    write(workspace / "out/utility/utility.json", json.dumps(content).encode())


def test_a_set_that_harms_is_published_only_when_told_to_and_then_says_so(workspace: Path) -> None:
    with_verdicts(workspace, "makes no difference", "harms")
    with pytest.raises(
        FailedError, match=r"^digits: is not published, as it harms\. Added .*harms with 20 % .*publish\.harmful: true"
    ):
        publish_workspace(workspace, "releases", "digits")
    assert not (workspace / "releases").exists()
    published = publish_workspace(workspace, "releases", "digits", harmful=True)
    card = (Path(published.url) / "README.md").read_text()
    assert "**Published although it harms. Added to real images, this set makes no difference with 10 %" in card
    assert (
        "- Training a classifier with 20 % of the real images (same-data): it was measured to be worse with this set."
        in card
    )
    assert manifest(workspace)["verdict"].startswith("Published although it harms.")


def test_a_set_that_helps_some_and_harms_others_is_published_with_both(workspace: Path) -> None:
    with_verdicts(workspace, "helps", "harms")
    card = (Path(publish_workspace(workspace, "releases", "digits").url) / "README.md").read_text()
    assert re.search(r"helps with 10 % of them \(same-data: [^)]+\); harms with 20 % of them \(same-data: ", card)
    assert "although it harms" not in card


def test_published_again_it_is_nothing_new(workspace: Path) -> None:
    first = publish_workspace(workspace, "releases", "digits")
    again = publish_workspace(workspace, "releases", "digits")
    assert (again.version, again.new) == (first.version, False)


@pytest.mark.parametrize(
    "path", [*REPORTS, "model/weights.safetensors", "synthetic/imageset/imageset.json", "../dvc.lock"]
)
def test_a_missing_output_is_named(workspace: Path, path: str) -> None:
    (workspace / "out" / path).unlink()
    with pytest.raises(UserError) as caught:
        publish_workspace(workspace, "releases", "digits")
    assert Path(path).name in str(caught.value)
    assert not (workspace / "releases").exists()


def test_a_set_of_another_model_is_refused(workspace: Path) -> None:
    write(workspace / "out/model/weights.safetensors", b"trained again")
    with pytest.raises(UserError, match=r"imageset: was drawn by another model than .*run 'dvc repro' first"):
        publish_workspace(workspace, "releases", "digits")


def test_a_set_that_was_not_measured_is_refused(workspace: Path) -> None:
    write(workspace / "out/synthetic/manifest.parquet", b"written after evaluate ran")
    with pytest.raises(UserError, match="synthetic: is not what stage 'evaluate@synthetic' has read"):
        publish_workspace(workspace, "releases", "digits")


def test_a_broken_report_is_named(workspace: Path) -> None:
    write(workspace / "out/utility/utility.json", b"{")
    with pytest.raises(UserError, match=r"utility\.json: is not a JSON object"):
        publish_workspace(workspace, "releases", "digits")


def test_a_lock_without_stages_is_named(workspace: Path) -> None:
    write(workspace / "dvc.lock", b"schema: '2.0'\nstages:\n")
    with pytest.raises(UserError, match=r"dvc\.lock: stages found nothing, needed a mapping$"):
        publish_workspace(workspace, "releases", "digits")
    write(workspace / "dvc.lock", b"stages: {train: null}\n")
    with pytest.raises(UserError, match=r"dvc\.lock: stages\.train is missing, empty or of another kind; needed what"):
        publish_workspace(workspace, "releases", "digits")


@pytest.mark.parametrize("path", REPORTS)
def test_a_report_that_says_nothing_is_named(workspace: Path, path: str) -> None:
    write(workspace / "out" / path, b"{}")
    with pytest.raises(
        UserError, match=rf"{path}: \w+ is missing, empty or of another kind; needed what all stages wrote"
    ):
        publish_workspace(workspace, "releases", "digits")
    assert not (workspace / "releases").exists()


def test_what_an_older_stage_did_not_write_is_named(workspace: Path) -> None:
    edit(workspace, "utility/utility.json", lambda utility: utility["rows"][1].pop("advised_share"))
    with pytest.raises(UserError, match=r"utility\.json: rows\[1\]\.advised_share is missing, empty or of another"):
        publish_workspace(workspace, "releases", "digits")


def test_the_commit_is_in_the_lineage(workspace: Path) -> None:
    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        arguments = ["git", "-C", str(workspace), *identity, *words]
        return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    write(workspace / "code.py", b"1")
    git("add", "code.py", "dvc.lock")
    git("commit", "-qm", "x")
    write(workspace / "dvc.lock", (workspace / "dvc.lock").read_bytes() + b"\n")
    publish_workspace(workspace, "releases", "digits")
    assert manifest(workspace)["lineage"]["git_commit"] == git("rev-parse", "HEAD")
    write(workspace / "code.py", b"2")
    publish_workspace(workspace, "elsewhere", "digits")
    (path,) = workspace.glob("elsewhere/digits/*/manifest.json")
    assert json.loads(path.read_bytes())["lineage"]["git_commit"] == git("rev-parse", "HEAD") + "-dirty"


def test_without_git_there_is_no_commit(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", str(workspace / "nowhere"))
    publish_workspace(workspace, "releases", "digits")
    assert manifest(workspace)["lineage"]["git_commit"] is None
