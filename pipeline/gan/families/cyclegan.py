"""CycleGAN (Zhu, Park, Isola & Efros 2017, arXiv 1703.10593): images of one domain as images of another.

New: no pairs are needed. Two generators translate, one into each domain, labels 0 and 1; there and back again an image
must be itself (cycle consistency, equation 2), so that a translation keeps what it is a translation of. An image of a
generator's own domain should pass it unchanged (identity, section 5.2). Two PatchGAN discriminators judge patches by
least squares, and are shown fakes out of a pool of earlier ones (section 4).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.gan import diffaugment, family, objectives
from pipeline.gan.batches import Batch, Draws
from pipeline.gan.diffaugment import Policy
from pipeline.gan.family import ImageSpec, Progress, at_least

_AT_ONCE = 16  # images that are translated together outside of training: a bound on memory


@dataclass(frozen=True, kw_only=True)
class Config(family.Config):
    """`families.cyclegan` of params.yaml; the defaults are the paper's (section 4 and appendix 7)."""

    trains_alone: ClassVar[str] = "its pool takes in one image after another"
    objective: ClassVar[objectives.Name] = "least_squares"

    learning_rate: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999
    ema_halflife_images: int = 0  # the paper keeps the last generators
    cycle_weight: float = 10.0  # λ
    identity_weight: float = 0.5  # as a part of λ
    width: int = 64  # channels of the first layer of each network
    blocks: int | None = None  # residual blocks of a generator; null: 6, and 9 for images of 256 pixels or more
    discriminator_layers: int = 3  # strided ones: a score sees 70×70 pixels, with 2 34×34, with 1 16×16
    pool_size: int = 50  # images of each domain
    mirror: bool = True  # training images, at even odds
    augment: tuple[Policy, ...] = ()  # DiffAugment: color, translation, cutout

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, cycle_weight=0, identity_weight=0, width=1, discriminator_layers=1, pool_size=1)
        if self.blocks is not None:
            at_least(self, blocks=1)


