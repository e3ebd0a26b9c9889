"""A model's folder, and samples that are fixed by (model, seed, i); of every family in families/test_families.py."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.gan.family import Generator, ImageSpec, load_family
from pipeline.gan.model import CHUNK, InterpolatedDraws, Model


def make_model(name: str = "conditional", **config: Any) -> Model:
    torch.manual_seed(3)
    module = load_family(name)
    settings = module.Config(width=16, **config)
    generator = module.Generator(settings, ImageSpec(channels=3, image_size=8, classes=3)).eval().requires_grad_(False)
    return Model(
        family=name,
        config=settings,
        classes=("ant", "bee", "ćma"),
        channels=3,
        image_size=8,
        images_seen=640,
        data_fingerprint="0" * 64,
        selection={"metric": "made up", "score": 0.1},
        generator=generator,
    )


def test_a_model_comes_back_with_the_same_bytes_and_samples(tmp_path: Path) -> None:
    model = make_model()
    model.save(tmp_path / "model")
    again = Model.load(tmp_path / "model")
    assert (again.sha256, again.config, again.classes) == (model.sha256, model.config, model.classes)
    assert (again.images_seen, again.selection) == (model.images_seen, model.selection)
    for one, other in zip(
        model.sample(seed=1, start=0, count=10), again.sample(seed=1, start=0, count=10), strict=True
    ):
        assert np.array_equal(one, other)


def test_sample_i_is_the_same_in_whatever_range_it_is_asked_for() -> None:
    model = make_model()
    images, labels = model.sample(seed=1, start=0, count=3 * CHUNK)
    assert images.dtype == np.uint8
    assert images.shape == (3 * CHUNK, 3, 8, 8)
    assert labels.tolist() == [i % 3 for i in range(3 * CHUNK)]
    for start, count in [(0, 1), (CHUNK - 1, 2), (CHUNK, CHUNK), (100, 250), (3 * CHUNK - 1, 1), (7, 0)]:
        part, part_labels = model.sample(seed=1, start=start, count=count)
        assert np.array_equal(part, images[start : start + count])
        assert np.array_equal(part_labels, labels[start : start + count])


def test_three_processes_make_what_one_does() -> None:
    model = make_model()
    whole, _ = model.sample(seed=5, start=0, count=600)
    with multiprocessing.get_context("spawn").Pool(3) as workers:
        parts = [
            workers.apply_async(model.sample, kwds={"seed": 5, "start": start, "count": 200}) for start in (0, 200, 400)
        ]
        assert b"".join(part.get()[0].tobytes() for part in parts) == whole.tobytes()


def test_seed_spread_and_label_all_count() -> None:
    model = make_model()

    def images(seed: int = 1, spread: float = 1.0) -> bytes:
        return model.sample(seed=seed, start=0, count=3, spread=spread)[0].tobytes()

    assert len({images(), images(seed=2), images(seed=2**40), images(spread=1.2)}) == 4
    at_the_mean = model.sample(seed=1, start=0, count=9, spread=1e-9)[0]
    assert np.array_equal(at_the_mean[:3], at_the_mean[3:6])  # without noise the label alone is left
    assert not np.array_equal(at_the_mean[0], at_the_mean[1])


def test_an_interpolation_goes_from_one_image_to_another_once_for_each_class() -> None:
    model = make_model()
    strip = model.interpolate(seed=1, steps=5)
    assert strip.shape == (3 * 5, 3, 8, 8)
    assert (
        strip.tobytes() == model.interpolate(seed=1, steps=5).tobytes() != model.interpolate(seed=2, steps=5).tobytes()
    )
    classes = strip.reshape(3, 5, -1).astype(int)
    assert all((classes[:, step] != classes[:, step + 1]).any() for step in range(4))
    assert (classes[0] != classes[1]).any()


def test_interpolated_numbers_begin_and_end_as_drawn_and_stay_normal_on_the_way() -> None:
    draws = InterpolatedDraws(3, rows=2, steps=7, device=torch.device("cpu"))
    numbers = draws.normal(4000)
    assert numbers.shape == (2 * 7, 4000)
    assert torch.equal(numbers[:7], numbers[7:])
    torch.testing.assert_close(numbers.std(1), torch.ones(14), rtol=0, atol=0.05)
    assert abs(torch.corrcoef(numbers[[0, 6]])[0, 1]) < 0.05
    torch.testing.assert_close(numbers[3], (numbers[0] + numbers[6]) / 2**0.5)
    uniform = draws.uniform(4000)
    torch.testing.assert_close(uniform[3], (uniform[0] + uniform[6]) / 2)


def test_an_unconditional_model_knows_no_labels(tmp_path: Path) -> None:
    model = make_model("dcgan", class_conditional=False)
    model.save(tmp_path)
    assert not Model.load(tmp_path).conditional
    assert Model.load(tmp_path).sample(seed=0, start=0, count=4)[1].tolist() == [-1] * 4
    assert make_model("dcgan").conditional


def test_the_weights_carry_no_pickle_and_the_description_can_be_read(tmp_path: Path) -> None:
    make_model().save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model.json", "weights.safetensors"}
    described = json.loads((tmp_path / "model.json").read_text())
    assert described["family"] == "conditional"
    assert described["config"]["width"] == 16
    assert described["classes"] == ["ant", "bee", "ćma"]


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _truncate_weights(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def _describe_another_width(folder: Path) -> None:
    path = folder / "model.json"
    path.write_text(path.read_text().replace('"width": 16', '"width": 17'))


def _describe_another_family(folder: Path) -> None:
    path = folder / "model.json"
    path.write_text(path.read_text().replace('"family": "conditional"', '"family": "conditionl"'))


def _not_json(folder: Path) -> None:
    (folder / "model.json").write_text("{")


@pytest.mark.parametrize(
    "damage", [_empty, _truncate_weights, _describe_another_width, _describe_another_family, _not_json]
)
def test_what_is_no_whole_model_is_refused_in_one_line_that_names_it(tmp_path: Path, damage: Any) -> None:
    make_model().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError) as refused:
        Model.load(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path}: ")
    assert "\n" not in str(refused.value)


class _Shift(torch.nn.Module):
    """Brighter by so many levels of 255."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.by = torch.nn.Parameter(torch.tensor(levels / 127.5))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + self.by


