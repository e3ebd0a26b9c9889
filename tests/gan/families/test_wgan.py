"""What makes WGAN that family."""

from __future__ import annotations

import pytest
import torch

from pipeline.gan.batches import Batch, StepDraws
from pipeline.gan.families.wgan import Config, Family
from pipeline.gan.family import ImageSpec, Progress


def test_the_critic_is_clipped_once_it_has_stepped_and_the_generator_never() -> None:
    family = Family(Config(width=4, learning_rate=1.0), ImageSpec(channels=1, image_size=8, classes=3))
    draws = StepDraws(torch.Generator().manual_seed(0), 4)
    batch = Batch(images=draws.uniform(1, 8, 8), labels=torch.tensor([0, 1, 2, 0]), draws=draws)

    def largest(player: str) -> float:
        return max(weight.abs().max().item() for weight in family.get_submodule(player).parameters())

    for player, loss in family.losses(batch, Progress(step=4, images_seen=16, total_images=100)):
        if player == "generator":  # the code after the critic's yield has run
            assert largest("discriminator") == pytest.approx(0.01)
        optimizer = family.optimizer(player)
        assert type(optimizer) is torch.optim.RMSprop
        assert optimizer.defaults["momentum"] == 0
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        assert largest(player) > 0.05


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"beta1": 0.5}, "beta1 is 0.5; needed 0, since momentum"),
        ({"gradient_penalty": 10.0}, "gradient_penalty is 10.0; needed 0 with clipped weights"),
        ({"clip": 0.0}, "clip is 0.0; needed at least"),
    ],
)
def test_what_makes_no_sense_with_clipped_weights_is_refused(settings: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        Config(**settings)  # type: ignore[arg-type]
