"""Building blocks that families share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.gan.batches import Batch, Draws
from pipeline.gan.family import Generator


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
            features = features.to(self.linear.weight.dtype)
            scores: Tensor = self.linear(features).squeeze(1)
            return scores if self.embedding is None else scores + (self.embedding(labels) * features).sum(1)


def dropout(units: Tensor, share: float, draws: Draws) -> Tensor:
    """Units (B, D), each 0 with probability `share` and else divided by 1 - share. Srivastava et al. 2014."""
    if not share:
        return units
    return units * (draws.uniform(units.shape[1]) >= share) / (1 - share)