DOMAINS = np.array([0, 0, 1, 0, 1, 0, 1])  # rows 0, 1, 3, 5 are of domain 0; 2, 4, 6 of domain 1


def make_translator() -> Model:
    """It turns an image of row r of the sources, all pixels r, into r + 100 in domain 0, r + 200 in domain 1."""
    model = dataclasses.replace(make_model(), family="cyclegan", classes=("ant", "bee"), generator=_translating())
    rows = np.arange(7, dtype=np.uint8)
    return model.with_sources(np.broadcast_to(rows[:, None, None, None], (7, 3, 8, 8)), DOMAINS)


def _translating() -> Generator:
    module = load_family("cyclegan")
    config = module.Config(width=2, blocks=1, discriminator_layers=1)
    generator = module.Generator(config, ImageSpec(channels=3, image_size=8, classes=2))
    generator.into = torch.nn.ModuleList([_Shift(100), _Shift(200)])
    return generator.requires_grad_(False)


def test_a_translation_is_of_the_image_of_its_number_in_the_other_domain_and_then_of_the_first_again() -> None:
    images, labels = make_translator().sample(seed=1, start=0, count=9)
    assert labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    assert images[:, 0, 0, 0].tolist() == [102, 200, 104, 201, 106, 203, 102, 205, 104]
    assert (images == images[:, :1, :1, :1]).all()
    assert make_translator().distinct(3) == 3
    assert make_translator().distinct(100) == 6  # the seventh repeats the first
    assert make_model().distinct(100) == 100


def test_a_translation_is_fixed_by_its_number() -> None:
    model = make_translator()
    images, labels = model.sample(seed=1, start=0, count=2 * CHUNK)
    for start, count in [(0, 1), (CHUNK - 1, 2), (7, 0), (5, 200)]:
        some, of_these = model.sample(seed=2, start=start, count=count)
        assert np.array_equal(some, images[start : start + count])
        assert np.array_equal(of_these, labels[start : start + count])


def test_a_round_trip_ends_at_its_source() -> None:
    model = make_translator()
    model.generator.into[0].by.data.fill_(-200 / 127.5)  # type: ignore[union-attr, operator]
    rows = np.array([230, 0, 250, 1, 240, 3], np.uint8)
    sources = np.broadcast_to(rows[:, None, None, None], (6, 3, 8, 8))
    there, translated, back = model.with_sources(sources, np.array([1, 0] * 3)).round_trip(3)
    assert there[:, :, 0, 0, 0].tolist() == [[230, 0], [250, 1], [240, 3]]
    assert translated[:, :, 0, 0, 0].tolist() == [[30, 200], [50, 201], [40, 203]]
    assert np.array_equal(back, there)


def test_the_way_between_translations_is_through_mixed_sources() -> None:
    strip = make_translator().interpolate(seed=0, steps=3)
    assert strip[:4, 0, 0, 0].tolist() == [102, 103, 104, 200]  # of rows 2, to 4; of row 0
    assert strip[5, 0, 0, 0] == 201  # to 1
    assert (strip == strip[:, :1, :1, :1]).all()


def test_a_model_of_noise_takes_no_sources_and_a_translating_one_needs_them(tmp_path: Path) -> None:
    model = make_model()
    assert model.with_sources(np.zeros((2, 3, 8, 8), np.uint8), np.array([0, 1])) is model
    bare = dataclasses.replace(make_translator(), given=None)
    with pytest.raises(UserError, match=r"^the cyclegan model translates; needed images to translate$"):
        bare.sample(seed=0, start=0, count=1)
    with pytest.raises(UserError, match=r"^spread is 1\.2; the cyclegan model translates and has no latents, needed 1"):
        make_translator().sample(seed=0, start=0, count=1, spread=1.2)


@pytest.mark.parametrize(
    ("shape", "labels", "found"),
    [
        ((2, 3, 4, 4), [0, 1], r"\(3, 4, 4\) with labels \[0, 1\]"),
        ((2, 3, 8, 8), [1, 1], r"\(3, 8, 8\) with labels \[1\]"),
    ],
)
def test_sources_of_another_kind_are_refused(shape: tuple[int, ...], labels: list[int], found: str) -> None:
    with pytest.raises(UserError, match=rf"^images to translate are {found}; the cyclegan model needed \(3, 8, 8\)"):
        make_translator().with_sources(np.zeros(shape, np.uint8), np.array(labels))