def _convolution(before: int, after: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """A convolution to size / stride whose border is a mirror, with instance normalization."""
    return [
        nn.ReflectionPad2d(kernel // 2),
        nn.Conv2d(before, after, kernel, stride, bias=False),
        nn.InstanceNorm2d(after),
    ]


class _Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut, nothing after the sum (Johnson et al. 2016, arXiv 1603.08155)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_convolution(width, width, 3), nn.ReLU(), *_convolution(width, width, 3))

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.layers(x)
        return x + changed


class Translator(nn.Sequential):
    """Images (B, C, H, W) in [-1, 1] to images of the same shape and range: c7s1-k, d2k, d4k, R4k…, u2k, uk, c7s1-C."""

    def __init__(self, config: Config, spec: ImageSpec) -> None:
        k = config.width
        blocks = config.blocks or (6 if spec.image_size < 256 else 9)
        layers: list[nn.Module] = [*_convolution(spec.channels, k, 7), nn.ReLU()]
        for width in (k, 2 * k):
            layers += [*_convolution(width, 2 * width, 3, stride=2), nn.ReLU()]
        layers += [_Block(4 * k) for _ in range(blocks)]
        for width in (2 * k, k):
            layers += [nn.ConvTranspose2d(2 * width, width, 3, 2, 1, output_padding=1, bias=False)]
            layers += [nn.InstanceNorm2d(width), nn.ReLU()]
        super().__init__(*layers, nn.ReflectionPad2d(3), nn.Conv2d(k, spec.channels, 7), nn.Tanh())


class PatchGAN(nn.Sequential):
    """Images (B, C, H, W) to a map of scores (B, 1, h, w), each of one patch (Isola et al. 2017, arXiv 1611.07004).

    Scores are in the precision of the weights, under autocast too.
    """

    def __init__(self, config: Config, spec: ImageSpec) -> None:
        widths = [config.width * min(8, 2**level) for level in range(config.discriminator_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(spec.channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for level, width in enumerate(widths[1:], start=1):
            stride = 1 if level == config.discriminator_layers else 2
            layers += [nn.Conv2d(widths[level - 1], width, 4, stride, 1, bias=False)]
            layers += [nn.InstanceNorm2d(width), nn.LeakyReLU(0.2)]
        super().__init__(nn.Sequential(*layers), nn.Conv2d(widths[-1], 1, 4, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        layers, score = self
        features = layers(images)
        with torch.autocast(images.device.type, enabled=False):
            scores: Tensor = score(features.to(score.weight.dtype))
        return scores


def _initialize(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _alternate(first: Tensor, second: Tensor) -> Tensor:
    """first[0], second[0], first[1], second[1], …"""
    return torch.stack([first, second], dim=1).flatten(0, 1)


class Generator(family.Generator):
    """Two translators, `into[0]` and `into[1]`."""

    conditional = True
    translates = True

    def __init__(self, config: Config, spec: ImageSpec) -> None:
        super().__init__()
        if spec.classes != 2:
            raise ValueError(f"images have {spec.classes} classes; cyclegan needed 2, the domains")
        smallest = max(8, 3 * 2**config.discriminator_layers)
        if spec.image_size % 4 or spec.image_size < smallest:
            raise ValueError(
                f"images are {spec.image_size}×{spec.image_size}; cyclegan with {config.discriminator_layers} "
                f"discriminator_layers needed a multiple of 4 of at least {smallest}, see ingest.image_size"
            )
        self.into = nn.ModuleList(Translator(config, spec) for _ in range(2))
        _initialize(self)

    def sample_like(self, batch: Batch, spread: float = 1.0) -> Tensor:
        """The images of the batch, each translated into the domain that its label names."""
        images = torch.empty_like(batch.images)
        for label, translator in enumerate(self.into):
            rows = batch.labels == label
            images[rows] = torch.cat([translator(part) for part in torch.split(batch.images[rows], _AT_ONCE)])
        return images


class Discriminator(nn.Module):
    """Two PatchGANs, `of[0]` and `of[1]`."""

    def __init__(self, config: Config, spec: ImageSpec) -> None:
        super().__init__()
        self.of = nn.ModuleList(PatchGAN(config, spec) for _ in range(2))
        _initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Scores (B, 1, h, w) of images (B, C, H, W) that are by turns of domain 0 and 1."""
        return _alternate(*(patches(images[label::2]) for label, patches in enumerate(self.of)))


def exchange(pool: Tensor, held: Tensor, fakes: Tensor, draws: Tensor) -> Tensor:
    """What the discriminators see in place of `fakes` (N, 2, …), a column for each domain.

    Updates `pool` (2, S, …) and `held`, how many of each domain it holds. While it fills up, each fake is put into it
    and shown. From then on, at even odds, a fake is shown and forgotten, or takes the place of an earlier one, which is
    shown instead (Shrivastava et al. 2017, arXiv 1612.07828, section 2.3). `draws` are uniform in [0, 1), (N, 2, 2).
    """
    domains, size = torch.arange(2, device=pool.device), pool.shape[1]
    shown = []
    for fake, draw in zip(fakes, draws, strict=True):
        coin, place = draw[:, 0], draw[:, 1]
        filling = held < size
        slot = domains, torch.where(filling, held, (place * size).long())
        earlier = pool[slot]
        swapped = (~filling & (coin < 0.5)).reshape(-1, *[1] * (fake.ndim - 1))
        shown.append(torch.where(swapped, earlier, fake))
        pool[slot] = torch.where(filling | swapped, fake, earlier)
        held += filling
    return torch.stack(shown)


class Family(family.Family):
    config: Config
    generator: Generator
    pool: Tensor
    held: Tensor
    balanced = True  # by turns an image of domain 0 and one of domain 1
    objective = objectives.least_squares

    def __init__(self, config: Config, spec: ImageSpec) -> None:
        super().__init__()
        self.config = config
        self.generator = Generator(config, spec)
        self.discriminator = Discriminator(config, spec)
        shape = (2, config.pool_size, spec.channels, spec.image_size, spec.image_size)
        self.register_buffer("pool", torch.zeros(shape))
        self.register_buffer("held", torch.zeros((), dtype=torch.int64))

    def augment(self, images: Tensor, draws: Draws) -> Tensor:
        """What the discriminators are shown instead of these images, real or generated."""
        return diffaugment.augment(images, self.config.augment, draws)

    def fakes(self, like: Batch) -> Tensor:
        """By turns an image of domain 1 as one of domain 0, and the other way round."""
        into_0, into_1 = self.generator.into
        return _alternate(into_0(like.images[1::2]), into_1(like.images[0::2]))

    def score(self, images: Tensor, like: Batch) -> Tensor:
        """For each image, by turns of domain 0 and 1, the mean score of its patches (B,)."""
        patches: Tensor = self.discriminator(images)
        return patches.flatten(1).mean(1)

    def losses(self, real: Batch, progress: Progress) -> Iterator[tuple[str, Tensor]]:
        config, (into_0, into_1) = self.config, self.generator.into
        precision = torch.autocast(real.images.device.type, torch.bfloat16, enabled=config.precision == "bfloat16")
        images = real.images
        if config.mirror:
            images = torch.where(real.draws.uniform(1, 1, 1) < 0.5, images.flip(3), images)
        with precision:
            # Both domains go through both translators at once: the one gives fakes, the other what must not change.
            in_0, in_1 = into_0(images), into_1(images)
            fakes, same = _alternate(in_0[1::2], in_1[0::2]), _alternate(in_0[0::2], in_1[1::2])
            back = _alternate(into_0(fakes[1::2]), into_1(fakes[0::2]))
            fake_scores = self.discriminator(self.augment(fakes, real.draws))
        # Means over the batch are halves of the paper's sums over the domains, all terms alike; its squares are whole.
        cycle, identity = F.l1_loss(back, images), F.l1_loss(same, images)
        progress.charts["cycle_loss"], progress.charts["identity_loss"] = cycle, identity
        adversarial = 2 * objectives.least_squares.generator(fake_scores, fake_scores)
        yield "generator", adversarial + config.cycle_weight * (cycle + config.identity_weight * identity)

        pairs, draws = (rows.reshape(-1, 2, *rows.shape[1:]) for rows in (fakes.detach(), real.draws.uniform(2)))
        shown = exchange(self.pool, self.held, pairs.to(self.pool.dtype), draws).flatten(0, 1)
        with precision:
            real_scores = self.discriminator(self.augment(images, real.draws))
            fake_scores = self.discriminator(self.augment(shown, real.draws))
        right = {"real_accuracy": real_scores > 0.5, "fake_accuracy": fake_scores < 0.5}
        progress.charts.update((name, told.to(real_scores.dtype).mean()) for name, told in right.items())
        yield "discriminator", objectives.least_squares.discriminator(real_scores, fake_scores)
