"""Objectives against values worked out by hand, and the direction in which they push scores."""

from __future__ import annotations

from math import exp, log
from typing import get_args

import pytest
import torch

from pipeline.gan import objectives
from pipeline.gan.objectives import Objective

REAL, FAKE = [2.0, 0.5], [-1.0, 0.0]


def softplus(x: float) -> float:
    return log(1 + exp(x))


def probability(score: float) -> float:
    return 1 / (1 + exp(-score))


def test_non_saturating_is_the_logistic_loss_and_minus_log_d() -> None:
    real, fake = torch.tensor(REAL), torch.tensor(FAKE)
    discriminator = (softplus(-2.0) + softplus(-0.5)) / 2 + (softplus(-1.0) + softplus(0.0)) / 2
    assert objectives.non_saturating.discriminator(real, fake).item() == pytest.approx(discriminator)
    generator = (softplus(1.0) + softplus(0.0)) / 2
    assert objectives.non_saturating.generator(real, fake).item() == pytest.approx(generator)


def test_hinge_stops_at_the_margin() -> None:
    real, fake = torch.tensor(REAL), torch.tensor(FAKE)
    assert objectives.hinge.discriminator(real, fake).item() == pytest.approx((0 + 0.5) / 2 + (0 + 1) / 2)
    assert objectives.hinge.generator(real, fake).item() == pytest.approx(0.5)


def test_minimax_is_one_value_that_both_play_for() -> None:
    real, fake = torch.tensor(REAL), torch.tensor(FAKE)
    on_fake = sum(log(1 - probability(score)) for score in FAKE) / 2
    value = sum(log(probability(score)) for score in REAL) / 2 + on_fake
    assert objectives.minimax.discriminator(real, fake).item() == pytest.approx(-value)
    assert objectives.minimax.generator(real, fake).item() == pytest.approx(on_fake)


def test_least_squares_is_regression_to_1_and_0() -> None:
    real, fake = torch.tensor(REAL), torch.tensor(FAKE)
    discriminator = ((1.0 + 0.25) / 2 + (1.0 + 0.0) / 2) / 2
    assert objectives.least_squares.discriminator(real, fake).item() == pytest.approx(discriminator)
    assert objectives.least_squares.generator(real, fake).item() == pytest.approx((4.0 + 1.0) / 2 / 2)


def test_wasserstein_is_the_difference_of_the_means() -> None:
    real, fake = torch.tensor(REAL), torch.tensor(FAKE)
    assert objectives.wasserstein.discriminator(real, fake).item() == pytest.approx(-0.5 - 1.25)
    assert objectives.wasserstein.generator(real, fake).item() == pytest.approx(0.5)


def test_relativistic_compares_the_images_of_each_pair() -> None:
    real, fake = torch.tensor(REAL), torch.tensor(FAKE)
    discriminator = (softplus(-(2.0 + 1.0)) + softplus(-(0.5 - 0.0))) / 2
    assert objectives.relativistic.discriminator(real, fake).item() == pytest.approx(discriminator)
    generator = (softplus(2.0 + 1.0) + softplus(0.5 - 0.0)) / 2
    assert objectives.relativistic.generator(real, fake).item() == pytest.approx(generator)


def test_smoothing_is_the_cross_entropy_to_a_target_below_1() -> None:
    real = torch.tensor(REAL)
    entropy = -sum(0.9 * log(probability(score)) + 0.1 * log(1 - probability(score)) for score in REAL) / 2
    smoothed = objectives.non_saturating.discriminator(real, torch.full((2,), -100.0)) + objectives.smoothing(real, 0.1)
    assert smoothed.item() == pytest.approx(entropy)


@pytest.mark.parametrize("name", get_args(objectives.Name))
def test_the_discriminator_raises_real_and_lowers_fake_and_the_generator_raises_fake(name: str) -> None:
    objective: Objective = getattr(objectives, name)
    real, fake = torch.tensor([0.5, -0.3], requires_grad=True), torch.tensor([0.2, 0.4], requires_grad=True)
    up, down = torch.autograd.grad(objective.discriminator(real, fake), (real, fake))
    assert (up < 0).all()
    assert (down > 0).all()
    (lifted,) = torch.autograd.grad(objective.generator(real, fake), fake)
    assert (lifted < 0).all()


@pytest.mark.parametrize("name", get_args(objectives.Name))
def test_without_a_boundary_only_differences_of_scores_count(name: str) -> None:
    objective: Objective = getattr(objectives, name)
    real, fake = torch.tensor(REAL), torch.tensor(FAKE)
    loss, shifted = objective.discriminator(real, fake), objective.discriminator(real + 3, fake + 3)
    assert torch.isclose(loss, shifted).item() == (objective.boundary is None)


def test_drift_adds_the_mean_square_of_real_scores_to_the_discriminators_loss_alone() -> None:
    real, fake = torch.tensor(REAL), torch.tensor(FAKE)
    drifting = objectives.with_drift(objectives.wasserstein, 0.1)
    added = drifting.discriminator(real, fake) - objectives.wasserstein.discriminator(real, fake)
    assert added.item() == pytest.approx(0.1 * sum(score**2 for score in REAL) / len(REAL))
    assert drifting.generator(real, fake) == objectives.wasserstein.generator(real, fake)
