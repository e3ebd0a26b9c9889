"""Networks that turn images into features, by name: the in-domain one that the pipeline trains, and torch-fidelity's.

Those of torch-fidelity resize inside, take uint8, and get a grayscale image with its channel repeated, all of it as
torch-fidelity does with files. It reads weights as a pickle, which can run code: it gets a file of known sha256 only.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from pipeline.errors import FailedError, UserError
from pipeline.gan import machine
from pipeline.imageset.files import sha256_file
from pipeline.metrics import fidelity
from pipeline.metrics.classifier import embed
from pipeline.metrics.judges import EXTRACTOR, JUDGES, Judges
from pipeline.metrics.once import numbers, once
from pipeline.progress import ProgressLine

IN_DOMAIN, INCEPTION = "in-domain", "inception-v3-compat"
Name = Literal[
    "in-domain",
    "inception-v3-compat",
    "clip-rn50",
    "clip-rn101",
    "clip-rn50x4",
    "clip-rn50x16",
    "clip-rn50x64",
    "clip-vit-b-32",
    "clip-vit-b-16",
    "clip-vit-l-14",
    "clip-vit-l-14-336px",
    "dinov2-vit-s-14",
    "dinov2-vit-b-14",
    "dinov2-vit-l-14",
    "dinov2-vit-g-14",
]
Layer = Literal[64, 192, 768, 2048]
_BATCH = 64  # torch-fidelity's own: with it, its numbers to the last digit
_LOGITS, _CLASSES = "logits_unbiased", 1008  # of Inception, as torch-fidelity's Inception Score takes them


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Which extractor: in params.yaml the end of the section `evaluate`, in `forgeline evaluate` its options."""

    extractor: Name = "in-domain"
    layer: Layer | None = None  # of Inception v3; none: 2048, the layer of what is called FID without more words
    weights: str | None = None  # a file as torch-fidelity reads it; none: downloaded as torch-fidelity does
    weights_sha256: str | None = None  # of that file

    def __post_init__(self) -> None:
        if self.layer is not None and self.extractor != INCEPTION:
            raise ValueError(f"layer is {self.layer}; needed none with {self.extractor}, only {INCEPTION} has several")
        if self.weights is not None and self.extractor.startswith((IN_DOMAIN, "dinov2")):
            raise ValueError(f"weights is '{self.weights}'; needed none with {self.extractor}, which has its own")
        if self.weights is None and self.weights_sha256 is not None:
            raise ValueError(f"weights_sha256 is '{self.weights_sha256}'; needed none without weights")
        if self.weights is not None and not re.fullmatch("[0-9a-f]{64}", self.weights_sha256 or ""):
            raise ValueError(
                f"weights_sha256 is {self.weights_sha256 or 'missing'}; needed the hex sha256 that {self.weights} "
                "should have, since to read weights can run what is in them"
            )


class Extractor(Protocol):
    """A network that gives features.

    `label` is its name in metrics.json; `about` what a protocol says of it; `dimensions` how many features it gives;
    `logits` how many numbers more, of which the Inception Score is made; `precision` what fidelity is computed in.
    """

    label: str
    precision: DTypeLike
    dimensions: int
    logits: int
    about: Mapping[str, Any]

    def embed(self, images: np.ndarray, pool: Executor | None = None, /) -> np.ndarray:
        """Features, float32 (N, dimensions + logits), of uint8 `images` (N, C, H, W); a pool may share the work."""


class InDomain:
    """The classifier of the `features` stage, in the features before its head. It remembers those that it has given."""

    label = "in_domain"
    logits = 0
    precision: DTypeLike = np.float64

    def __init__(self, judges: Judges) -> None:
        self.classifier = judges.extractor
        self.dimensions = self.classifier.dimensions
        self.about: Mapping[str, Any] = {
            "extractor": f"in-domain residual network, pooled features, {self.dimensions} dimensions",
            "extractor_sha256": judges.about["classifiers"][EXTRACTOR]["sha256"],
            "quantization": "uint8",
        }
        self._given: dict[str, np.ndarray] = {}

    def embed(self, images: np.ndarray, _: Executor | None = None, /) -> np.ndarray:
        key = hashlib.sha256(images.tobytes()).hexdigest() + str(images.shape)
        if key not in self._given:
            self._given[key] = embed(self.classifier, images)
        return self._given[key]


