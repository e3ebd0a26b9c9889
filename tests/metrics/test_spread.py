"""Standard errors are about what new images scatter; what is certain has none, what was seen once has one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.metrics import modes, neighbours, spread


def test_of_a_share_it_is_nearly_the_binomial_one_and_never_nothing() -> None:
    assert spread.of_share(0.3, 1000) == pytest.approx(math.sqrt(0.3 * 0.7 / 1000), rel=0.01)
    assert spread.of_share(1, 100) == spread.of_share(0, 100) > 0
    assert spread.of_share(1, 10_000) < spread.of_share(1, 100) / 50


def test_of_agreement_the_worst_class_has_that_of_its_own_images() -> None:
    asked, judged = np.repeat([0, 1], [900, 100]), np.repeat([0, 1, 0], [900, 60, 40])
    found = spread.of_agreement(asked, judged, np.array([1, 0.6, np.nan]))
    assert found == {"mean": spread.of_share(0.96, 1000), "worst_class": spread.of_share(0.6, 100)}
    assert spread.of_agreement(asked, judged, np.array([1, 0.6, 0]))["worst_class"] == 0  # of none it is certain


def scatter_and_spread(draw, measure, error, name: str, times: int = 40) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """Of a measure over new draws, and the mean of what is said of it."""
    drawn = [draw(np.random.default_rng(seed)) for seed in range(times)]
    return float(np.std([measure(each) for each in drawn], ddof=1)), float(
        np.mean([error(each)[name] for each in drawn])
    )


def test_of_the_balance_it_is_what_new_labels_scatter() -> None:
    real = np.arange(400) % 4
    scattered, said = scatter_and_spread(
        lambda random: random.choice(4, 500, p=[0.4, 0.3, 0.2, 0.1]),
        lambda judged: modes.balance(judged, real, 4)["kl_from_real"],
        lambda judged: spread.of_balance(judged, real, 4, seed=0),
        "kl_from_real",
    )
    assert said == pytest.approx(scattered, rel=0.4)


def test_of_the_spread_of_pixels_it_is_what_new_images_scatter() -> None:
    labels, real = np.arange(300) % 3, np.array([50.0, 50.0, 50.0])

    def images(random: np.random.Generator) -> np.ndarray:
        return (
            (128 + 40 * random.standard_normal((300, 1, 1, 1)) + np.zeros((1, 1, 4, 4))).clip(0, 255).astype(np.uint8)
        )

    scattered, said = scatter_and_spread(
        images,
        lambda drawn: (modes.pixel_spread(drawn, labels, 3) / real).mean(),
        lambda drawn: spread.of_pixel_spread(drawn, labels, real, 3, seed=0),
        "pixel_spread",
    )
    assert said == pytest.approx(scattered, rel=0.4)
    drawn = images(np.random.default_rng(0))
    assert spread.of_pixel_spread(drawn[:12], labels[:12], real, 3, seed=0) == {}  # parts of four images of a class


def test_of_nearness_it_is_what_new_images_on_both_sides_scatter() -> None:
    scattered, said = scatter_and_spread(
        lambda random: (random.normal(0.2, 1, 400), random.normal(0, 1, 100)),
        lambda sides: neighbours.nearer(*sides)["nearer_than_median"],
        lambda sides: spread.of_nearer(*sides, len(sides[1]), seed=0),
        "nearer_than_median",
    )
    assert said == pytest.approx(scattered, rel=0.35)
    assert said > 1.5 * spread.of_share(0.42, 400)  # what the few held-out ones leave open is most of it


def test_of_classes_it_is_what_new_images_scatter_of_the_worst_one() -> None:
    labels = np.arange(240) % 2

    def sides(random: np.random.Generator) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        ours, theirs = random.normal(size=(2, 240, 4))
        return (ours * np.where(labels == 1, 0.6, 1)[:, None], labels), (theirs, labels)

    for name in ("worst_recall", "worst_diversity"):
        scattered, said = scatter_and_spread(
            sides,
            lambda drawn, name=name: modes.worst(modes.by_class(*drawn, 2, seed=0))[name],
            lambda drawn: spread.of_classes(*drawn, modes.by_class(*drawn, 2, seed=0), seed=0),
            name,
            times=12,
        )
        assert scattered / 2.5 < said < scattered * 2.5, name


def test_of_classes_with_too_few_images_for_a_quarter_there_is_none() -> None:
    rows, labels = np.random.default_rng(0).normal(size=(24, 4)), np.arange(24) % 2
    found = modes.by_class((rows, labels), (rows, labels), 2, seed=0)
    assert found["recall"].min() == 1
    assert "worst_recall" not in spread.of_classes((rows, labels), (rows, labels), found, seed=0)


def test_the_same_seed_says_the_same() -> None:
    judged = np.arange(100) % 3
    assert spread.of_balance(judged, judged, 3, seed=1) == spread.of_balance(judged, judged, 3, seed=1)
    one, other = np.random.default_rng(0).normal(size=(2, 50))
    assert spread.of_nearer(one, other, len(other), seed=1) == spread.of_nearer(one, other, len(other), seed=1)
