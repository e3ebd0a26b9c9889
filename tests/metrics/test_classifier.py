"""The classifier: it learns, it is the same each time, it survives its file, and it refuses what it cannot learn."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from pipeline.errors import FailedError
from pipeline.gan.pixels import to_float
from pipeline.metrics.classifier import (
    Classifier,
    _loss,
    _order,
    embed,
    load,
    predict,
    recipe,
    save,
    train_classifier,
)


def noise(count: int, size: int = 8, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, channels, size, size), dtype=np.uint8)


def sides(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images, bright on the left (0) or on the right (1)."""
    labels = np.arange(count) % 2
    images = noise(count, seed=seed) // 2
    for image, label in zip(images, labels, strict=True):
        image[..., 4 * label : 4 * label + 4] += 128
    return images, labels


def accuracy(classifier: Classifier, images: np.ndarray, labels: np.ndarray) -> float:
    return float((predict(classifier, images).argmax(axis=1) == labels).mean())


def test_learns_handwritten_digits() -> None:
    digits = load_digits()
    images = (digits.images[:, None] * 255 / 16).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:1200], order[1200:]
    classifier = train_classifier(images[train], digits.target[train], classes=10, seed=0, images_seen=6_000)
    assert accuracy(classifier, images[test], digits.target[test]) > 0.94


def test_the_same_arguments_give_the_same_bits_and_another_seed_does_not() -> None:
    images, labels = sides(200, 1)
    first, again, other = (
        train_classifier(images, labels, classes=2, seed=seed, images_seen=600, width=8).state_dict()
        for seed in (5, 5, 6)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_leaves_the_global_random_numbers_alone() -> None:
    state = torch.get_rng_state()
    train_classifier(*sides(50, 1), classes=2, seed=0, images_seen=128, width=8)
    assert torch.equal(state, torch.get_rng_state())


def test_the_weighted_loss_of_two_images_is_that_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])  # even odds, and three to one
    first, second = math.log(2), -(0.025 * math.log(3 / 4) + 0.975 * math.log(1 / 4))  # 0.05 of the label is even
    found = _loss(logits, torch.tensor([0, 1]), np.array([0.1, 0.5])).item()
    assert found == pytest.approx((0.1 * first + 0.5 * second) / 0.6, rel=1e-6)


def test_a_protocol_says_what_was_trained() -> None:
    said = recipe(width=24, flip=True)
    assert "with 24 channels" in said
    assert "batches of 128" in said
    assert "mirrored at even odds" in said
    assert "never mirrored" in recipe(width=24, flip=False)


def test_weights_of_the_inverse_size_make_the_loss_the_mean_over_classes() -> None:
    random = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(12, 3, generator=random), torch.tensor([0] * 8 + [1] * 3 + [2])
    by_class = [_loss(logits[labels == label], labels[labels == label], None) for label in range(3)]
    weighted = _loss(logits, labels, 1 / np.bincount(labels.numpy()))
    assert weighted.item() == pytest.approx(torch.stack(by_class).mean().item(), rel=1e-6)
    assert _loss(logits, labels, np.ones(3)).item() == pytest.approx(_loss(logits, labels, None).item(), rel=1e-6)


def test_images_of_weight_zero_are_never_shown() -> None:
    images, labels = sides(400, 1)
    wrong = np.concatenate([labels, 1 - labels])
    weights = np.concatenate([np.ones(400), np.zeros(400)])
    classifier = train_classifier(
        np.concatenate([images, images]), wrong, classes=2, seed=0, images_seen=3000, weights=weights, width=8
    )
    assert accuracy(classifier, *sides(200, 2)) == 1


def test_mirrored_images_cannot_be_told_apart_once_flips_are_on() -> None:
    images, labels = sides(400, 1)
    plain, flipped = (
        train_classifier(images, labels, classes=2, seed=0, images_seen=3000, width=8, flip=flip)
        for flip in (False, True)
    )
    assert accuracy(plain, *sides(200, 2)) == 1
    assert accuracy(flipped, *sides(200, 2)) < 0.8


@given(
    weights=st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=50).filter(
        lambda found: sum(found) > 1e-3
    ),
    epochs=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
def test_each_image_is_shown_as_often_as_its_weight_says(weights: list[float], epochs: int, seed: int) -> None:
    total = len(weights)
    shown = _order(np.array(weights), epochs * total, np.random.Generator(np.random.Philox(seed)))
    counts = np.bincount(shown, minlength=total)
    wanted = epochs * np.array(weights) / np.mean(weights)
    assert counts.sum() == epochs * total
    assert np.abs(counts - wanted).max() <= epochs + 1e-6  # systematic: off by less than one in each epoch