class Ensemble:
    """The judges' class probabilities in the form of features, so that those of real images are kept too."""

    label = "judges"
    logits = 0
    precision: DTypeLike = np.float32

    def __init__(self, judges: Judges) -> None:
        self.judges = judges
        self.dimensions = judges.ensemble[0].config["classes"]
        self.about: Mapping[str, Any] = {
            "judges_sha256": [judges.about["classifiers"][file]["sha256"] for file in JUDGES]
        }

    def embed(self, images: np.ndarray, pool: Executor | None = None, /) -> np.ndarray:
        return self.judges.probabilities(images, pool)


class Pretrained:
    """An extractor of torch-fidelity, on a GPU where there is one."""

    precision: DTypeLike = np.float32  # as torch-fidelity's own command line

    def __init__(self, settings: Settings) -> None:
        """Raises UserError on a file that is not what it should be, FailedError where weights cannot be downloaded."""
        from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

        name = settings.extractor
        kind = FEATURE_EXTRACTORS_REGISTRY[name]
        layer = str(settings.layer or kind.get_default_feature_layer_for_metric("fid"))
        self.label = f"inception_{layer}" if name == INCEPTION else name.replace("-", "_")
        layers = [layer, _LOGITS] if self.label == "inception_2048" else [layer]  # those of lower layers cost a pass
        self.device = machine.device()
        if settings.weights is not None:
            path = Path(settings.weights)
            sha256 = checked_sha256(path, settings.weights_sha256 or "", "as weights_sha256 says")
            self.network = _read(kind, name, layers, path)
        elif name.startswith("dinov2"):
            self.network = _from_hub(kind, name, layer)
            path = _hub_file(f"{sys.modules[kind.__module__].MODEL_METADATA[name]}_pretrain.pth")
            sha256 = sha256_file(path)
        else:
            path, sha256 = _downloaded(kind, name)
            self.network = _read(kind, name, layers, path)
        self.network.to(self.device)
        probe = self._forward(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
        if not probe.isfinite().all():
            lower = ", or a lower layer" if name == INCEPTION else ""
            raise UserError(f"{path}: gives features of layer {layer} that are not finite; needed whole weights{lower}")
        self.logits = _CLASSES if _LOGITS in layers else 0
        self.dimensions = probe.shape[1] - self.logits
        side = self.network.resolution if name.startswith("clip") else kind.INPUT_IMAGE_SIZE
        self.about: Mapping[str, Any] = {
            "extractor": f"torch-fidelity's {name}, layer {layer}, {self.dimensions} dimensions",
            "extractor_sha256": sha256,
            "resize": f"to {side}×{side} inside the extractor, bilinear as TensorFlow 1 has it",
            "quantization": "uint8 before the resize, one channel repeated to three",
            "device": machine.name(),
        }

    def embed(self, images: np.ndarray, pool: Executor | None = None, /) -> np.ndarray:
        def of_batch(start: int) -> np.ndarray:
            batch = torch.from_numpy(np.array(images[start : start + _BATCH]))
            features: np.ndarray = self._forward(batch.expand(-1, 3, -1, -1)).cpu().numpy()
            return features

        parts = [np.zeros((0, self.dimensions + self.logits), np.float32)]
        line = ProgressLine(self.label, len(images), "images")
        for features in (pool.map if pool else map)(of_batch, range(0, len(images), _BATCH)):
            parts.append(features)
            line.update(sum(map(len, parts)))
        return np.concatenate(parts)

    @torch.inference_mode()
    def _forward(self, batch: Tensor) -> Tensor:
        return torch.cat([layer.float() for layer in self.network(batch.to(self.device))], dim=1)


def checked_sha256(path: Path, needed: str, why: str) -> str:
    """The sha256 of a file of weights. Raises UserError where it is not there, or does not begin with `needed`."""
    if not path.is_file():
        raise UserError(f"{path}: is not there; needed a file of weights")
    if not (found := sha256_file(path)).startswith(needed):
        raise UserError(f"{path}: has the sha256 {found}; needed {needed} {why}")
    return found


def _read(kind: Any, name: str, layers: list[str], path: Path) -> Any:
    try:
        return kind(name, layers, feature_extractor_weights_path=str(path))
    except Exception as error:  # pickle and TorchScript raise any; the hash was right, so it is a file of other things
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: cannot be read as weights of {name} ({said}); needed those of torch-fidelity"
        ) from None


