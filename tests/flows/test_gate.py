"""The gate, on sets whose faults are known: what is demanded of a set alone, and beside the champion of today."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from bars import bars, write_set
from PIL import Image
from reports import INTERVAL, METRICS, ROW, UTILITY, write_report

from flows.gate import judge
from pipeline import paths
from pipeline.delivery import Description, Lineage, open_store, publish
from pipeline.errors import UserError
from pipeline.params import Document
from pipeline.running import Gate
from pipeline.stages import features


def good_reports(workspace: Path) -> None:
    write_report(workspace, METRICS["synthetic"])
    write_report(workspace, UTILITY, rows=[ROW | {"data": "5 %"}, ROW | {"verdict": "makes no difference"}])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the stages leave: judges of real images, a good set, and good reports."""
    root = tmp_path_factory.mktemp("gate")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("FORGELINE_CACHE", str(root / "cache"))
        parts = {"train": bars(240, 1), "validation": bars(30, 5), "test": bars(150, 2)}
        write_set(paths.REAL / paths.IMAGESET, parts, synthetic=False)
        write_set(paths.SYNTHETIC / paths.IMAGESET, {"train": bars(600, 3)}, synthetic=True)
        features.run(Document({"features": {"images_seen": 2000, "width": 8}}))
        (root / "params.yaml").write_text("evaluate: {}\n")
        (root / ".dvc").mkdir()
        good_reports(root)
        yield root


def publish_champion(url: Path, seed: int, noise: int, scale: int = 1) -> str:
    """Publish other images as the latest of `bars`, `scale` times as large; their version."""
    pixels, labels = bars(600, seed, noise)
    parts = {"train": (pixels.repeat(scale, 2).repeat(scale, 3), labels)}
    images = write_set(url.parent / f"champion-{seed}", parts, synthetic=True)
    picture = io.BytesIO()
    Image.new("L", (8, 8)).save(picture, format="PNG")
    lineage = Lineage(
        model="ab" * 32,
        params={},
        seed=seed,
        data_fingerprint="cd" * 32,
        dvc_lock=None,
        git_commit=None,
        metrics={"evaluation/synthetic": {"fidelity": {"fid": 0.0}, "agreement": {"mean": 1.0}}},  # of other data
        validation={},
    )
    description = Description(
        title="Bars",
        licence="CC0",
        source="bars",
        verdict="bars",
        measured=(),
        mixing=(),
        not_good_for=(),
        how_made="by numpy",
        grid=picture.getvalue(),
        lineage=lineage,
    )
    return publish(open_store(str(url)), "bars", images.root, description=description, documents={}).version


def refusal(workspace: Path, url: Path, gate: Gate = Gate(), *, harmful: bool = False) -> str | None:  # noqa: B008
    return judge(workspace, str(url), "bars", gate, harmful=harmful, say=print).refusal


def test_what_is_good_passes_where_nothing_was_published_yet(workspace: Path, tmp_path: Path) -> None:
    verdict = judge(workspace, str(tmp_path / "sets"), "bars", Gate(), harmful=False, say=print)
    assert (verdict.refusal, verdict.champion) == (None, None)


def test_what_is_not_good_by_itself_is_refused_and_not_shared(workspace: Path, tmp_path: Path) -> None:
    write_report(workspace, METRICS["synthetic"], memorization={"copies": 3, "nearer_than_percentile_1": 0.25})
    verdict = judge(workspace, str(tmp_path / "sets"), "bars", Gate(), harmful=False, say=print)
    good_reports(workspace)
    assert (verdict.refusal, verdict.shareable) == (
        "exact copies of training images: 3, needed at most 0; "
        "share of near copies of training images: 0.25, needed at most 0.02, noise of 0.004 aside",
        False,
    )


def test_the_verdict_of_utility_is_as_demanded(workspace: Path, tmp_path: Path) -> None:
    url = tmp_path / "sets"
    write_report(workspace, UTILITY, rows=[ROW | {"data": "10 %", "verdict": "harms"}])
    assert refusal(workspace, url) == "utility: harms with 10 %, needed harms nowhere or helps somewhere"
    assert refusal(workspace, url, harmful=True) is None
    assert refusal(workspace, url, Gate(utility="any")) is None
    assert "needed helps" in (refusal(workspace, url, Gate(utility="helps"), harmful=True) or "")
    good_reports(workspace)
    assert refusal(workspace, url, Gate(utility="helps")) is None


