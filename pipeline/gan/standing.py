"""How the game stands when training ends: what the discriminator makes of three kinds of images.

Those that it learned from, real ones that it has never seen, and fakes. Where it knows the first from the second it has
learned them by heart, and no longer tells the generator what real images are like, but which they were (arXiv
2006.06676, section 2). Where it does not know the second from the third, the generator has won.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from pipeline.gan.batches import Batch, Batches, Draws
from pipeline.gan.distributed import of_all
from pipeline.gan.family import Generator
from pipeline.gan.objectives import Objective

_IMAGES = 2000  # of each kind, drawn with replacement; whole batches
_BINS = 10
_LOGISTIC = ("minimax", "non_saturating")  # objectives under which sigmoid(score) is a probability


@runtime_checkable
class Family(Protocol):
    """One whose discriminator can be asked: about `images`, augmented, and about its `fakes` like a batch."""

    config: Any
    generator: Generator
    objective: Objective

    def augment(self, images: Tensor, draws: Draws) -> Tensor: ...

    def fakes(self, like: Batch) -> Tensor: ...

    def score(self, images: Tensor, like: Batch) -> Tensor: ...

    def train(self, mode: bool = True) -> Self: ...


@torch.no_grad()
def standing(family: Family, train: Batches, held_out: Batches, *, step: int) -> dict[str, Any]:
    """What the discriminator makes of batches from `step` on, which training has not come to.

    It is asked as in training: batch by batch, augmented, in its training mode, and against the generator that it
    played with, not the averaged one. `train_accuracy`, `held_out_accuracy`, `fake_accuracy`: the shares told rightly,
    by the boundary of the objective, or where it has none by the middle between the mean scores of train and fake.
    `gap`: the first less the second. `train_over_held_out`: how often an image of the first kind has a higher score
    than one of the second, ½ for equals; 0.5 is expected without overfitting. `held_out_over_fake`: likewise, 0.5 when
    fakes cannot be told. `calibration_error`: of a discriminator whose scores stand for probabilities, the mean
    distance between these and the shares that are real, in ten bins, over held-out and fake images.

    Where a family translates, each of its two discriminators is asked about its domain: all these are the means of
    both, and `domains` has those of each. Several processes ask about their shares of the batches, and all must ask.
    """
    family = copy.deepcopy(family).train()
    steps = range(step, step + math.ceil(_IMAGES / train.batch_size))
    half = family.config.precision == "bfloat16"
    autocast = torch.autocast(train.generator.device.type, torch.bfloat16, enabled=half)

    def scores(batches: Batches, images: Callable[[Batch], Tensor]) -> Tensor:
        with autocast:
            parts = []
            for batch in map(batches.at, steps):
                shown = family.augment(images(batch).to(batch.images.dtype), batch.draws)
                parts.append(family.score(shown, batch))
        return of_all(torch.cat(parts)).double().cpu()

    known = scores(train, lambda batch: batch.images)
    new = scores(held_out, lambda batch: batch.images)
    fake = scores(train, family.fakes)
    asked = {"objective": family.config.objective, "images": len(known)}
    if not family.generator.translates:
        return asked | _told(known, new, fake, family)
    domains = [_told(known[domain::2], new[domain::2], fake[domain::2], family) for domain in range(2)]  # by turns
    means = {name: sum(told[name] for told in domains) / 2 for name in domains[0]}
    return asked | means | {"domains": domains}


def _told(known: Tensor, new: Tensor, fake: Tensor, family: Family) -> dict[str, float]:
    """What the scores of one discriminator say."""
    boundary = family.objective.boundary
    if boundary is None:
        boundary = float(known.mean() + fake.mean()) / 2
    right = {"train": known > boundary, "held_out": new > boundary, "fake": fake < boundary}
    found = {f"{name}_accuracy": float(each.double().mean()) for name, each in right.items()}
    found["gap"] = found["train_accuracy"] - found["held_out_accuracy"]
    found["train_over_held_out"] = _over(known, new)
    found["held_out_over_fake"] = _over(new, fake)
    if family.config.objective in _LOGISTIC:
        found["calibration_error"] = _calibration_error(new.sigmoid(), fake.sigmoid())
    return found


def _over(ones: Tensor, others: Tensor) -> float:
    """How often one of `ones` is above one of `others`; equals count half."""
    apart = ones[:, None] - others
    return float((apart > 0).double().mean() + (apart == 0).double().mean() / 2)


def _calibration_error(of_real: Tensor, of_fake: Tensor) -> float:
    """Expected calibration error of probabilities to be real, in bins of equal width (arXiv 1706.04599, equation 3)."""
    probabilities = torch.cat([of_real, of_fake])
    real = torch.cat([torch.ones_like(of_real), torch.zeros_like(of_fake)])
    bins = (probabilities * _BINS).long().clamp(max=_BINS - 1)
    apart = torch.zeros(_BINS, dtype=real.dtype).index_add_(0, bins, probabilities - real)
    return float(apart.abs().sum() / len(real))
