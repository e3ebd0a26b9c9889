"""Objectives against values worked out by hand, and the direction in which they push scores."""

from __future__ import annotations

from math import exp, log

import pytest
import torch

from pipeline.gan import objectives
from pipeline.gan.objectives import Objective

REAL, FAKE = [2.0, 0.5], [-1.0, 0.0]


def test_non_saturating_is_the_logistic_loss_and_minus_log_d() -> None:
    def softplus(x: float) -> float:
        return log(1 + exp(x))

    real, fake = torch.tensor(REAL), torch.tensor(FAKE)
    discriminator = (softplus(-2.0) + softplus(-0.5)) / 2 + (softplus(-1.0) + softplus(0.0)) / 2
    assert objectives.non_saturating.discriminator(real, fake).item() == pytest.approx(discriminator)
    generator = (softplus(1.0) + softplus(0.0)) / 2
    assert objectives.non_saturating.generator(real, fake).item() == pytest.approx(generator)


def test_hinge_stops_at_the_margin() -> None:
    real, fake = torch.tensor(REAL), torch.tensor(FAKE)
    assert objectives.hinge.discriminator(real, fake).item() == pytest.approx((0 + 0.5) / 2 + (0 + 1) / 2)
    assert objectives.hinge.generator(real, fake).item() == pytest.approx(0.5)


@pytest.mark.parametrize("objective", [objectives.non_saturating, objectives.hinge])
def test_the_discriminator_raises_real_and_lowers_fake_and_the_generator_raises_fake(objective: Objective) -> None:
    real, fake = torch.tensor([0.5, -0.3], requires_grad=True), torch.tensor([0.2, -0.4], requires_grad=True)
    up, down = torch.autograd.grad(objective.discriminator(real, fake), (real, fake))
    assert (up < 0).all()
    assert (down > 0).all()
    (lifted,) = torch.autograd.grad(objective.generator(real, fake), fake)
    assert (lifted < 0).all()
