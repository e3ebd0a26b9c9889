"""What the two players minimize, as pure functions of raw scores (no sigmoid) of shape (B,).

Both players are given both scores, so that minimax, hinge, Wasserstein and relativistic losses have one signature.
A family finds its objective here by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


class Objective(NamedTuple):
    """The losses of both players: each (real scores, fake scores) → scalar."""

    discriminator: Loss
    generator: Loss


def _logistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def _hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


# Goodfellow et al. 2014, section 3: the generator maximizes log D(G(z)) instead of minimizing log(1 - D(G(z))).
non_saturating = Objective(_logistic_discriminator, lambda real, fake: F.softplus(-fake).mean())

# Lim & Ye 2017 (Geometric GAN), equations 8 and 9; Miyato et al. 2018, equations 16 and 17.
hinge = Objective(_hinge_discriminator, lambda real, fake: -fake.mean())
