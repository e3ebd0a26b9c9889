"""What makes CycleGAN that family."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.gan.batches import Batch, Batches
from pipeline.gan.families.cyclegan import Config, Family, Generator, PatchGAN, Translator, exchange
from pipeline.gan.family import ImageSpec, Progress


def _spec(size: int, channels: int = 3, classes: int = 2) -> ImageSpec:
    return ImageSpec(channels=channels, image_size=size, classes=classes)


SMALL = {"width": 4, "blocks": 1, "discriminator_layers": 1, "precision": "float32"}


def _batch(count: int = 8) -> Batch:
    """Dark images of domain 0 and bright ones of domain 1, by turns."""
    random = np.random.default_rng(0)
    labels = np.arange(20) % 2
    images = (random.integers(0, 128, (20, 3, 16, 16)) + 128 * labels[:, None, None, None]).astype(np.uint8)
    return Batches(images, labels, batch_size=count, seed=0, device=torch.device("cpu"), balanced=True).at(0)


class _Shift(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by))

    def forward(self, images: Tensor) -> Tensor:
        return images + self.by


def _charts(into_0: float, into_1: float, **settings: object) -> tuple[dict[str, float], float]:
    """The charts of a step in which the translators add these numbers, and the generator's loss."""
    torch.manual_seed(0)
    family = Family(Config(**SMALL | settings), _spec(16))  # type: ignore[arg-type]
    family.generator.into = nn.ModuleList([_Shift(into_0), _Shift(into_1)])
    progress = Progress(step=0, images_seen=0, total_images=100)
    losses = dict(family.losses(_batch(), progress))
    return {name: value.item() for name, value in progress.charts.items()}, losses["generator"].item()


def test_translators_that_change_nothing_have_no_cycle_and_no_identity_loss() -> None:
    charts, loss = _charts(0.0, 0.0)
    assert (charts["cycle_loss"], charts["identity_loss"]) == (0, 0)
    assert loss == _charts(0.0, 0.0, cycle_weight=99.0)[1]  # what is left is adversarial


def test_translators_that_undo_each_other_have_no_cycle_loss_but_an_identity_loss() -> None:
    charts, loss = _charts(-0.25, 0.25)
    assert charts["cycle_loss"] == pytest.approx(0, abs=1e-6)
    assert charts["identity_loss"] == pytest.approx(0.25)
    without = _charts(-0.25, 0.25, identity_weight=0.0)[1]
    assert loss - without == pytest.approx(10 * 0.5 * 0.25, rel=1e-5)


def test_what_does_not_come_back_is_the_mean_over_both_directions() -> None:
    charts, loss = _charts(0.25, 0.5)
    assert charts["cycle_loss"] == pytest.approx(0.75)
    assert charts["identity_loss"] == pytest.approx((0.25 + 0.5) / 2)
    assert loss - _charts(0.25, 0.5, cycle_weight=0.0)[1] == pytest.approx(10 * (0.75 + 0.5 * 0.375), rel=1e-5)


def test_each_discriminator_sees_real_and_fake_images_of_its_own_domain_only() -> None:
    family = Family(Config(**SMALL), _spec(16))  # type: ignore[arg-type]
    family.generator.into = nn.ModuleList([_Shift(-10.0), _Shift(10.0)])  # below -8 and above 8: fakes
    seen: tuple[list[Tensor], list[Tensor]] = ([], [])
    for label, patches in enumerate(family.discriminator.of):
        patches.register_forward_pre_hook(lambda _, inputs, label=label: seen[label].append(inputs[0]))  # type: ignore[misc]
    list(family.losses(_batch(), Progress(step=0, images_seen=0, total_images=100)))
    for label, (for_generator, real, shown) in enumerate(seen):
        fakes = [for_generator, shown]
        assert all((images < -8).all() if label == 0 else (images > 8).all() for images in fakes)
        assert (real <= 0.01).all() if label == 0 else (real >= 0).all()


def test_asked_how_the_game_stands_each_discriminator_is_shown_images_of_the_other_domain_as_its_own() -> None:
    family, batch = Family(Config(**SMALL), _spec(16)), _batch()  # type: ignore[arg-type]
    family.generator.into = nn.ModuleList([_Shift(-10.0), _Shift(10.0)])
    fakes = family.fakes(batch)
    torch.testing.assert_close(fakes[0::2], batch.images[1::2] - 10)
    torch.testing.assert_close(fakes[1::2], batch.images[0::2] + 10)
    patches = torch.stack([family.discriminator.of[place % 2](fakes[place : place + 1]) for place in range(8)])
    torch.testing.assert_close(family.score(fakes, batch), patches.mean(dim=(1, 2, 3, 4)))


