"""Building blocks that families share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pipeline.gan.batches import Batch, Draws
from pipeline.gan.family import Generator, ImageSpec


def doublings(spec: ImageSpec) -> int:
    """How often 4×4 is doubled to the images' size. Raises ValueError unless that is a power of two from 8 to 256."""
    size = spec.image_size
    if size & (size - 1) or not 8 <= size <= 256:
        raise ValueError(f"images are {size}×{size}; needed a power of two from 8 to 256, see ingest.image_size")
    return size.bit_length() - 3


def channels_by_size(spec: ImageSpec, width: int, max_width: int) -> list[int]:
    """Channels at each size from 4×4 to the images': `width` there, doubled at each smaller size up to `max_width`."""
    largest = doublings(spec)
    return [min(max_width, width << (largest - level)) for level in range(largest + 1)]


class NoiseGenerator(Generator):
    """A generator of images from latents (B, latent_size) and labels (B,); its subclass gives `forward`."""

    def __init__(self, latent_size: int, *, conditional: bool) -> None:
        super().__init__()
        self.latent_size, self.conditional = latent_size, conditional

    def latents(self, draws: Draws) -> Tensor:
        """(B, latent_size), with mean 0 and standard deviation 1."""
        return draws.normal(self.latent_size)

    def sample_like(self, batch: Batch, spread: float = 1.0) -> Tensor:
        images: Tensor = self(self.latents(batch.draws) * spread, batch.labels)
        return images


class LabelJoin(nn.Module):
    """Vectors (B, D) joined with an embedding of the label (B,): (B, D + E). Mirza & Osindero 2014, section 3.

    With 0 classes the vectors alone. `size` is that of what comes out.
    """

    def __init__(self, size: int, classes: int, embedding_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, embedding_size) if classes else None
        self.size = size + (embedding_size if classes else 0)

    def forward(self, vectors: Tensor, labels: Tensor) -> Tensor:
        return vectors if self.embedding is None else torch.cat([vectors, self.embedding(labels)], dim=1)


class ToMaps(nn.Module):
    """Vectors (B, S·S·C) as maps (B, C, S, S) in the channels_last format, without a copy there or in the gradient."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.channels, self.size = channels, size

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors.view(-1, self.size, self.size, self.channels).permute(0, 3, 1, 2)


class ToVectors(nn.Module):
    """Maps (B, C, S, S) as vectors (B, S·S·C): the way back."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.permute(0, 2, 3, 1).flatten(1)


class ProjectionScore(nn.Module):
    """Scores (B,) of features φ (B, D) under labels y (B,): w·φ + b + ⟨v_y, φ⟩. Miyato & Koyama 2018, equation 3.

    With 0 classes the linear score alone. Always in the precision of the weights, under autocast too.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, 1)
        self.embedding = nn.Embedding(classes, features) if classes else None

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.linear.bias.dtype)
            scores: Tensor = self.linear(features).squeeze(1)
            return scores if self.embedding is None else scores + (self.embedding(labels) * features).sum(1)


class ConditionalBatchNorm2d(nn.Module):
    """Batch normalization of maps (B, C, H, W) with a gain and a bias (C,) for each label (B,).

    Dumoulin et al. 2017 (arXiv 1610.07629), equation 5. With 0 classes plain batch normalization.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.normalization = nn.BatchNorm2d(features, affine=not classes)
        self.gain = self.bias = None
        if classes:
            self.gain, self.bias = nn.Embedding(classes, features), nn.Embedding(classes, features)
            nn.init.ones_(self.gain.weight)
            nn.init.zeros_(self.bias.weight)

    def forward(self, maps: Tensor, labels: Tensor) -> Tensor:
        maps = self.normalization(maps)
        if self.gain is None or self.bias is None:
            return maps
        gain, bias = (embedding(labels)[:, :, None, None].to(maps.dtype) for embedding in (self.gain, self.bias))
        return torch.addcmul(bias, maps, gain)


class SpectralNorm(nn.Module):
    """Divides a weight by its largest singular value: Miyato et al. 2018 (arXiv 1802.05957), algorithm 1.

    The weight is seen as a matrix (first dimension, all others). Its first left singular vector is followed by one
    power iteration in each training pass, and held otherwise; always in the weight's own precision.
    """

    left: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)
        left = torch.randn(len(matrix), dtype=matrix.dtype)
        for _ in range(20):  # so that the first weights are already about 1
            left, _ = self._iterated(matrix, left)
        self.register_buffer("left", left)

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            matrix = weight.flatten(1)
            left, right = self._iterated(matrix.detach(), self.left)
            if self.training:
                self.left.copy_(left)
            return weight / (left @ matrix @ right)

    @staticmethod
    def _iterated(matrix: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        right = F.normalize(left @ matrix, dim=0)
        return F.normalize(matrix @ right, dim=0), right


def normalize_spectrally(network: nn.Module) -> None:
    """Give every linear map, convolution and embedding of a network a largest singular value of 1."""
    for module in list(network.modules()):
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            parametrize.register_parametrization(module, "weight", SpectralNorm(module.weight))


def dropout(units: Tensor, share: float, draws: Draws) -> Tensor:
    """Units (B, D), each 0 with probability `share` and else divided by 1 - share. Srivastava et al. 2014."""
    if not share:
        return units
    return units * (draws.uniform(units.shape[1]) >= share) / (1 - share)
