"""The game that most families play: a generator of images from noise against one discriminator.

A family that plays it gives the two networks and its defaults, and overrides what it does in another way. What is
here is what papers share: objective, penalties, discriminator steps, augmentation, precision.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pipeline.gan import ada, diffaugment, family, objectives, penalties
from pipeline.gan.batches import Batch, Draws
from pipeline.gan.distributed import all_mean, world_size
from pipeline.gan.family import Generator, Progress, at_least


@dataclass(frozen=True, kw_only=True)
class Config(family.Config):
    """The settings that every family of this game has."""

    lipschitz: ClassVar[bool] = False  # whether the family bounds the critic's slope in a way of its own

    class_conditional: bool = True
    latent_size: int = 100
    objective: objectives.Name = "non_saturating"
    label_smoothing: float = 0.0  # one-sided: real images have the target 1 - this
    discriminator_steps: int = 1  # for each step of the generator
    r1_gamma: float = 0.0  # on real images
    r2_gamma: float = 0.0  # on generated images
    gradient_penalty: float = 0.0  # λ, between real and generated images
    penalty_every: int = 16  # discriminator steps; the weights make up for the steps without
    augment: tuple[diffaugment.Policy, ...] = ()  # DiffAugment: color, translation, cutout
    transformations: tuple[ada.Transformation, ...] = ()  # flip, rotate90, translation, scaling, rotation, color
    transformation_probability: float | None = None  # of each of them; without one it adapts (ADA)
    ada_target: float = 0.6  # of E[sign D(real)], to which it adapts
    precision: family.Precision = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, latent_size=1, label_smoothing=0, discriminator_steps=1, penalty_every=1)
        at_least(self, r1_gamma=0, r2_gamma=0, gradient_penalty=0)
        if self.label_smoothing >= 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; needed below 1")
        if self.label_smoothing and self.objective not in ("minimax", "non_saturating"):
            raise ValueError(
                f"label_smoothing is {self.label_smoothing}; needed 0 with the {self.objective} objective, "
                "whose scores are not probabilities"
            )
        if self.augment and self.transformations:
            raise ValueError("transformations are given; needed none beside augment, which is the other way to do it")
        probability = self.transformation_probability
        if probability is not None and not 0 <= probability <= 1:
            raise ValueError(f"transformation_probability is {probability}; needed from 0 to 1")
        if not -1 < self.ada_target < 1:
            raise ValueError(f"ada_target is {self.ada_target}; needed between -1 and 1")
        if self.transformations and probability is None and getattr(objectives, self.objective).boundary is None:
            raise ValueError(
                f"transformation_probability is None; needed one with the {self.objective} objective, "
                "whose scores have no sign to adapt to"
            )
        bound = self.lipschitz or self.r1_gamma or self.r2_gamma or self.gradient_penalty
        if self.objective == "wasserstein" and not bound:
            raise ValueError(
                "objective is wasserstein; needed a gradient_penalty, r1_gamma or r2_gamma above 0 with it, "
                "since nothing else holds the critic's slope"
            )


class Family(family.Family):
    """A generator and a discriminator (images (B, C, H, W), labels (B,)) → raw scores (B,)."""

    config: Config
    discriminator: nn.Module
    strength: Tensor  # the probability of each transformation

    def __init__(self, config: Config, generator: Generator, discriminator: nn.Module) -> None:
        super().__init__()
        self.config, self.generator, self.discriminator = config, generator, discriminator
        self.objective: objectives.Objective = getattr(objectives, config.objective)
        if config.transformations:
            self.register_buffer("strength", torch.tensor(config.transformation_probability or 0.0))

    def augment(self, images: Tensor, draws: Draws) -> Tensor:
        """What the discriminator is shown instead of these images, real or generated."""
        if self.config.transformations:
            return ada.augment(images, self.config.transformations, self.strength, draws)
        return diffaugment.augment(images, self.config.augment, draws)

    def score(self, images: Tensor, like: Batch) -> Tensor:
        """The discriminator's raw scores (B,) of images under the labels of a batch, which has draws for it too."""
        scores: Tensor = self.discriminator(images, like.labels)
        return scores

    def fakes(self, like: Batch) -> Tensor:
        """What the generator makes with the labels and draws of a batch."""
        return self.generator.sample_like(like)

    def prepare(self, progress: Progress) -> Hashable | None:
        return self._turn(progress)

    def _turn(self, progress: Progress) -> tuple[bool, int]:
        """Whether the generator steps too, and how often the penalties count."""
        config = self.config
        generator_steps = (progress.step + 1) % config.discriminator_steps == 0
        return generator_steps, penalties.lazy(progress.step, config.penalty_every)

    def losses(self, real: Batch, progress: Progress) -> Iterator[tuple[str, Tensor]]:
        config, objective = self.config, self.objective
        generator_steps, often = self._turn(progress)
        autocast = torch.autocast(real.images.device.type, torch.bfloat16, enabled=config.precision == "bfloat16")
        with autocast, torch.set_grad_enabled(generator_steps):
            fakes = self.augment(self.fakes(real).to(real.images.dtype), real.draws)
        with autocast:
            images = self.augment(real.images, real.draws)
            real_scores, fake_scores = self.score(images, real), self.score(fakes.detach(), real)
        loss = objective.discriminator(real_scores, fake_scores)
        if config.label_smoothing:
            loss = loss + objectives.smoothing(real_scores, config.label_smoothing)
        if often:
            loss = loss + often * self.penalty(images, fakes, real)
        self._chart(progress, real_scores, fake_scores)
        if config.transformations and objective.boundary is not None and config.transformation_probability is None:
            over, images_seen = real_scores - objective.boundary, len(real.images) * world_size()
            self.strength.copy_(ada.adapted(self.strength, over, config.ada_target, images_seen))
            progress.charts["strength"] = self.strength.clone()
        yield "discriminator", loss

        if generator_steps:
            with autocast:
                fake_scores = self.score(fakes, real)
                if objective.boundary is None:  # scores that are compared must come from the same discriminator
                    real_scores = self.score(images, real)
            yield "generator", objective.generator(real_scores.detach(), fake_scores)

    def penalty(self, images: Tensor, fakes: Tensor, real: Batch) -> Tensor:
        """What is added to the discriminator's loss of these images, real and generated, where penalties count."""

        def score(shown: Tensor) -> Tensor:
            return self.score(shown, real)

        config, total = self.config, images.new_zeros(())
        if config.r1_gamma:
            total = total + config.r1_gamma * penalties.r1(score, images)
        if config.r2_gamma:
            total = total + config.r2_gamma * penalties.r2(score, fakes)
        if weight := config.gradient_penalty:
            epsilon = real.draws.uniform(1, 1, 1)
            total = total + weight * penalties.gradient_penalty(score, images, fakes, epsilon)
        return total

    def _chart(self, progress: Progress, real_scores: Tensor, fake_scores: Tensor) -> None:
        """How many of each kind the discriminator tells rightly: the sign of how the game stands."""
        real_scores, fake_scores = real_scores.detach(), fake_scores.detach()
        boundary: Tensor | float | None = self.objective.boundary
        if boundary is None:
            boundary = all_mean((real_scores.mean() + fake_scores.mean()) / 2)
        progress.charts["real_accuracy"] = (real_scores > boundary).to(real_scores.dtype).mean()
        progress.charts["fake_accuracy"] = (fake_scores < boundary).to(real_scores.dtype).mean()
