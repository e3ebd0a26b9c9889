"""A trained generator as a folder: model.json and weights.safetensors. No pickle is ever loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.gan.batches import Batch, Draws
from pipeline.gan.family import Generator, ImageSpec, load_family
from pipeline.gan.machine import device
from pipeline.gan.pixels import to_float, to_uint8

CHUNK = 128  # images that are computed together, always: the same image in another batch size is other bytes
DESCRIPTION, WEIGHTS = "model.json", "weights.safetensors"


class ChunkDraws:
    """The random numbers of one chunk of samples: numpy's Philox, which is equal on every CPU."""

    def __init__(self, seed: int, chunk: int, device: torch.device) -> None:
        self.random = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, chunk]))
        self.device = device

    def normal(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.random.standard_normal((CHUNK, *shape), dtype=np.float32)).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.random.random((CHUNK, *shape), dtype=np.float32)).to(self.device)


class InterpolatedDraws:
    """Random numbers on the way between those of two images, in as many steps; the same way again for every row.

    Normal numbers go along an arc, cos(πt/2) a + sin(πt/2) b, on which they stay standard normal; uniform ones
    straight.
    """

    def __init__(self, seed: int, rows: int, steps: int, device: torch.device) -> None:
        self.random = np.random.Generator(np.random.Philox(key=seed))
        self.way = np.linspace(0, 1, steps, dtype=np.float32)
        self.rows, self.device = rows, device

    def normal(self, *shape: int) -> Tensor:
        ends = self.random.standard_normal((2, *shape), dtype=np.float32)
        return self._between(ends, np.cos(self.way * np.pi / 2), np.sin(self.way * np.pi / 2))

    def uniform(self, *shape: int) -> Tensor:
        return self._between(self.random.random((2, *shape), dtype=np.float32), 1 - self.way, self.way)

    def _between(self, ends: np.ndarray, first: np.ndarray, second: np.ndarray) -> Tensor:
        way = np.multiply.outer(first, ends[0]) + np.multiply.outer(second, ends[1])
        return torch.from_numpy(np.concatenate([way] * self.rows)).to(self.device)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sources:
    """What a generator translates: images uint8 (N, C, H, W) of domains 0 and 1, int64 (N,).

    Sample i, of domain i mod 2, is a translation of image i // 2 of the other domain, and after the last comes the
    first again. `len()` is how many samples there are before that.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return 2 * min(map(len, self._rows_into))

    @cached_property
    def _rows_into(self) -> list[np.ndarray]:
        """The rows of the images that are translated into domain 0, and into domain 1."""
        return [np.flatnonzero(self.labels == 1 - domain) for domain in range(2)]

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """The row that each of the samples `numbers` is a translation of, int64."""
        into = [self._rows_into[number % 2] for number in numbers]
        return np.array([row[number // 2 % len(row)] for row, number in zip(into, numbers, strict=True)], np.int64)

    def floats(self, numbers: np.ndarray) -> Tensor:
        """The images that the samples `numbers` are translations of, float in [-1, 1]."""
        return to_float(torch.from_numpy(self.images[self.rows(numbers)]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A generator with all that is needed to sample from it, and where it came from."""

    family: str
    config: Any  # the family's Config
    classes: tuple[str, ...]
    channels: int
    image_size: int
    images_seen: int
    data_fingerprint: str  # of the ImageSet it was trained on
    parent: str | None = None  # hex sha256 of the players that training began from, which knew other images perhaps
    selection: Mapping[str, Any]  # by which number this snapshot was chosen
    generator: Generator
    given: Sources | None = None  # to a generator that translates; no part of the folder

    @property
    def translates(self) -> bool:
        """Whether samples are made of other images, and not of noise: `with_sources` gives these."""
        return self.generator.translates

    @property
    def conditional(self) -> bool:
        """Whether samples have the label that was asked for."""
        return self.generator.conditional

    @cached_property
    def files(self) -> dict[str, bytes]:
        """The folder's contents by file name."""
        described = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("generator", "given")
        }
        described["config"] = dataclasses.asdict(self.config)
        tensors = {name: tensor.contiguous().cpu() for name, tensor in self.generator.state_dict().items()}
        text = json.dumps(described, indent=2, sort_keys=True, ensure_ascii=False)
        return {DESCRIPTION: f"{text}\n".encode(), WEIGHTS: safetensors.torch.save(tensors)}

    @cached_property
    def sha256(self) -> str:
        """Of the weights file followed by the description."""
        return hashlib.sha256(self.files[WEIGHTS] + self.files[DESCRIPTION]).hexdigest()

    def save(self, root: Path) -> None:
        """Write the folder. Not atomic: the caller gives a folder that nobody reads yet."""
        root.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (root / name).write_bytes(content)

    @classmethod
    def load(cls, root: Path) -> Model:
        """Raises UserError when the folder is not a whole model."""
        try:
            files = {name: (root / name).read_bytes() for name in (DESCRIPTION, WEIGHTS)}
        except OSError as error:
            raise UserError(f"{root}: {error.strerror}; needed a trained model: {DESCRIPTION}, {WEIGHTS}") from None
        try:
            described = json.loads(files[DESCRIPTION])
            family = load_family(described["family"])
            settings = {name: tuple(v) if isinstance(v, list) else v for name, v in described["config"].items()}
            described["config"] = config = family.Config(**settings)
            described["classes"] = classes = tuple(described["classes"])
            spec = ImageSpec(channels=described["channels"], image_size=described["image_size"], classes=len(classes))
            generator = family.Generator(config, spec)
            generator.load_state_dict(safetensors.torch.load(files[WEIGHTS]))
            model = cls(**described, generator=generator.to(device()).eval().requires_grad_(False))
        except Exception as error:
            raise UserError(f"{root}: is not a whole model: {' '.join(str(error).split())}") from None
        return model

    def with_sources(self, images: np.ndarray, labels: np.ndarray) -> Model:
        """The model with images uint8 (N, C, H, W) of domains int64 (N,) to translate; itself if it draws from noise.

        Raises UserError when the images are of another kind.
        """
        if not self.translates:
            return self
        shape, needed = images.shape[1:], self._shape
        if shape != needed or set(labels.tolist()) != {0, 1}:
            raise UserError(
                f"images to translate are {shape} with labels {sorted(set(labels.tolist()))}; the {self.family} model "
                f"needed {needed} with labels [0, 1]"
            )
        return dataclasses.replace(self, given=Sources(images=images, labels=labels))

    @property
    def sources(self) -> Sources:
        """Raises UserError when none were given."""
        if self.given is None:
            raise UserError(f"the {self.family} model translates; needed images to translate")
        return self.given

    def distinct(self, count: int) -> int:
        """How many of the first `count` samples there are before their sources repeat: noise never does."""
        return min(count, len(self.sources)) if self.translates else count

    def round_trip(self, pairs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sources, their translations, and these translated back, each uint8 (pairs, 2, C, H, W).

        They are the first samples, by the domain they are translated into; there are len(sources) / 2 pairs.
        """
        count = 2 * pairs
        images, labels = self.sample(seed=0, start=0, count=count)
        back, _ = self.with_sources(images, labels).sample(seed=0, start=0, count=count)
        sources = self.sources.images[self.sources.rows(np.arange(count))]
        there, translated, again = (part.reshape(pairs, 2, *part.shape[1:]) for part in (sources, images, back))
        return there, translated, again[:, ::-1]  # a translation into a domain comes back as an image of the other

    def sample(self, *, seed: int, start: int, count: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Samples start … start+count-1 of the series that `seed` (0 or more) begins.

        Returns uint8 (count, C, H, W) and the asked-for labels int64 (count,): sample i has label i mod K, or -1 in an
        unconditional model. `spread` is the standard deviation of the latents. Sample i is fixed by (model, seed, i);
        a translation by (model, sources, i), and raises UserError for another spread than 1.
        """
        if self.translates and spread != 1:
            raise UserError(f"spread is {spread}; the {self.family} model translates and has no latents, needed 1")
        numbers = np.arange(start, start + count)
        labels = numbers % len(self.classes) if self.conditional else np.full(count, -1)
        images = np.empty((count, *self._shape), np.uint8)
        for chunk in range(start // CHUNK, -(-(start + count) // CHUNK)):
            chosen = numbers // CHUNK == chunk
            images[chosen] = self._chunk(seed, chunk, spread)[numbers[chosen] % CHUNK]
        return images, labels

    def interpolate(self, *, seed: int, steps: int) -> np.ndarray:
        """The way from one sample to another, uint8 (K · steps, C, H, W): for each class, or once without classes.

        Of a model that translates, from the first source of each domain to the second, mixed pixel by pixel.
        """
        rows = len(self.classes) if self.conditional else 1
        labels = torch.arange(rows, device=self._device).repeat_interleave(steps)
        draws = InterpolatedDraws(seed, rows, steps, self._device)
        sources = None
        if self.translates:
            first, second = self.sources.floats(np.arange(2 * rows)).reshape(2, rows, 1, *self._shape)
            way = torch.linspace(0, 1, steps).reshape(-1, 1, 1, 1)
            sources = torch.lerp(first, second, way).flatten(0, 1).to(self._device)
        return self._images(labels, draws, 1.0, sources)

    def _chunk(self, seed: int, chunk: int, spread: float) -> np.ndarray:
        numbers = np.arange(chunk * CHUNK, (chunk + 1) * CHUNK)
        labels = torch.from_numpy(numbers % len(self.classes)).to(self._device)
        sources = None
        if self.translates:
            sources = self.sources.floats(numbers).to(self._device)
        return self._images(labels, ChunkDraws(seed, chunk, self._device), spread, sources)

    @torch.no_grad()
    def _images(self, labels: Tensor, draws: Draws, spread: float, sources: Tensor | None = None) -> np.ndarray:
        if not self.conditional:
            labels = torch.full_like(labels, -1)
        none = torch.zeros((), device=self._device).expand(len(labels), *self._shape)
        batch = Batch(images=none if sources is None else sources, labels=labels, draws=draws)
        return to_uint8(self.generator.sample_like(batch, spread)).cpu().numpy()

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.channels, self.image_size, self.image_size

    @property
    def _device(self) -> torch.device:
        return next(self.generator.parameters()).device
