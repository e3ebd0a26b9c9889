"""Batches are functions of seed and step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.gan.batches import Batch, Batches, Mapped, Resident
from pipeline.gan.pixels import to_float, to_uint8

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 1, 4, 4), np.uint8)
LABELS = np.arange(40)


def _batches(seed: int = 0) -> Batches:
    return Batches(IMAGES, LABELS, batch_size=8, seed=seed, device=torch.device("cpu"))


def _numbers(batch: Batch) -> list[float]:
    return [*batch.labels.tolist(), *batch.draws.normal(2).flatten().tolist(), *batch.draws.uniform().tolist()]


def test_a_step_has_the_same_batch_and_draws_whatever_came_before() -> None:
    walked = _batches()
    for step in range(5):
        _numbers(walked.at(step))
    assert _numbers(walked.at(5)) == _numbers(_batches().at(5))


def test_steps_and_seeds_differ() -> None:
    drawn = {tuple(_numbers(_batches(seed).at(step))) for seed in range(3) for step in range(3)}
    assert len(drawn) == 9


def test_images_keep_their_labels_and_come_as_float() -> None:
    batch = _batches().at(3)
    assert batch.images.dtype == torch.float32
    assert torch.equal(to_uint8(batch.images), torch.from_numpy(IMAGES[batch.labels.numpy()]))


def test_every_image_is_drawn() -> None:
    seen = torch.cat([_batches().at(step).labels for step in range(100)])
    assert set(seen.tolist()) == set(range(40))


def test_images_on_the_device_and_mapped_ones_give_the_same_bytes(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    rows, cpu = np.array([3, 39, 3, 0]), torch.device("cpu")
    assert torch.equal(Mapped(mapped, cpu)[rows], Resident(mapped, cpu)[rows])
    from_map = Batches(mapped, LABELS, batch_size=8, seed=0, device=cpu)
    assert torch.equal(from_map.at(2).images, _batches().at(2).images)


def test_every_pixel_value_comes_back_and_what_is_outside_is_clamped() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    floats = to_float(values)
    assert floats.min() == -1
    assert floats.max() == 1
    assert torch.equal(to_uint8(floats), values)
    assert to_uint8(torch.tensor([-1.5, 1.5, 0.0])).tolist() == [0, 255, 128]


def test_a_balanced_batch_has_the_classes_by_turns_each_image_as_often_as_the_others_of_its_class() -> None:
    labels = np.array([0] * 4 + [1] * 16)
    batches = Batches(IMAGES[:20], labels, batch_size=8, seed=0, device=torch.device("cpu"), balanced=True)
    drawn = [batches.at(step) for step in range(500)]
    assert all(batch.labels.tolist() == [0, 1] * 4 for batch in drawn)
    names = {image.tobytes(): row for row, image in enumerate(IMAGES[:20])}
    images = torch.cat([to_uint8(batch.images) for batch in drawn]).numpy()
    counts = np.bincount([names[image.tobytes()] for image in images], minlength=20)
    assert np.allclose(counts[:4], 500, rtol=0.15)
    assert np.allclose(counts[4:], 125, rtol=0.3)


@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_classes_are_drawn_by_a_power_of_their_sizes_and_within_them_uniformly(balance: float) -> None:
    labels = np.array([0] * 36 + [1] * 4)
    batches = Batches(IMAGES, labels, batch_size=8, seed=0, device=torch.device("cpu"), class_balance=balance)
    drawn = [batches.at(step) for step in range(2500)]
    names = {image.tobytes(): row for row, image in enumerate(IMAGES)}
    images = torch.cat([to_uint8(batch.images) for batch in drawn]).numpy()
    counts = np.bincount([names[image.tobytes()] for image in images], minlength=40)
    share = 36 ** (1 - balance) / (36 ** (1 - balance) + 4 ** (1 - balance))  # 3/4 and 1/2
    assert np.allclose(counts[:36], 20_000 * share / 36, rtol=0.2)
    assert np.allclose(counts[36:], 20_000 * (1 - share) / 4, rtol=0.1)
    assert torch.equal(batches.at(7).images, drawn[7].images)
