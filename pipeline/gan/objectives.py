"""What the two players minimize, as pure functions of raw scores (no sigmoid) of shape (B,).

Both players are given both scores, so that minimax, hinge, Wasserstein and relativistic losses have one signature.
A family finds its objective here by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
Name = Literal["minimax", "non_saturating", "hinge", "least_squares", "wasserstein", "relativistic"]


class Objective(NamedTuple):
    """The losses of both players: each (real scores, fake scores) → scalar, a mean over images."""

    discriminator: Loss
    generator: Loss
    boundary: float | None = 0.0  # the score from which an image is called real; None: only differences count


def _logistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def _hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def _least_squares_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    return ((real - 1).square().mean() + fake.square().mean()) / 2


def smoothing(real: Tensor, share: float) -> Tensor:
    """What one-sided label smoothing adds to the discriminator's loss when D = sigmoid(score) is a probability.

    The target of real images is 1 - share instead of 1: (1 - s)·softplus(-x) + s·softplus(x) = softplus(-x) + s·x.
    Goodfellow 2016 (arXiv 1701.00160), section 4.2; Salimans et al. 2016, section 3.4.
    """
    return share * real.mean()


# Goodfellow et al. 2014, equation 1: both play for the same value, which the generator lowers by log(1 - D(G(z))).
minimax = Objective(_logistic_discriminator, lambda real, fake: -F.softplus(fake).mean())

# Goodfellow et al. 2014, section 3: the generator maximizes log D(G(z)) instead of minimizing log(1 - D(G(z))).
non_saturating = Objective(_logistic_discriminator, lambda real, fake: F.softplus(-fake).mean())

# Lim & Ye 2017 (Geometric GAN), equations 8 and 9; Miyato et al. 2018, equations 16 and 17.
hinge = Objective(_hinge_discriminator, lambda real, fake: -fake.mean())

# Mao et al. 2017 (arXiv 1611.04076), equation 9: regression to 1 for real and 0 for fake.
least_squares = Objective(_least_squares_discriminator, lambda real, fake: (fake - 1).square().mean() / 2, 0.5)

# Arjovsky et al. 2017 (arXiv 1701.07875), algorithm 1: minus the distance, as far as the critic is 1-Lipschitz.
wasserstein = Objective(lambda real, fake: fake.mean() - real.mean(), lambda real, fake: -fake.mean(), None)

# Huang et al. 2024 (R3GAN, arXiv 2501.05441), equation 2 with f(t) = -log(1 + exp(-t)); after Jolicoeur-Martineau 2018.
relativistic = Objective(
    lambda real, fake: F.softplus(fake - real).mean(), lambda real, fake: F.softplus(real - fake).mean(), None
)


def with_drift(objective: Objective, weight: float) -> Objective:
    """The objective with weight·E[D(x)²] of real images, which holds scores near 0 that only differences form.

    Karras et al. 2018 (progressive growing), appendix A.1.
    """
    return objective._replace(
        discriminator=lambda real, fake: objective.discriminator(real, fake) + weight * real.square().mean()
    )
