"""A small residual network that judges, filters, gives features, and shows what a set is worth."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.errors import FailedError
from pipeline.gan.machine import device
from pipeline.gan.pixels import to_float

_BATCH = 128
_WEIGHT_DECAY = 1e-2
_SMOOTHING = 0.05
NARROWEST = 8  # channels: oneDNN's AVX2 kernel for the gradient of strided 1×1 convolutions writes past fewer
_PREDICT_BATCH = 64  # small enough that its maps stay in the cache, and that their memory is used again


class _Block(nn.Module):
    """Two 3×3 convolutions around a shortcut (arXiv 1512.03385, figure 5 left)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(before, after, stride)
        self.second = _convolution(after, after, 1)
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else _convolution(before, after, stride, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.first(x), inplace=True)
        return functional.relu(self.second(inner) + self.shortcut(x), inplace=True)


def _convolution(before: int, after: int, stride: int, kernel: int = 3) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after))


class Classifier(nn.Module):
    """A residual network as deep as the images are large.

    `width` channels at full size, twice as many after each halving; `blocks` residual blocks per size. Images above
    32 pixels are strided to at most 32 by the first convolution. The head sees a 4×4 grid: on the smallest images
    where a stroke is says more than that it is there.

    With `per_channel` each channel is a picture of its own (Stacked MNIST): the network sees one at a time, and K^C
    classes are all words of one of K letters per channel, the first channel's counting most.
    """

    def __init__(
        self,
        *,
        channels: int,
        image_size: int,
        classes: int,
        width: int = 16,
        blocks: int = 1,
        per_channel: bool = False,
    ) -> None:
        super().__init__()
        self.config = {
            "channels": channels,
            "image_size": image_size,
            "classes": classes,
            "width": width,
            "blocks": blocks,
            "per_channel": per_channel,
        }
        self.pictures = channels if per_channel else 1  # in one image
        stride = max(1, image_size // 32)
        sizes = 1 + max(1, math.ceil(math.log2(image_size / stride / 8)))
        layers: list[nn.Module] = [_convolution(channels // self.pictures, width, stride), nn.ReLU(inplace=True)]
        before = width
        for size in range(sizes):
            for block in range(blocks):
                after = width << size
                layers.append(_Block(before, after, 2 if size and not block else 1))
                before = after
        self.body = nn.Sequential(*layers)
        self.dimensions = before * self.pictures
        self.head = nn.Linear(before * 16, round(classes ** (1 / self.pictures)))

    def features(self, x: Tensor) -> Tensor:
        """Globally pooled features (N, dimensions) of images (N, C, H, W) in [-1, 1]."""
        pooled: Tensor = self.body(self._apart(x)).mean(dim=(2, 3))
        return pooled.reshape(len(x), self.dimensions)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W) in [-1, 1]."""
        logits: Tensor = self.head(functional.adaptive_avg_pool2d(self.body(self._apart(x)), 4).flatten(start_dim=1))
        if self.pictures > 1:
            return _words(logits.log_softmax(dim=1).view(len(x), self.pictures, -1))
        return logits

    def _apart(self, x: Tensor) -> Tensor:
        return x.flatten(end_dim=1).unsqueeze(1) if self.pictures > 1 else x


def _words(letters: Tensor) -> Tensor:
    """Log probabilities (N, K^C) of the words, of those of their letters (N, C, K), each independent of the others."""
    words, *rest = letters.unbind(dim=1)
    for more in rest:
        words = (words.unsqueeze(2) + more.unsqueeze(1)).flatten(start_dim=1)
    return words


def recipe(*, width: int, flip: bool) -> str:
    """What `train_classifier` makes with these settings and one block for each size, for a protocol."""
    return (
        f"a residual network (arXiv 1512.03385) with {width} channels at full size, twice as many after each halving "
        f"and one block for each size, from random weights; AdamW, weight decay {_WEIGHT_DECAY:g}, batches of "
        f"{_BATCH}, labels smoothed by {_SMOOTHING:g}, warm-up and half a cosine of the learning rate, images turned, "
        f"zoomed and shifted a little{', and mirrored at even odds' if flip else ', never mirrored'}"
    )


def train_classifier(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    seed: int,
    images_seen: int,
    weights: np.ndarray | None = None,
    class_weights: np.ndarray | None = None,
    width: int = 16,
    blocks: int = 1,
    per_channel: bool = False,
    flip: bool = False,
    learning_rate: float = 1e-2,
) -> Classifier:
    """Train on uint8 `images` (N, C, H, W) and int64 `labels` (N,) until `images_seen` have been shown.

    `weights` (N,), not negative, say how often each image is shown relative to the others; none: all equally often.
    `class_weights` (K,) say how much the loss of an image counts, by its class.
    Images are always turned, zoomed and shifted a little, and mirrored with `flip`. AdamW, warm-up and cosine, float32;
    at one thread count, or on a GPU, the same arguments give the same bits. Raises ValueError on what cannot be
    trained on.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise ValueError(f"images are {len(images)} with {len(labels)} labels; needed at least 1, each with its label")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels are {labels.min()} to {labels.max()}; needed 0 to {classes - 1}")
    random = np.random.Generator(np.random.Philox(seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = Classifier(
            channels=images.shape[1],
            image_size=images.shape[2],
            classes=classes,
            width=width,
            blocks=blocks,
            per_channel=per_channel,
        )
    where = device()
    classifier.to(memory_format=torch.channels_last).to(where)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=learning_rate, weight_decay=_WEIGHT_DECAY, fused=True)
    steps = math.ceil(images_seen / _BATCH)
    order = _order(np.ones(len(images)) if weights is None else weights, steps * _BATCH, random)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * _one_cycle((step + 1) / steps)
        rows = order[step * _BATCH : (step + 1) * _BATCH]
        batch = _augment(to_float(torch.from_numpy(images[rows]).to(where)), random, flip)
        batch = batch.contiguous(memory_format=torch.channels_last)
        loss = _loss(classifier(batch), torch.from_numpy(labels[rows]).to(where), class_weights)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return classifier.eval()


def _loss(logits: Tensor, labels: Tensor, class_weights: np.ndarray | None) -> Tensor:
    """Cross entropy with smoothed labels: the mean over the images, each counting as much as its class weighs."""
    if class_weights is None:
        return functional.cross_entropy(logits, labels, label_smoothing=_SMOOTHING)
    weights = torch.from_numpy(class_weights).to(logits)[labels]
    losses = functional.cross_entropy(logits, labels, label_smoothing=_SMOOTHING, reduction="none")
    return (weights * losses).sum() / weights.sum()


def _order(weights: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """`count` row indices in shuffled epochs; systematic resampling, so equal weights show each row once an epoch."""
    total = len(weights)
    edges = np.cumsum(weights, dtype=np.float64) / weights.mean(dtype=np.float64)
    epochs = []
    for _ in range(math.ceil(count / total)):
        points = np.arange(total) + random.random()
        epochs.append(random.permutation(np.minimum(np.searchsorted(edges, points, side="right"), total - 1)))
    return np.concatenate(epochs)[:count]


def _augment(images: Tensor, random: np.random.Generator, flip: bool) -> Tensor:
    """Each image (N, C, H, W) turned, zoomed, stretched and shifted a little, its border repeated.

    By up to 0.15 radians, 10 % and 5 %, and a sixteenth of the size; mirrored at even odds when `flip`.
    """
    draws = random.uniform(-1, 1, (5, len(images))).astype(np.float32)
    turn, zoom, stretch, right, down = torch.from_numpy(draws).to(images.device)
    across = torch.exp(0.1 * zoom)
    along = across * torch.exp(0.05 * stretch)
    if flip:
        mirrored = random.random(len(images), dtype=np.float32) < 0.5
        across = across * torch.from_numpy(np.where(mirrored, np.float32(-1), np.float32(1))).to(images.device)
    cosine, sine = torch.cos(0.15 * turn), torch.sin(0.15 * turn)
    top = torch.stack([across * cosine, -along * sine, right / 8], dim=1)  # an image spans 2: an eighth of 1
    bottom = torch.stack([across * sine, along * cosine, down / 8], dim=1)
    grid = functional.affine_grid(torch.stack([top, bottom], dim=1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _one_cycle(progress: float) -> float:
    """Linear warm-up over the first 15 %, then a half cosine to 0."""
    if progress < 0.15:
        return progress / 0.15
    return 0.5 + 0.5 * math.cos(math.pi * (progress - 0.15) / 0.85)


@torch.inference_mode()
def predict(classifier: Classifier, images: np.ndarray) -> np.ndarray:
    """Class probabilities, float32 (N, classes), of uint8 `images` (N, C, H, W)."""
    folded = _folded(classifier)
    parts = [functional.softmax(folded(batch), dim=1).cpu().numpy() for batch in _batches(folded, images)]
    return np.concatenate(parts) if parts else np.zeros((0, classifier.config["classes"]), np.float32)


@torch.inference_mode()
def embed(classifier: Classifier, images: np.ndarray) -> np.ndarray:
    """Globally pooled features, float32 (N, dimensions), of uint8 `images` (N, C, H, W)."""
    folded = _folded(classifier)
    parts = [folded.features(batch).cpu().numpy() for batch in _batches(folded, images)]
    return np.concatenate(parts) if parts else np.zeros((0, classifier.dimensions), np.float32)


def _folded(classifier: Classifier) -> Classifier:
    """A copy whose convolutions do what the batch normalization after them does: the same function, in less time."""
    folded = copy.deepcopy(classifier).eval()
    for module in list(folded.modules()):
        for name, child in list(module.named_children()):
            match list(child.children()):
                case [nn.Conv2d() as convolution, nn.BatchNorm2d() as norm]:
                    setattr(module, name, fuse_conv_bn_eval(convolution, norm))
    return folded.to(memory_format=torch.channels_last)


def _batches(classifier: Classifier, images: np.ndarray) -> Iterator[Tensor]:
    where = classifier.head.weight.device
    for start in range(0, len(images), _PREDICT_BATCH):
        batch = to_float(torch.from_numpy(np.array(images[start : start + _PREDICT_BATCH])).to(where))
        yield batch.contiguous(memory_format=torch.channels_last)


def save(classifier: Classifier, path: Path) -> str:
    """Write the weights with the configuration in the header, as safetensors; returns the file's sha256."""
    tensors = {name: tensor.contiguous() for name, tensor in classifier.state_dict().items()}
    data = to_bytes(tensors, metadata={"classifier": json.dumps(classifier.config, sort_keys=True)})
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def load(path: Path) -> Classifier:
    """Read what `save` wrote, ready to predict. Raises FailedError when the file is not one."""
    try:
        with safe_open(path, framework="pt") as file:
            classifier = Classifier(**json.loads((file.metadata() or {})["classifier"]))
            classifier.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise FailedError(f"{path}: is not a whole classifier file: {' '.join(str(error).split())}") from None
    return classifier.to(memory_format=torch.channels_last).to(device()).eval()
