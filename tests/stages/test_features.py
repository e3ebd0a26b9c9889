"""features: which classifiers there are, that they differ as promised, and that nothing half-written is left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import paths
from pipeline.errors import FailedError, UserError
from pipeline.imageset import ImageSet, Row, write_imageset
from pipeline.imageset.files import sha256_file
from pipeline.metrics.judges import EXTRACTOR, FILTER, INDEX, JUDGES, Judges
from pipeline.params import Document
from pipeline.stages import features

SETTINGS = {"images_seen": 1000, "width": 8}


def write_real(labels_of_split: Mapping[str, list[int]]) -> ImageSet:
    """Noisy images, bright in the half of their class."""
    random = np.random.default_rng(0)
    rows = []
    for split, labels in labels_of_split.items():
        for label in labels:
            image = random.integers(0, 100, (1, 8, 8), dtype=np.uint8)
            image[:, :, 4 * label : 4 * label + 4] += 150
            rows.append(Row(split=split, label=label, image=image, path=f"{len(rows)}.png", provenance={}))
    source = {"kind": "made up", "licence": "CC0", "description": "halves"}
    return write_imageset(
        paths.REAL / paths.IMAGESET, rows, classes=["left", "right"], source=source, resize=None, synthetic=False
    )


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageSet:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))
    return write_real({"train": [0, 1] * 50, "validation": [0, 1] * 10, "test": [0, 1] * 10})


def run(**settings: Any) -> None:
    features.run(Document({"features": SETTINGS | settings}))


def test_writes_an_extractor_a_filter_and_judges_of_their_own_seeds_and_architecture(real: ImageSet) -> None:
    run(seed=7)
    about = json.loads((paths.FEATURES / INDEX).read_text())
    entries = about["classifiers"]
    assert list(entries) == [EXTRACTOR, FILTER, *JUDGES]
    assert [entry["seed"] for entry in entries.values()] == [7, 8, 9, 10, 11]
    assert len({entry["sha256"] for entry in entries.values()}) == 5
    for file, entry in entries.items():
        assert entry["sha256"] == sha256_file(paths.FEATURES / file)
        assert entry["validation_accuracy"] > 0.8
    seen = {(entries[file]["width"], entries[file]["blocks"]) for file in (EXTRACTOR, FILTER)}
    judging = {(entries[file]["width"], entries[file]["blocks"]) for file in JUDGES}
    assert seen.isdisjoint(judging)
    assert about["data_fingerprint"] == real.fingerprint
    assert (about["train_images"], about["validation_images"]) == (100, 20)


def test_a_rare_class_is_learned_as_well_as_others(real: ImageSet) -> None:
    shutil.rmtree(paths.REAL)
    write_real({"train": [0] * 400 + [1] * 4, "validation": [0, 1] * 10, "test": [0, 1] * 10})
    run()
    entries = json.loads((paths.FEATURES / INDEX).read_text())["classifiers"]
    assert all(entry["validation_accuracy"] > 0.8 for entry in entries.values())


def test_judges_are_read_back_and_are_the_mean_of_the_ensemble(real: ImageSet) -> None:
    run()
    judges = Judges.load(paths.FEATURES)
    images, labels = real.arrays("test")
    votes = judges.probabilities(images)
    assert votes.sum(axis=1) == pytest.approx(np.ones(len(images)))
    assert (votes.argmax(axis=1) == labels).mean() > 0.8
    assert len(judges.ensemble) == len(JUDGES)


def test_the_same_settings_give_the_same_bytes(real: ImageSet) -> None:
    run()
    first = {path.name: path.read_bytes() for path in paths.FEATURES.iterdir()}
    run()
    assert {path.name: path.read_bytes() for path in paths.FEATURES.iterdir()} == first


def test_a_class_without_images_is_named_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))
    write_real({"train": [0] * 20, "validation": [0, 1], "test": [0, 1]})
    with pytest.raises(UserError, match="training split has no image of class 'right'; needed at least 1"):
        run()
    assert not paths.FEATURES.exists()


def test_a_test_split_that_is_too_small_to_compare_is_told_before_anything_is_trained(
    real: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "train_all", None)
    sentence = (
        r"imageset: the test split has 20 images; needed more than the 32 dimensions of the features that evaluate"
    )
    with pytest.raises(UserError, match=sentence):
        run(width=16)
    assert not paths.FEATURES.exists()


def test_letters_for_channels_are_asked_for_where_there_are_none(real: ImageSet) -> None:
    with pytest.raises(UserError, match="its classes are not all words of 1 letters, one for each channel; needed"):
        run(per_channel=True)


def test_a_replaced_judge_is_noticed(real: ImageSet) -> None:
    run()
    (paths.FEATURES / JUDGES[0]).write_bytes((paths.FEATURES / JUDGES[1]).read_bytes())
    with pytest.raises(FailedError, match=r"judge-0\.safetensors: has the sha256 .*; needed .* as in features\.json"):
        Judges.load(paths.FEATURES)


def test_judges_that_were_never_trained_are_missed_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"features\.json: not found; needed the judges"):
        Judges.load(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"classifiers": {"extractor.safetensors": {}}}'])
def test_an_index_that_is_not_whole_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "features.json").write_text(content)
    with pytest.raises(FailedError, match=r"features\.json: is not whole; needed what the features stage writes$"):
        Judges.load(tmp_path)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"seed": -1}, r"features\.seed is -1; needed at least 0"),
        ({"images_seen": 10}, r"features\.images_seen is 10; needed at least 1000"),
        ({"width": 1}, r"features\.width is 1; needed at least 8"),
        ({"threads": 0}, r"features\.threads is 0; needed at least 1"),
        ({"seed": 2**32}, rf"features\.seed is {2**32}; needed at most {2**32 - 1}"),
        ({"threads": 3_000_000_000}, r"features\.threads is 3000000000; needed at most 1024"),
        ({"seeds": 3}, r"features\.seeds is not a setting; did you mean 'seed'"),
    ],
)
def test_a_setting_that_cannot_be_is_named(setting: dict[str, int], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        features.read_params(Document({"features": setting}))