@given(total=st.integers(1, 3000), seed=st.integers(0, 2**32))
def test_without_weights_an_epoch_shows_each_image_once(total: int, seed: int) -> None:
    shown = _order(np.ones(total), total, np.random.Generator(np.random.Philox(seed)))
    assert sorted(shown) == list(range(total))


@pytest.mark.parametrize("size", [8, 16, 28, 32, 48, 64, 100])
@pytest.mark.parametrize("channels", [1, 3])
def test_fits_images_of_any_size(size: int, channels: int) -> None:
    classifier = Classifier(channels=channels, image_size=size, classes=7, width=8).eval()
    images = noise(3, size, channels)
    probabilities = predict(classifier, images)
    assert probabilities.shape == (3, 7)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(3))
    assert embed(classifier, images).shape == (3, classifier.dimensions)


def test_channel_by_channel_a_word_is_as_likely_as_its_letters_together() -> None:
    words = Classifier(channels=3, image_size=16, classes=64, width=8, per_channel=True).eval()
    letters = Classifier(channels=1, image_size=16, classes=4, width=8).eval()
    letters.load_state_dict(words.state_dict())
    images = noise(5, 16, 3)
    first, second, third = (predict(letters, images[:, [channel]]) for channel in range(3))
    product = np.einsum("na,nb,nc->nabc", first, second, third).reshape(5, 64)
    np.testing.assert_allclose(predict(words, images), product, rtol=1e-4)
    features = [embed(letters, images[:, [channel]]) for channel in range(3)]
    np.testing.assert_allclose(embed(words, images), np.concatenate(features, axis=1), rtol=1e-4, atol=1e-6)
    assert words.dimensions == 3 * letters.dimensions


def test_no_images_give_no_rows() -> None:
    classifier = Classifier(channels=1, image_size=8, classes=7).eval()
    assert predict(classifier, noise(0)).shape == (0, 7)
    assert embed(classifier, noise(0)).shape == (0, classifier.dimensions)


def test_predicts_as_the_network_that_was_trained() -> None:
    """Though its batch normalization is folded into the convolutions, which the network itself keeps apart."""
    images, labels = sides(100, 1)
    classifier = train_classifier(images, labels, classes=2, seed=0, images_seen=1000, width=8, blocks=2)
    names = list(classifier.state_dict())
    with torch.inference_mode():
        batch = to_float(torch.from_numpy(images))
        needed, features = classifier(batch).softmax(dim=1), classifier.features(batch)
    np.testing.assert_allclose(predict(classifier, images), needed, atol=1e-5)
    np.testing.assert_allclose(embed(classifier, images), features, atol=1e-4)
    assert list(classifier.state_dict()) == names


def test_comes_back_from_its_file_with_every_bit(tmp_path: Path) -> None:
    images, labels = sides(200, 1)
    classifier = train_classifier(images, labels, classes=2, seed=0, images_seen=300, width=8, blocks=2)
    digest = save(classifier, tmp_path / "a.safetensors")
    loaded = load(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(predict(loaded, images), predict(classifier, images))
    np.testing.assert_array_equal(embed(loaded, images), embed(classifier, images))
    assert save(loaded, tmp_path / "b.safetensors") == digest


@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: data[:4], lambda _: b"not weights"])
def test_a_damaged_file_is_named_in_one_sentence(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "classifier.safetensors"
    save(Classifier(channels=1, image_size=8, classes=2, width=8), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FailedError, match=r"classifier\.safetensors: is not a whole classifier file") as raised:
        load(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (np.array([0, 1, 2]), "labels are 0 to 2; needed 0 to 1"),
        (np.array([-1, 1, 0]), "labels are -1 to 1; needed 0 to 1"),
        (np.array([0, 1]), "images are 3 with 2 labels; needed"),
    ],
)
def test_refuses_labels_that_are_not_classes(labels: np.ndarray, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        train_classifier(noise(3), labels, classes=2, seed=0, images_seen=128)


def test_refuses_an_empty_set() -> None:
    with pytest.raises(ValueError, match="images are 0"):
        train_classifier(noise(0), np.zeros(0, np.int64), classes=2, seed=0, images_seen=128)
