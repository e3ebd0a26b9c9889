"""Labels in both networks, either way."""

from __future__ import annotations

import pytest
import torch

from pipeline.gan.families.conditional import Config, Family
from pipeline.gan.family import ImageSpec

SPEC = ImageSpec(channels=3, image_size=6, classes=4)


@pytest.mark.parametrize("conditioning", ["concatenation", "projection"])
def test_both_networks_heed_the_label(conditioning: str) -> None:
    family = Family(Config(conditioning=conditioning), SPEC).eval()  # type: ignore[arg-type]
    latent = torch.randn(1, 64).expand(4, -1)
    images = family.generator(latent, torch.arange(4))
    assert images.shape == (4, 3, 6, 6)
    assert len({tuple(image.flatten().tolist()) for image in images}) == 4
    assert family.discriminator(images[:1].expand(4, -1, -1, -1), torch.arange(4)).unique().numel() == 4


def test_concatenation_gives_the_first_layer_the_label_and_projection_the_last() -> None:
    concatenated = Family(Config(conditioning="concatenation", embedding_size=5), SPEC).discriminator
    assert concatenated.layers[0].in_features == 3 * 6 * 6 + 5
    assert concatenated.score.embedding is None
    projected = Family(Config(conditioning="projection", embedding_size=5), SPEC).discriminator
    assert projected.layers[0].in_features == 3 * 6 * 6
    assert projected.score.embedding is not None


def test_without_labels_it_would_be_another_family() -> None:
    with pytest.raises(ValueError, match=r"^class_conditional is False; needed True"):
        Config(class_conditional=False)
