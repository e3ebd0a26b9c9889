"""Extractors: settings and files that cannot be right are refused in a sentence; features are kept and never wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline import paths
from pipeline.errors import UserError
from pipeline.imageset.files import sha256_file
from pipeline.metrics.classifier import Classifier
from pipeline.metrics.extractors import INCEPTION, Ensemble, InDomain, Pretrained, Settings, embed_once
from pipeline.metrics.fidelity import inception_score
from pipeline.metrics.judges import EXTRACTOR, JUDGES, Judges
from pipeline.params import Document


def read(**settings: Any) -> Settings:
    return Document({"evaluate": settings}).section("evaluate", Settings)


def inception(path: Path, **settings: Any) -> Settings:
    return read(extractor=INCEPTION, weights=str(path), weights_sha256=sha256_file(path), **settings)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"extractor": "inception"}, r"evaluate\.extractor is 'inception'; did you mean 'inception-v3-compat'\?"),
        ({"extractor": INCEPTION, "layer": 512}, r"evaluate\.layer is 512; (did you mean|needed one of)"),
        ({"layer": 768}, r"evaluate\.layer is 768; needed none with in-domain"),
        ({"extractor": "clip-rn50", "layer": 64}, r"evaluate\.layer is 64; needed none with clip-rn50"),
        ({"extractor": "dinov2-vit-s-14", "weights": "w"}, r"evaluate\.weights is 'w'; needed none with dinov2-vit-s"),
        ({"extractor": INCEPTION, "weights": "w"}, r"evaluate\.weights_sha256 is missing; needed the hex sha256"),
        ({"extractor": INCEPTION, "weights": "w", "weights_sha256": "ab"}, r"evaluate\.weights_sha256 is ab; needed"),
        ({"extractor": INCEPTION, "weights_sha256": "ab"}, r"evaluate\.weights_sha256 is 'ab'; needed none without"),
    ],
)
def test_settings_that_do_not_go_together_are_named(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read(**settings)


def test_a_file_with_another_hash_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.zeros(3)}, path)
    settings = inception(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"weights\.pth: has the sha256 \w{64}; needed \w{64} as weights_sha256 says$"):
        Pretrained(settings)
    path.unlink()
    with pytest.raises(UserError, match=r"weights\.pth: is not there; needed a file of weights$"):
        Pretrained(settings)


@pytest.mark.parametrize("content", [b"", b"no weights", None])
def test_a_file_of_other_things_is_told(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.zeros(3)}, path)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.pth: cannot be read as weights of inception-v3-compat \([^\n]*\);"):
        Pretrained(inception(path))


def test_a_damaged_download_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half of it")
    with pytest.raises(UserError, match=r"6726825d\.pth: has the sha256 \w{64}; needed 6726825d at the beginning, as"):
        Pretrained(read(extractor=INCEPTION))


def test_weights_that_are_not_finite_are_refused_before_any_image(inception_weights: Path, tmp_path: Path) -> None:
    state = torch.load(inception_weights, weights_only=True)
    state["Mixed_7a.branch3x3_1.conv.weight"] = torch.full((192, 768, 1, 1), torch.nan)
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(UserError, match=r"broken\.pth: gives features of layer 2048 that are not finite; needed whole"):
        Pretrained(inception(tmp_path / "broken.pth"))


class Given(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def test_inception_at_its_last_layer_gives_the_logits_of_its_score_too(inception_weights: Path, tmp_path: Path) -> None:
    """As torch-fidelity's own Inception Score of the same images, with whole weights."""
    from torch_fidelity import calculate_metrics

    state = torch.load(inception_weights, weights_only=True)
    torch.manual_seed(0)
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            state[name] = torch.ones_like(tensor) if name.endswith("running_var") else torch.randn_like(tensor) * 0.02
    state["fc.weight"] = torch.randn_like(state["fc.weight"]) / 5  # random ones tell no classes apart
    torch.save(state, tmp_path / "whole.pth")
    extractor = Pretrained(inception(tmp_path / "whole.pth"))
    random = np.random.default_rng(0)
    images = (random.integers(0, 200, (20, 3, 1, 1)) + random.integers(0, 50, (20, 3, 8, 8))).astype(np.uint8)
    found = extractor.embed(images)
    assert (extractor.dimensions, extractor.logits, found.shape) == (2048, 1008, (20, 3056))
    needed = calculate_metrics(
        input1=Given(torch.from_numpy(images)),
        isc=True,
        feature_extractor=INCEPTION,
        feature_extractor_weights_path=str(tmp_path / "whole.pth"),
        rng_seed=3,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    score, _ = inception_score(found[:, 2048:], seed=3)
    assert score == pytest.approx(needed["inception_score_mean"], rel=1e-6)
    assert score > 1.01


def test_a_grayscale_image_is_the_same_as_rgb(inception_weights: Path) -> None:
    extractor = Pretrained(inception(inception_weights, layer=64))
    gray = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), dtype=np.uint8)
    found = extractor.embed(gray)
    assert (found.shape, found.dtype, extractor.dimensions) == ((3, 64), np.float32, 64)
    np.testing.assert_array_equal(extractor.embed(np.repeat(gray, 3, axis=1)), found)
    assert extractor.label == "inception_64"
    assert extractor.about["extractor"] == "torch-fidelity's inception-v3-compat, layer 64, 64 dimensions"
    assert extractor.about["extractor_sha256"] == sha256_file(inception_weights)
    assert extractor.about["resize"].startswith("to 299×299 inside the extractor")


IMAGES = np.random.default_rng(1).integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)


def in_domain(sha256: str = "ab") -> InDomain:
    torch.manual_seed(0)
    one = Classifier(channels=1, image_size=8, classes=3, width=8).eval()
    about = {"classifiers": {EXTRACTOR: {"sha256": sha256}}}
    return InDomain(Judges(extractor=one, filter=one, ensemble=(one,), about=about))


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what is kept."""
    monkeypatch.setattr(paths, "dvc_cache", lambda: tmp_path / "cache")
    return tmp_path / "forgeline-kept"


def test_features_are_kept_by_pixels_and_weights(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor, other = in_domain(), IMAGES.copy()
    first = embed_once(extractor, IMAGES)
    np.testing.assert_array_equal(first, extractor.embed(IMAGES))
    monkeypatch.setattr(extractor, "embed", None)
    np.testing.assert_array_equal(embed_once(extractor, IMAGES), first)
    assert len(list(kept.iterdir())) == 1
    other[3, 0, 2, 2] ^= 1
    np.testing.assert_array_equal(embed_once(in_domain(), other), in_domain().embed(other))
    embed_once(in_domain("cd"), IMAGES)
    assert len(list(kept.iterdir())) == 3


def test_what_the_judges_see_is_kept_by_their_weights(kept: Path) -> None:
    one = in_domain().classifier

    def ensemble(sha256: str) -> Ensemble:
        about = {"classifiers": {file: {"sha256": sha256} for file in JUDGES}}
        return Ensemble(Judges(extractor=one, filter=one, ensemble=(one, one), about=about))

    first = embed_once(ensemble("ab"), IMAGES)
    np.testing.assert_array_equal(first, ensemble("ab").judges.probabilities(IMAGES))
    embed_once(ensemble("ab"), IMAGES)
    assert len(list(kept.iterdir())) == 1
    embed_once(ensemble("cd"), IMAGES)
    assert len(list(kept.iterdir())) == 2