def test_samples_are_translations_into_the_domain_of_the_label() -> None:
    generator = Generator(Config(**SMALL), _spec(16))  # type: ignore[arg-type]
    generator.into = nn.ModuleList([_Shift(-10.0), _Shift(10.0)])
    batch = _batch()
    labels = torch.tensor([1, 1, 1, 0, 0, 0, 1, 0])
    images = generator.sample_like(Batch(images=batch.images, labels=labels, draws=batch.draws))
    torch.testing.assert_close(images - batch.images, (20.0 * labels - 10)[:, None, None, None].expand_as(images))


@pytest.mark.parametrize(("layers", "side"), [(1, 16), (2, 34), (3, 70)])
def test_a_score_sees_a_patch_of_that_many_pixels(layers: int, side: int) -> None:
    patches = PatchGAN(Config(width=2, discriminator_layers=layers), _spec(128))
    for name, module in patches[0].named_children():
        if isinstance(module, nn.InstanceNorm2d):  # whose statistics are of the whole image
            setattr(patches[0], name, nn.Identity())
    image = torch.randn(1, 3, 128, 128, requires_grad=True)
    scores = patches(image)
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    assert image.grad is not None
    rows, columns = image.grad.abs().sum((0, 1)).nonzero().unbind(1)
    assert [(x.min() - x.max() - 1).item() for x in (rows, columns)] == [-side, -side]
    assert len(rows) == side**2


@pytest.mark.parametrize(("size", "blocks", "millions"), [(128, 6, 7.84), (256, 9, 11.38)])
def test_the_networks_are_those_of_the_paper(size: int, blocks: int, millions: float) -> None:
    with torch.device("meta"):
        translator, patches = Translator(Config(), _spec(size)), PatchGAN(Config(), _spec(size))
    convolutions = [layer for layer in translator.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    widths = [layer.out_channels for layer in convolutions]
    assert widths == [64, 128, 256, *[256] * (2 * blocks), 128, 64, 3]
    assert sum(p.numel() for p in translator.parameters()) / 1e6 == pytest.approx(millions, abs=0.02)
    assert [layer.out_channels for layer in patches.modules() if isinstance(layer, nn.Conv2d)] == [64, 128, 256, 512, 1]


@pytest.mark.parametrize(("layers", "size"), [(1, 8), (1, 20), (2, 12), (3, 24), (3, 64)])
def test_the_smallest_and_odd_sizes_pass_both_networks(layers: int, size: int) -> None:
    family = Family(Config(width=2, blocks=1, discriminator_layers=layers), _spec(size, channels=1))
    images = family.generator.into[0](torch.rand(2, 1, size, size) * 2 - 1)
    assert images.shape == (2, 1, size, size)
    assert images.abs().max() <= 1
    assert family.discriminator(images).shape[:2] == (2, 1)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (_spec(64, classes=3), "images have 3 classes; cyclegan needed 2, the domains"),
        (_spec(20), "images are 20×20; .* needed a multiple of 4 of at least 24, see ingest.image_size"),
        (_spec(30), "images are 30×30; .* needed a multiple of 4"),
    ],
)
def test_images_that_it_cannot_translate_are_refused(spec: ImageSpec, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        Family(Config(width=2), spec)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("cycle_weight", -1.0), ("blocks", 0), ("discriminator_layers", 0), ("pool_size", 0), ("identity_weight", -0.1)],
)
def test_a_setting_out_of_range_is_named(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{setting} is {value}; needed "):
        Config(**{setting: value})  # type: ignore[arg-type]


def test_the_pool_does_what_one_image_after_another_would() -> None:
    size, random = 5, np.random.default_rng(0)
    pool, held = torch.zeros(2, size, 1), torch.zeros((), dtype=torch.int64)
    plain: tuple[list[float], list[float]] = ([], [])
    earlier_ones = 0
    for step in range(40):
        fakes = torch.arange(6.0).reshape(3, 2, 1) + 6 * step + 1
        draws = torch.from_numpy(random.random((3, 2, 2), np.float32))
        shown = exchange(pool, held, fakes, draws)
        for image in range(3):
            for domain in range(2):
                fake, (coin, place) = fakes[image, domain].item(), draws[image, domain].tolist()
                expected, kept = fake, plain[domain]
                if len(kept) < size:
                    kept.append(fake)
                elif coin < 0.5:
                    expected, kept[int(place * size)] = kept[int(place * size)], fake
                    earlier_ones += 1
                assert shown[image, domain].item() == expected
        assert held == min(3 * (step + 1), size)
    assert pool[..., 0].tolist() == [list(kept) for kept in plain]
    assert earlier_ones == pytest.approx((3 * 40 - size) * 2 / 2, rel=0.2)


def test_the_pool_is_part_of_the_state() -> None:
    family = Family(Config(**SMALL, pool_size=3), _spec(16))  # type: ignore[arg-type]
    list(family.losses(_batch(4), Progress(step=0, images_seen=0, total_images=100)))
    again = Family(Config(**SMALL, pool_size=3), _spec(16))  # type: ignore[arg-type]
    again.load_state_dict(family.state_dict())
    assert again.held == 2
    assert torch.equal(again.pool, family.pool)
    assert family.pool.abs().sum() > 0
