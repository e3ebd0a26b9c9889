"""What makes progressive growing that family."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pipeline.gan.batches import Batch, StepDraws
from pipeline.gan.families.progressive import Config, Family
from pipeline.gan.family import ImageSpec, Progress

SPEC = ImageSpec(channels=1, image_size=32, classes=3)


def _family(**settings: float) -> Family:
    torch.manual_seed(0)
    return Family(Config(width=4, latent_size=8, **settings), SPEC)  # type: ignore[arg-type]


def _batch(count: int = 4) -> Batch:
    draws = StepDraws(torch.Generator().manual_seed(1), count)
    return Batch(images=torch.rand(count, 1, 32, 32) * 2 - 1, labels=torch.arange(count) % 3, draws=draws)


def _losses(family: Family, images_seen: int, batch: Batch | None = None) -> Iterator[tuple[str, Tensor]]:
    """Of a step after so many of 100 images."""
    progress = Progress(step=0, images_seen=images_seen, total_images=100)
    family.prepare(progress)
    return family.losses(batch or _batch(), progress)


def _sampled(family: Family, level: float) -> Tensor:
    family.generator.growth.level = level
    return family.generator.sample_like(_batch())


def _scores(family: Family, level: float, images: Tensor) -> Tensor:
    """Of images of the size that the level asks for, mixed with half their size as they fade."""
    family.generator.growth.level = level
    scores: Tensor = family.discriminator(images, torch.zeros(len(images), dtype=torch.long))
    return scores


@pytest.mark.parametrize("level", [0, 1, 2])
def test_images_change_without_a_jump_where_a_level_begins_to_fade_in_and_where_it_ends(level: int) -> None:
    family = _family()
    stays = _sampled(family, level)
    assert stays.shape == (4, 1, 32, 32)
    torch.testing.assert_close(_sampled(family, level + 1e-7), stays, rtol=0, atol=1e-5)
    torch.testing.assert_close(_sampled(family, level + 1 - 1e-7), _sampled(family, level + 1), rtol=0, atol=1e-5)
    assert not torch.allclose(_sampled(family, level + 1), stays, atol=1e-2)
    halfway = (_sampled(family, level + 1) + stays) / 2
    torch.testing.assert_close(_sampled(family, level + 0.5), halfway, rtol=0, atol=1e-5)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_so_do_scores(level: int) -> None:
    family = _family()
    small = torch.rand(4, 1, 4 << level, 4 << level)
    doubled = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    before, after = _scores(family, level, small), _scores(family, level + 1, doubled)
    torch.testing.assert_close(_scores(family, level + 1e-7, doubled), before, rtol=0, atol=1e-5)
    torch.testing.assert_close(_scores(family, level + 1 - 1e-7, doubled), after, rtol=0, atol=1e-5)
    assert not torch.allclose(before, after, atol=1e-3)


def test_at_each_level_so_much_of_the_networks_learns_and_real_images_are_as_coarse_as_fakes() -> None:
    family = _family(growth=0.6)
    seen: list[int] = []

    def watched(images: Tensor, like: Batch) -> Tensor:
        seen.append(images.shape[-1])
        scores: Tensor = family.discriminator(images, like.labels)
        return scores

    family.score = watched  # type: ignore[method-assign]
    sizes, learning = [], []
    for images_seen in (0, 15, 25, 35, 45, 55, 99):  # of 100: 60 for 3 stays and 3 fades
        family.zero_grad()
        for _, loss in _losses(family, images_seen):
            loss.backward()  # type: ignore[no-untyped-call]
        sizes.append(set(seen))
        seen.clear()
        learning.append(sum(block[0].weight.grad is not None for block in family.generator.blocks))  # type: ignore[index,union-attr]
    assert sizes == [{4}, {8}, {8}, {16}, {16}, {32}, {32}]
    assert learning == [1, 2, 2, 3, 3, 4, 4]


def test_real_images_fade_as_fakes_do() -> None:
    family, shown = _family(growth=0.6), []

    def watched(images: Tensor, like: Batch) -> Tensor:
        shown.append(images)
        scores: Tensor = family.discriminator(images, like.labels)
        return scores

    family.score = watched  # type: ignore[method-assign]
    batch = _batch()
    next(_losses(family, 55, batch))  # halfway from 16×16 to 32×32
    coarse = batch.images.reshape(4, 1, 16, 2, 16, 2).mean((3, 5)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(shown[0], (batch.images + coarse) / 2)


def test_a_copy_grows_with_the_generator_and_what_is_saved_says_how_far() -> None:
    family = _family()
    average = copy.deepcopy(family.generator)
    next(_losses(family, 30))
    assert average.growth.level == family.discriminator.growth.level == family.generator.growth.level > 0  # type: ignore[union-attr]
    loaded = _family().generator
    loaded.load_state_dict(average.state_dict())
    assert loaded.growth.level == average.growth.level
    assert torch.equal(loaded.sample_like(_batch()), average.sample_like(_batch()))


@pytest.mark.parametrize("size", [8, 256])
def test_a_grown_generator_makes_images_of_any_power_of_two(size: int) -> None:
    family = Family(Config(width=1, max_width=4, latent_size=4), ImageSpec(channels=3, image_size=size, classes=2))
    family.generator.growth.level = family.levels - 1
    images = family.generator(torch.randn(4, 4), torch.tensor([0, 1, 0, 1]))
    assert images.shape == (4, 3, size, size)
    assert family.discriminator(images, torch.tensor([0, 1, 0, 1])).shape == (4,)


def test_latents_lie_on_the_sphere() -> None:
    latents = _family().generator.latents(_batch().draws)
    torch.testing.assert_close(latents.square().mean(1), torch.ones(4))


def test_growth_takes_less_than_the_run() -> None:
    with pytest.raises(ValueError, match=r"^growth is 1\.0; needed below 1"):
        Config(growth=1.0)
