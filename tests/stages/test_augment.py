"""augment: what is kept, what is dropped and why, with a sampler whose faults are known; then the stage as a whole."""

from __future__ import annotations

import csv
import dataclasses
import json
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipeline import paths
from pipeline.errors import FailedError, UserError
from pipeline.gan.batches import Batches
from pipeline.gan.family import ImageSpec, load_family
from pipeline.gan.model import Model
from pipeline.gan.training import Snapshot, Trainer
from pipeline.imageset import ImageSet, Row, write_imageset
from pipeline.metrics.classifier import Classifier, embed, train_classifier
from pipeline.metrics.judges import Judges
from pipeline.metrics.manifold import Manifold
from pipeline.params import Document
from pipeline.stages import augment, features
from pipeline.stages.augment import Candidate, Params, Selection, Sieve

CLASSES = ("low", "middle", "high")


def bars(labels: np.ndarray, seed: int) -> np.ndarray:
    """Noisy 8×8 images with a bright bar at the height of their class."""
    images = np.random.default_rng(seed).integers(0, 60, (len(labels), 1, 8, 8), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[0, 1 + 2 * label : 3 + 2 * label] += 150
    return images


TRAIN_LABELS = np.arange(150) % 3
TRAIN = bars(TRAIN_LABELS, 1)


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return train_classifier(TRAIN, TRAIN_LABELS, classes=3, seed=0, images_seen=3000, width=8)


class FaultySampler:
    """Bars of the asked-for class, but of every ten samples one is of another class, one a copy, one a repetition."""

    def __init__(self, conditional: bool = True) -> None:
        self.conditional = conditional
        numbers = np.arange(5000)
        self.asked = numbers % 3
        self.shown = np.where(numbers % 10 == 4, (self.asked + 1) % 3, self.asked)
        self.images = bars(self.shown, 2)
        copies = numbers[numbers % 10 == 6]
        self.images[copies] = TRAIN[self.asked[copies] + 3 * (copies % 50)]
        repeated = numbers[numbers % 10 == 8]
        self.images[repeated] = self.images[repeated - 3]  # of the same class, and itself without fault

    def sample(self, *, seed: int, start: int, count: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
        rows = slice(start, start + count)
        return self.images[rows], self.asked[rows] if self.conditional else np.full(count, -1)

    def distinct(self, count: int) -> int:
        return count


def select(classifier: Classifier, sampler: Any = None, **settings: Any) -> tuple[list[Row], Selection]:
    params = Params(**{"images_per_class": 100, "min_confidence": 0.5} | settings)
    sieve = Sieve(filter=classifier, min_confidence=params.min_confidence, train=TRAIN, copy_distance=1e-3)
    selection = Selection(sampler=sampler or FaultySampler(), sieve=sieve, params=params, classes=CLASSES)
    return list(selection), selection


class OutlierSampler(FaultySampler):
    """Of every ten samples one more is like no training image: its class is sure, its right half is in the dark."""

    def __init__(self) -> None:
        super().__init__()
        self.images[2::10, ..., 4:] //= 4


class HurriedSampler(FaultySampler):
    """Says when it is asked for its second chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_again = threading.Event()

    def sample(self, *, seed: int, start: int, count: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
        if start > 0:
            self.asked_again.set()
        return super().sample(seed=seed, start=start, count=count, spread=spread)


def indices(rows: list[Row], label: int) -> list[int]:
    return [int(row.provenance["index"]) for row in rows if row.label == label]


def test_every_planted_fault_is_dropped_for_its_reason(classifier: Classifier) -> None:
    _, selection = select(classifier)
    counts = selection.counts()
    drawn = np.arange(counts["drawn"])
    assert counts["dropped"]["other_label"] == np.sum(drawn % 10 == 4)
    assert counts["dropped"]["near_copy"] == np.sum(drawn % 10 == 6)
    assert counts["dropped"]["duplicate"] == np.sum(drawn % 10 == 8)
    assert counts["dropped"]["low_confidence"] == 0


def test_the_counts_add_up(classifier: Classifier) -> None:
    rows, selection = select(classifier)
    counts = selection.counts()
    assert counts["kept"] == len(rows) == 300
    assert (
        counts["drawn"]
        == counts["kept"] + sum(counts["dropped"].values())
        == 1 + max(index for label in range(3) for index in indices(rows, label))
    )
    for reason, total in counts["dropped"].items():
        assert total == sum(by_reason[reason] for by_reason in counts["classes"].values())


def test_each_class_keeps_its_lowest_faultless_indices(classifier: Classifier) -> None:
    rows, _ = select(classifier)
    numbers = np.arange(5000)
    faultless = numbers[~np.isin(numbers % 10, (4, 6, 8))]
    for label in range(3):
        assert indices(rows, label) == faultless[faultless % 3 == label][:100].tolist()


def test_a_larger_set_begins_with_the_smaller_one(classifier: Classifier) -> None:
    small, large = select(classifier, images_per_class=40)[0], select(classifier, images_per_class=90)[0]
    for label in range(3):
        ours, theirs = ([row for row in rows if row.label == label] for rows in (small, large))
        for one, other in zip(ours, theirs[:40], strict=True):
            assert one.provenance == other.provenance
            assert np.array_equal(one.image, other.image)


def test_a_class_with_a_count_has_so_many_and_the_others_do_not_change(classifier: Classifier) -> None:
    balanced, _ = select(classifier, images_per_class=40)
    rows, selection = select(classifier, images_per_class=40, class_counts={"middle": 130, "high": 1})
    assert [len(indices(rows, label)) for label in range(3)] == [40, 130, 1]
    assert selection.counts()["kept"] == 171
    assert indices(rows, 0) == indices(balanced, 0)
    assert indices(rows, 1)[:40] == indices(balanced, 1)


def test_confidence_below_the_least_drops(classifier: Classifier) -> None:
    rows, _ = select(classifier, images_per_class=50)
    least = float(np.median([float(row.provenance["confidence"]) for row in rows]))
    strict, selection = select(classifier, images_per_class=50, min_confidence=least)
    assert min(float(row.provenance["confidence"]) for row in strict) >= least - 1e-6
    assert selection.counts()["dropped"]["low_confidence"] > 0


def test_without_labels_the_filter_names_the_class(classifier: Classifier) -> None:
    sampler = FaultySampler(conditional=False)
    rows, selection = select(classifier, sampler)
    assert all(row.label == sampler.shown[int(row.provenance["index"])] for row in rows)
    assert selection.counts()["dropped"]["other_label"] == 0


def among_real(classifier: Classifier, neighbours: int) -> Sieve:
    return Sieve(
        filter=classifier,
        min_confidence=0.5,
        manifold=Manifold(embed(classifier, TRAIN), TRAIN_LABELS, 10),
        neighbours=neighbours,
        train=TRAIN,
        copy_distance=1e-3,
    )


def test_what_is_among_no_real_images_of_its_class_is_dropped_for_that_reason(classifier: Classifier) -> None:
    sampler = OutlierSampler()
    *_, reasons = among_real(classifier, 10).judge(sampler.images[:1000], sampler.asked[:1000])
    found = {fault: Counter(reasons[fault::10]) for fault in range(10)}
    assert found[2] == {"off_manifold": 100}
    assert (found[4], found[6]) == ({"other_label": 100}, {"near_copy": 100})
    assert all(found[fault][""] >= 95 for fault in (0, 1, 3, 5, 7, 8, 9))


def test_where_no_neighbours_are_asked_for_a_sample_may_be_anywhere(classifier: Classifier) -> None:
    sampler = OutlierSampler()
    *_, reasons = among_real(classifier, 0).judge(sampler.images[:1000], sampler.asked[:1000])
    assert Counter(reasons[2::10]) == {"": 100}


def test_the_drops_off_the_manifold_are_counted(classifier: Classifier) -> None:
    params = Params(images_per_class=50)
    selection = Selection(sampler=OutlierSampler(), sieve=among_real(classifier, 10), params=params, classes=CLASSES)
    rows, counts = list(selection), selection.counts()
    assert len(rows) == 150
    assert not any(int(row.provenance["index"]) % 10 == 2 for row in rows)
    assert counts["dropped"]["off_manifold"] >= sum(number % 10 == 2 for number in range(counts["drawn"]))
    assert counts["drawn"] == 150 + sum(counts["dropped"].values())


class SpreadSampler(FaultySampler):
    """Bars that are right at spread 1 and swim in noise at spread 2; remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_spreads: list[float] = []

    def sample(self, *, seed: int, start: int, count: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
        self.asked_spreads.append(spread)
        images, asked = super().sample(seed=seed, start=start, count=count, spread=spread)
        noise = np.random.default_rng(seed).integers(0, 256, images.shape, dtype=np.uint8)
        return (images if spread == 1 else images // 2 + noise // 2), asked


def search(classifier: Classifier, sampler: SpreadSampler, params: Params) -> list[Candidate]:
    labels = np.arange(60) % 3
    return augment.search(sampler, among_real(classifier, 10), classifier, (bars(labels, 7), labels), params)


def test_the_next_samples_are_drawn_while_these_are_encoded(classifier: Classifier) -> None:
    sampler, params = HurriedSampler(), Params(images_per_class=1000, min_confidence=0.5)
    sieve = Sieve(filter=classifier, min_confidence=0.5, train=TRAIN, copy_distance=1e-3)
    next(iter(Selection(sampler=sampler, sieve=sieve, params=params, classes=CLASSES)))
    assert sampler.asked_again.wait(60)


def test_each_spread_is_drawn_once_and_what_is_like_the_validation_images_is_chosen(classifier: Classifier) -> None:
    sampler, params = SpreadSampler(), Params(spread=2.0, try_spreads=(1.0,), try_min_confidences=(0.8,))
    candidates = search(classifier, sampler, params)
    assert sampler.asked_spreads == [1.0, 2.0]
    assert [tuple(each.settings.values()) for each in candidates] == [
        (1, 0.5, 0),
        (1, 0.8, 0),
        (2, 0.5, 0),
        (2, 0.8, 0),
    ]
    assert [candidates[place].kept >= candidates[place + 1].kept > 0 for place in (0, 2)] == [True, True]
    chosen = augment.choose(candidates, params)
    assert chosen.spread == 1
    assert dataclasses.replace(chosen, spread=2.0, min_confidence=0.5) == params


def test_how_far_the_manifold_reaches_is_searched_on_the_samples_of_the_same_draw(classifier: Classifier) -> None:
    sampler, params = SpreadSampler(), Params(spread=1.0, try_manifold_neighbours=(10, 1))
    sampler.images[2::10, ..., 4:] //= 4
    candidates = search(classifier, sampler, params)
    assert sampler.asked_spreads == [1.0]
    assert [each.manifold_neighbours for each in candidates] == [0, 1, 10]
    everywhere, nearest, wide = (each.kept for each in candidates)
    assert everywhere == pytest.approx(0.8, abs=0.01)
    assert wide == pytest.approx(0.7, abs=0.02)
    assert nearest < wide
    best = min(candidates, key=lambda each: each.surprise)
    assert augment.choose(candidates, params) == dataclasses.replace(params, **best.settings)


def test_where_there_is_nothing_to_choose_from_nothing_is_drawn(classifier: Classifier) -> None:
    sampler, params = SpreadSampler(), Params(spread=0.9, min_confidence=0.4)
    candidates = search(classifier, sampler, params)
    assert candidates == [Candidate(spread=0.9, min_confidence=0.4, manifold_neighbours=0, kept=None, surprise=None)]
    assert augment.choose(candidates, params) == params
    assert sampler.asked_spreads == []


def test_where_a_class_never_passes_there_is_no_score_and_nothing_else_is_chosen(classifier: Classifier) -> None:
    sampler, params = SpreadSampler(), Params(spread=1.0, try_min_confidences=(0.8,))
    sampler.images[sampler.asked == 2] = TRAIN[0]
    candidates = search(classifier, sampler, params)
    assert [each.surprise for each in candidates] == [None, None]
    assert augment.choose(candidates, params) == params


def test_a_class_that_never_passes_ends_in_one_sentence(classifier: Classifier) -> None:
    sampler = FaultySampler()
    sampler.images[sampler.asked == 2] = bars(np.zeros(np.sum(sampler.asked == 2), np.int64), 3)
    with pytest.raises(
        FailedError,
        match=r"^augment: 1,024 samples gave 0 of 100 images of class 'high' \(dropped: other_label 341\); needed .*"
        r"augment\.max_draws_per_image above 3$",
    ):
        select(classifier, sampler, max_draws_per_image=3)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"images_per_class": 0}, "images_per_class is 0; needed at least 1"),
        ({"seed": 2**32}, f"seed is {2**32}; needed at most {2**32 - 1}"),
        ({"class_counts": {"low": 0}}, "class_counts.low is 0; needed at least 1"),
        ({"spread": 0}, "spread is 0.0; needed a number above 0"),
        ({"try_spreads": [1.0, 0]}, "try_spreads is 0.0; needed a number above 0"),
        ({"manifold_neighbours": -1}, "manifold_neighbours is -1; needed at least 0"),
        ({"try_manifold_neighbours": [3, -1]}, "try_manifold_neighbours is -1; needed at least 0"),
        ({"try_min_confidences": [1.0]}, "try_min_confidences has 1.0; needed 0 or more, and below 1"),
        ({"min_confidence": 1.0}, "min_confidence is 1.0; needed 0 or more, and below 1"),
        ({"copy_quantile": -0.1}, "copy_quantile is -0.1; needed"),
        ({"images_per_clas": 5}, "images_per_clas is not a setting; did you mean 'images_per_class'?"),
    ],
)
def test_a_setting_that_cannot_be_is_named(setting: Mapping[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=r"^params\.yaml: augment\.") as error:
        augment.read_params(Document({"augment": dict(setting)}))
    assert sentence in str(error.value)


def document(**settings: Any) -> Document:
    return Document({"augment": {"seed": 5, "images_per_class": 30, "max_draws_per_image": 30} | settings})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace after train: bars, their judges, and a generator that has learned them."""
    root = tmp_path_factory.mktemp("workspace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("FORGELINE_CACHE", str(root / "cache"))
        rows = [
            Row(
                split="train" if i < 150 else "validation",
                label=i % 3,
                image=image,
                path=f"{i}.png",
                provenance={"content": f"{i:064x}"},
            )
            for i, image in enumerate([*TRAIN, *bars(np.arange(60) % 3, 7)])
        ]
        real = write_imageset(
            paths.REAL / paths.IMAGESET,
            rows,
            classes=CLASSES,
            source={"kind": "made up", "licence": "CC0", "description": "bars"},
            resize=None,
            synthetic=False,
        )
        features.run(Document({"features": {"images_seen": 2000, "width": 8}}))
        torch.manual_seed(0)
        families = load_family("conditional")
        config = families.Config(width=64)
        family = families.Family(config, ImageSpec(channels=1, image_size=8, classes=3))
        batches = Batches(*real.arrays("train"), batch_size=64, seed=0, device=torch.device("cpu"))

        def judge(_: object, images_seen: int) -> Snapshot:
            return Snapshot(images_seen, score=0.0, diversity=1.0, least_diverse="")

        trainer = Trainer(family, batches, images=40_000, snapshot_images=10**9, judge=judge)
        while not trainer.finished:
            trainer.advance()
        model = Model(
            family="conditional",
            config=config,
            classes=CLASSES,
            channels=1,
            image_size=8,
            images_seen=40_000,
            data_fingerprint=real.fingerprint,
            selection={},
            generator=trainer.average.eval(),
        )
        model.save(paths.MODEL)
    return root


@pytest.fixture
def workspace(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy by links: out/ is this test's own, what is in it is not written to."""
    (tmp_path / "out").mkdir()
    for path in (made / "out").iterdir():
        (tmp_path / "out" / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORGELINE_CACHE", str(made / "cache"))
    return tmp_path


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_stage_writes_a_balanced_synthetic_set_that_names_its_generator(workspace: Path) -> None:
    augment.run(document())
    synthetic = ImageSet.open(paths.SYNTHETIC / paths.IMAGESET)
    synthetic.verify()
    assert synthetic.synthetic
    assert synthetic.counts == {"train": (30, 30, 30)}
    assert synthetic.generator == {
        "family": "conditional",
        "model_sha256": Model.load(paths.MODEL).sha256,
        "data_fingerprint": ImageSet.open(paths.REAL / paths.IMAGESET).fingerprint,
    }


def test_every_image_can_be_drawn_again_from_its_provenance(workspace: Path) -> None:
    augment.run(document())
    synthetic = ImageSet.open(paths.SYNTHETIC / paths.IMAGESET)
    images, labels = synthetic.arrays("train")
    columns = synthetic.table("train").to_pydict()
    model = Model.load(paths.MODEL)
    for row in (0, 31, 89):
        index, spread, seed = (columns[name][row] for name in ("index", "spread", "seed"))
        again, asked = model.sample(seed=seed, start=index, count=1, spread=spread)
        assert np.array_equal(again[0], images[row])
        assert asked[0] == labels[row]


def test_the_manifest_has_the_provenance_and_the_report_adds_up(workspace: Path) -> None:
    augment.run(document())
    manifest = pq.read_table(paths.SYNTHETIC / paths.MANIFEST).to_pydict()
    report = json.loads((paths.SYNTHETIC / "report.json").read_text())
    assert {"seed", "index", "spread", "confidence", "nearest_distance", "content"} <= set(manifest)
    assert min(manifest["confidence"]) >= 0.5
    assert min(manifest["nearest_distance"]) >= report["copy_distance"] - 1e-4
    assert report["kept"] == len(set(manifest["content"])) == 90
    assert report["drawn"] == 90 + sum(report["dropped"].values())
    assert report["params"] == json.loads(json.dumps(dataclasses.asdict(augment.read_params(document()))))


def test_the_search_is_recorded_and_its_choice_is_what_is_drawn(workspace: Path) -> None:
    augment.run(document(spread=1.0, try_spreads=[1.6], try_min_confidences=[0.6], try_manifold_neighbours=[3]))
    report = json.loads((paths.SYNTHETIC / "report.json").read_text())
    tried, chosen = report["search"], report["chosen"]
    names = ("spread", "min_confidence", "manifold_neighbours")
    assert [tuple(row[name] for name in names) for row in tried] == [
        (spread, least, neighbours) for spread in (1, 1.6) for neighbours in (0, 3) for least in (0.5, 0.6)
    ]
    (best,) = [row for row in tried if row["chosen"]]
    assert best["surprise"] == min(row["surprise"] for row in tried)
    assert chosen == {name: best[name] for name in names}
    manifest = pq.read_table(paths.SYNTHETIC / paths.MANIFEST).to_pydict()
    assert set(manifest["spread"]) == {chosen["spread"]}
    assert min(manifest["confidence"]) >= chosen["min_confidence"] - 1e-6
    lines = list(csv.DictReader((paths.SYNTHETIC / "search.csv").read_text().splitlines()))
    assert [float(line["surprise"]) for line in lines] == [row["surprise"] for row in tried]
    assert (paths.SYNTHETIC / "search.png").read_bytes().startswith(b"\x89PNG")


def test_with_neighbours_all_that_is_released_is_among_real_images(workspace: Path) -> None:
    augment.run(document(manifold_neighbours=2))
    real, made = (ImageSet.open(root / paths.IMAGESET) for root in (paths.REAL, paths.SYNTHETIC))
    judging = Judges.load(paths.FEATURES).filter

    def features(found: ImageSet, split: str) -> tuple[np.ndarray, np.ndarray]:
        images, labels = found.arrays(split)
        return embed(judging, images), labels

    manifold = Manifold(*features(real, "train"), 2)
    assert manifold.holds(*features(made, "train"), 2).all()
    report = json.loads((paths.SYNTHETIC / "report.json").read_text())
    assert report["dropped"]["off_manifold"] > 0
    assert report["validation_on_manifold"] == manifold.holds(*features(real, "validation"), 2).mean() < 1


class NearCopies:
    """A model whose every seventh sample is a training image of the class, off by at most 2 levels."""

    def __init__(self, model: Model, train: np.ndarray, labels: np.ndarray) -> None:
        self.model, self.train, self.labels = model, train, labels

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def with_sources(self, *_: np.ndarray) -> NearCopies:
        return self

    def sample(self, *, start: int, count: int, **how: Any) -> tuple[np.ndarray, np.ndarray]:
        images, asked = (rows.copy() for rows in self.model.sample(start=start, count=count, **how))
        planted = np.flatnonzero(np.arange(start, start + count) % 7 == 0)
        rows = [np.flatnonzero(self.labels == asked[place])[place % 50] for place in planted]
        noise = np.random.default_rng(start).integers(-2, 3, images[planted].shape)
        images[planted] = np.clip(self.train[rows].astype(int) + noise, 0, 255).astype(np.uint8)
        return images, asked


def test_what_is_nearer_to_a_training_image_than_validation_images_are_is_dropped(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ImageSet.open(paths.REAL / paths.IMAGESET)
    (train, labels), (held_out, _) = real.arrays("train"), real.arrays("validation")
    model = NearCopies(Model.load(paths.MODEL), train, labels)
    monkeypatch.setattr(Model, "load", lambda _: model)
    augment.run(document(copy_quantile=0.1))
    apart = held_out[:, None].astype(float) - train[None].astype(float)
    nearest = np.sqrt((apart**2).mean(axis=(2, 3, 4))).min(axis=1)
    report = json.loads((paths.SYNTHETIC / "report.json").read_text())
    assert report["copy_distance"] == pytest.approx(np.quantile(nearest, 0.1), rel=1e-6)
    assert report["dropped"]["near_copy"] >= (report["drawn"] + 6) // 7
    manifest = pq.read_table(paths.SYNTHETIC / paths.MANIFEST).to_pydict()
    assert not any(index % 7 == 0 for index in manifest["index"])


def test_the_same_settings_give_the_same_bytes(workspace: Path) -> None:
    augment.run(document())
    first = contents(paths.SYNTHETIC)
    augment.run(document())
    assert contents(paths.SYNTHETIC) == first


def test_a_failure_leaves_the_older_set_as_it_was(workspace: Path) -> None:
    augment.run(document())
    first = contents(paths.SYNTHETIC)
    with pytest.raises(FailedError, match="max_draws_per_image above 1"):
        augment.run(document(min_confidence=0.999, max_draws_per_image=1))
    assert contents(paths.SYNTHETIC) == first
    assert {path.name for path in paths.OUT.iterdir()} == {"real", "features", "model", "synthetic"}


def test_a_count_of_no_class_is_named(workspace: Path) -> None:
    with pytest.raises(UserError, match=r"^params\.yaml: augment\.class_counts\.hihg names no class; did you mean"):
        augment.run(document(class_counts={"hihg": 5}))


def test_a_model_of_other_images_is_refused(workspace: Path) -> None:
    model = Model.load(paths.MODEL)
    paths.MODEL.unlink()
    dataclasses.replace(model, classes=("a", "b", "c")).save(paths.MODEL)
    with pytest.raises(UserError, match=r"^out/model: makes 1×8×8 images of 3 classes \(a, b, c\); needed 1×8×8"):
        augment.run(document())