def test_what_a_set_does_for_rare_classes_is_judged_and_said_too(workspace: Path, tmp_path: Path) -> None:
    url = tmp_path / "sets"
    arms = dict.fromkeys(("real", "real_long", "oversampled", "weighted", "filled"), INTERVAL)
    rare = {"images": {"c": 4}, "advised_share": 0.0, "verdict": "harms"}
    rare |= dict.fromkeys(("recall", "recall_gain", "balanced_accuracy", "balanced_accuracy_gain"), arms)
    try:
        write_report(workspace, UTILITY, rows=[ROW | {"verdict": "makes no difference", "rare": rare}])
        assert refusal(workspace, url) == (
            f"utility: makes no difference with {ROW['data']}, harms filling up rare classes with {ROW['data']}, "
            "needed harms nowhere or helps somewhere"
        )
        write_report(workspace, UTILITY, rows=[ROW | {"verdict": "helps", "rare": rare}])
        assert "harms filling up rare classes" in (refusal(workspace, url, Gate(utility="helps")) or "")
        assert refusal(workspace, url) is None
    finally:
        good_reports(workspace)


def test_few_held_out_images_leave_room_for_near_copies_by_chance(workspace: Path, tmp_path: Path) -> None:
    near = {"copies": 0, "nearer_than_percentile_1": 0.03}
    try:
        write_report(workspace, METRICS["synthetic"], memorization=near)
        assert "near copies" in (refusal(workspace, tmp_path / "sets") or "")
        spread = {"nearer_than_percentile_1": 0.006}
        write_report(workspace, METRICS["synthetic"], memorization=near, memorization_spread=spread)
        assert refusal(workspace, tmp_path / "sets") is None
    finally:
        good_reports(workspace)


@pytest.mark.parametrize("path", [METRICS["synthetic"], UTILITY])
def test_a_report_that_is_damaged_or_not_there_is_named(workspace: Path, tmp_path: Path, path: Path) -> None:
    try:
        write_report(workspace, path, protocol=[])
        with pytest.raises(UserError, match=rf"^{workspace / path}: protocol is missing, empty or of another kind"):
            refusal(workspace, tmp_path / "sets")
        (workspace / path).unlink()
        with pytest.raises(UserError, match=rf"^{workspace / path}: is not there; needed what all stages wrote"):
            refusal(workspace, tmp_path / "sets")
    finally:
        good_reports(workspace)


def test_a_champion_that_is_as_good_but_for_its_noise_is_replaced(workspace: Path, tmp_path: Path) -> None:
    version = publish_champion(tmp_path / "sets", seed=4, noise=100)
    said: list[str] = []
    verdict = judge(workspace, str(tmp_path / "sets"), "bars", Gate(), harmful=False, say=said.append)
    assert said == [f"gate: measures bars@{version} anew, on the real images of today"]
    assert (verdict.refusal, verdict.champion) == (None, f"bars@{version}")
    assert {demand.what for demand in verdict.demands} >= {"fidelity.fid", "fidelity.recall", "agreement.mean"}


def test_a_champion_that_is_better_on_the_images_of_today_stays(workspace: Path, tmp_path: Path) -> None:
    write_set(paths.SYNTHETIC / paths.IMAGESET, {"train": bars(600, 7, noise=20)}, synthetic=True)
    version = publish_champion(tmp_path / "sets", seed=4, noise=100)
    verdict = judge(workspace, str(tmp_path / "sets"), "bars", Gate(), harmful=False, say=print)
    write_set(paths.SYNTHETIC / paths.IMAGESET, {"train": bars(600, 3)}, synthetic=True)
    assert verdict.refusal is not None
    assert verdict.refusal.startswith("fidelity.fid: ")
    assert re.search(rf"needed at most \S+ worse than \S+ of bars@{version}", verdict.refusal)
    assert verdict.shareable


def test_the_very_set_that_is_published_is_not_its_own_rival(workspace: Path, tmp_path: Path) -> None:
    publish_champion(tmp_path / "sets", seed=3, noise=100)
    assert judge(workspace, str(tmp_path / "sets"), "bars", Gate(), harmful=False, say=print).champion is None


def test_what_cannot_be_compared_with_its_champion_is_refused_unless_the_gate_does_without(
    workspace: Path, tmp_path: Path
) -> None:
    version = publish_champion(tmp_path / "sets", seed=4, noise=100, scale=2)
    verdict = judge(workspace, str(tmp_path / "sets"), "bars", Gate(), harmful=False, say=print)
    assert (verdict.refusal, verdict.shareable) == (
        f"champion bars@{version}: 1×16×16 images of low, middle, high, needed 1×8×8 images of low, middle, high to "
        "compare it, or run.gate.champion: [] to do without",
        True,
    )
    assert refusal(workspace, tmp_path / "sets", Gate(champion=())) is None
