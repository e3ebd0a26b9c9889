"""What a family of GANs is to the trainer: networks, and a generator of losses."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from pipeline.gan import families, schedules
from pipeline.gan.batches import Batch


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """The images a family learns: square, float in [-1, 1] inside it, labels 0..classes-1."""

    channels: int
    image_size: int
    classes: int


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings that every family has; `families.<name>` of params.yaml."""

    learning_rate: float = 1e-3
    beta1: float = 0.0  # Adam
    beta2: float = 0.99
    fall_from: float = 0.5  # the share of the run after which the learning rate falls linearly to zero
    ema_halflife_images: int = 20_000  # of the averaged generator, the one that is kept
    ema_ramp: float = 0.05  # while young, its half-life is this share of the images seen

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate <= 1:
            raise ValueError(f"learning_rate is {self.learning_rate}; needed above 0, at most 1")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; needed at least 0, below 1")
        if not 0 <= self.fall_from < 1:
            raise ValueError(f"fall_from is {self.fall_from}; needed at least 0, below 1")
        if self.ema_halflife_images < 0:
            raise ValueError(f"ema_halflife_images is {self.ema_halflife_images}; needed at least 0")
        if self.ema_ramp <= 0:
            raise ValueError(f"ema_ramp is {self.ema_ramp}; needed above 0")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where the run stands before a step, and the step's charted numbers."""

    step: int
    images_seen: int
    total_images: int
    charts: dict[str, Tensor] = field(default_factory=dict)  # name → scalar, averaged into the curves


class Family(nn.Module):
    """Its child modules are the players, by name; `generator` is the one that is averaged and kept.

    A generator has `sample_like(batch, spread=1.0)`, which gives images in [-1, 1] as many and labelled as the batch.
    """

    Config: ClassVar[type[Any]]  # a frozen dataclass, subclass of this module's Config
    Generator: ClassVar[Callable[[Any, ImageSpec], nn.Module]]
    generator: nn.Module

    def __init__(self, config: Any, spec: ImageSpec) -> None:
        """Raises ValueError, beginning with the setting's name, when the two do not go together."""
        super().__init__()
        self.config = config
        self.generator = self.Generator(config, spec)

    @abstractmethod
    def losses(self, real: Batch, progress: Progress) -> Iterator[tuple[str, Tensor]]:
        """Yield (player, loss) pairs; code after a `yield` runs when that player has stepped.

        Never yield inside `no_grad` or `autocast`: the trainer's backward pass would run inside it.
        """

    def optimizer(self, player: str) -> torch.optim.Optimizer:
        """The optimizer of one player; its learning rate is set before each step."""
        config: Config = self.config
        parameters = self.get_submodule(player).parameters()
        return torch.optim.Adam(parameters, config.learning_rate, (config.beta1, config.beta2), fused=True)

    def learning_rate(self, progress: Progress) -> float:
        """The learning rate of both players in this step."""
        config: Config = self.config
        return config.learning_rate * schedules.linear_fall(
            progress.images_seen, progress.total_images, config.fall_from
        )


def load_family(name: str) -> type[Family]:
    """The class `Family` of pipeline/gan/families/<name>.py. Raises ValueError that begins with `family`."""
    known = [module.name for module in pkgutil.iter_modules(families.__path__)]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"needed one of {', '.join(known)}"
        raise ValueError(f"family is '{name}'; {hint}")
    return cast(type[Family], importlib.import_module(f"{families.__name__}.{name}").Family)