def _downloaded(kind: Any, name: str) -> tuple[Path, str]:
    """The file where torch-fidelity itself looks for it, downloaded where it is not there, and its sha256.

    The name ends in the beginning of the sha256, which torch-fidelity does not check of Inception's.
    """
    module: Any = sys.modules[kind.__module__]
    if name == INCEPTION:
        url = module.URL_INCEPTION_V3
        path = _hub_file(url.rpartition("/")[2])
    else:
        url = module.MODEL_URLS[name]
        path = _hub_file(f"{name}-{module.MODEL_METADATA[name]['hash']}.pt")
    needed = path.stem.rpartition("-")[2]
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=needed, progress=False)
        except (OSError, RuntimeError) as error:
            raise _not_downloaded(name, url, error) from None
    return path, checked_sha256(path, needed, "at the beginning, as in its name; removed, it is downloaded again")


def _from_hub(kind: Any, name: str, layer: str) -> Any:
    try:
        return kind(name, [layer])
    except (OSError, RuntimeError) as error:
        raise _not_downloaded(name, "github.com/facebookresearch/dinov2", error) from None


def _not_downloaded(name: str, url: str, error: Exception) -> FailedError:
    said = " ".join(str(error).split())
    return FailedError(f"{name}: cannot be downloaded from {url} ({said}); needed the network, or weights in a file")


def _hub_file(name: str) -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", name)


def embed_once(extractor: Extractor, images: np.ndarray, pool: Executor | None = None) -> np.ndarray:
    """`extractor.embed(images)`, kept: the same pixels and weights on the same kind of machine are embedded once."""
    return once(lambda: {"features": extractor.embed(images, pool)}, dict(extractor.about), images)["features"]


Scores = dict[str, float]


def measure(
    extractor: Extractor,
    generated: np.ndarray,
    real: np.ndarray,
    *,
    seed: int,
    resamples: int = fidelity.RESAMPLES,
    pool: Executor | None = None,
) -> tuple[Scores, Scores]:
    """fidelity.with_spread of what the extractor gives, with the `inception_score` of the generated where it has one.

    Both are as `embed` gives them, float32 (N, dimensions + logits).
    """
    ours, theirs = (side[:, : extractor.dimensions] for side in (generated, real))
    scores, spread = fidelity.with_spread(
        ours, theirs, seed=seed, precision=extractor.precision, resamples=resamples, pool=pool
    )
    if extractor.logits:
        logits = generated[:, extractor.dimensions :]
        scores["inception_score"], spread["inception_score"] = fidelity.inception_score(logits, seed=seed)
    return scores, spread


def floor_once(
    extractor: Extractor,
    some: np.ndarray,
    real: np.ndarray,
    *,
    seed: int,
    resamples: int = 0,
    pool: Executor | None = None,
) -> tuple[Scores, Scores]:
    """`measure` of real images in the place of generated ones, kept."""

    def compute() -> Scores:
        scores, spread = measure(extractor, some, real, seed=seed, resamples=resamples, pool=pool)
        return scores | {f"±{name}": value for name, value in spread.items()}

    known = ["floor", seed, resamples, np.dtype(extractor.precision).name, extractor.dimensions, extractor.logits]
    found = numbers(once(compute, *known, some, real))
    return (
        {name: value for name, value in found.items() if not name.startswith("±")},
        {name.removeprefix("±"): value for name, value in found.items() if name.startswith("±")},
    )
