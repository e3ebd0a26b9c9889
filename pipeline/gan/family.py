"""What a family of GANs is to the trainer: networks, and a generator of losses."""

from __future__ import annotations

import importlib
import pkgutil
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from pipeline.errors import nearest
from pipeline.gan import families, schedules
from pipeline.gan.batches import Batch


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """The images a family learns: square, float in [-1, 1] inside it, labels 0..classes-1."""

    channels: int
    image_size: int
    classes: int


Precision = Literal["auto", "bfloat16", "float32"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings that every family has; `families.<name>` of params.yaml."""

    trains_alone: ClassVar[str] = ""  # why several processes cannot share its batches, where they cannot

    precision: Precision = "auto"  # of the networks while training; auto: what this machine multiplies faster in
    learning_rate: float = 1e-3
    beta1: float = 0.0  # Adam
    beta2: float = 0.99
    fall_from: float = 0.5  # the share of the run after which the learning rate falls linearly to zero
    ema_halflife_images: int = 20_000  # of the averaged generator, the one that is kept
    ema_ramp: float = 0.05  # while young, its half-life is this share of the images seen

    def __post_init__(self) -> None:
        at_least(self, learning_rate=1e-9, beta1=0, beta2=0, fall_from=0, ema_halflife_images=0, ema_ramp=1e-9)
        for name in ("beta1", "beta2", "fall_from"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; needed below 1")


def at_least(config: Config, **bounds: float) -> None:
    """Raise ValueError, beginning with its name, for a setting below its bound."""
    for name, least in bounds.items():
        if getattr(config, name) < least:
            raise ValueError(f"{name} is {getattr(config, name)}; needed at least {least}")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where the run stands before a step, and the step's charted numbers."""

    step: int
    images_seen: int
    total_images: int
    charts: dict[str, Tensor] = field(default_factory=dict)  # name → scalar, averaged into the curves


class Generator(nn.Module):
    """What a family keeps: the network that makes images."""

    conditional: bool  # whether images have the labels that were asked for
    translates: bool = False  # whether they are made of other images, the batch's, and not of noise

    @abstractmethod
    def sample_like(self, batch: Batch, spread: float = 1.0) -> Tensor:
        """Images float (B, C, H, W) in [-1, 1], as many as the batch has and with its labels, from its draws.

        A network without tanh may overshoot. `spread` is the standard deviation of the latents, or of what a family
        has in their place.
        """


class Family(nn.Module):
    """Networks and losses. Its child modules are the players, by name; `generator` is averaged and kept."""

    config: Config
    generator: Generator
    balanced: bool = False  # whether it wants the classes by turns in a batch: labels 0, 1, …, 0, 1, …

    def prepare(self, progress: Progress) -> Hashable | None:
        """Set what changes from step to step, before the losses of the step are asked for.

        Returns the kind of the step: what the losses do is the same for every batch of a kind, but for what was set in
        buffers. On a GPU they are then recorded once and played again. None: that cannot be said, as here.
        """
        return None

    @abstractmethod
    def losses(self, real: Batch, progress: Progress) -> Iterator[tuple[str, Tensor]]:
        """Yield (player, loss) pairs; code after a `yield` runs when that player has stepped.

        Never yield inside `no_grad` or `autocast`: the trainer's backward pass would run inside it.
        """

    def optimizer(self, player: str) -> torch.optim.Optimizer:
        """The optimizer of one player."""
        betas = self.config.beta1, self.config.beta2
        return torch.optim.Adam(self.get_submodule(player).parameters(), betas=betas, fused=True)

    def hyperparameters(self, player: str, progress: Progress) -> dict[str, Any]:
        """What the player's optimizer is set to for this step."""
        fall = schedules.linear_fall(progress.images_seen, progress.total_images, self.config.fall_from)
        return {"lr": self.config.learning_rate * fall}


class FamilyModule(Protocol):
    """The three names in the file of a family.

    Both classes are built from a Config and the ImageSpec, and raise ValueError when the two do not go together.
    """

    Config: type[Any]
    Generator: Callable[[Any, ImageSpec], Generator]
    Family: Callable[[Any, ImageSpec], Family]


def load_family(name: str) -> FamilyModule:
    """pipeline/gan/families/<name>.py. Raises ValueError that begins with `family`."""
    known = [module.name for module in pkgutil.iter_modules(families.__path__)]
    if name not in known:
        raise ValueError(f"family is '{name}'; {nearest(name, known)}")
    return cast(FamilyModule, importlib.import_module(f"{families.__name__}.{name}"))
