"""How fast training, sampling and evaluating are here, each beside what it is measured against: `make bench`.

Both sides of a row run in one process by turns, so that what else the machine does meets both alike; a rate is the
median of its turns, a ratio the median of the turns' ratios. `--mnist ROOT` adds the FID that both loops reach after
the same number of images, and evaluates images of MNIST instead of random ones; that takes longer.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import datasets, transforms

from pipeline.gan.batches import Batches
from pipeline.gan.families import dcgan
from pipeline.gan.family import Generator, ImageSpec
from pipeline.gan.machine import fastest_precision
from pipeline.gan.model import CHUNK, Model
from pipeline.gan.training import Snapshot, Trainer
from pipeline.imageset import Row, write_imageset
from pipeline.imageset.files import sha256_file
from pipeline.metrics.classifier import Classifier, embed, train_classifier
from pipeline.metrics.extractors import INCEPTION, Pretrained, Settings
from pipeline.metrics.fidelity import frechet_distance
from pipeline.metrics.judges import EXTRACTOR, FILTER, JUDGES, Judges
from pipeline.stages import augment, evaluate

BATCH, SIZE, LATENTS = 128, 32, 100
TURNS = 7
TURN_SECONDS = 2.0  # of the slowest side, about

PRECISION = fastest_precision(torch.device("cpu"))
FORGELINE, TUTORIAL, BARE = f"Forgeline's trainer, {PRECISION}", "tutorial loop, float32", "bare calls of its step"

Side = Callable[[int], None]  # does so many batches


def rates(sides: dict[str, Side], images: int = BATCH) -> dict[str, list[float]]:
    """Images a second of each side, turn by turn; a batch has so many images."""
    slowest = 0.0
    for side in sides.values():
        side(2)  # builds kernels, fills caches
        began = time.perf_counter()
        side(2)
        slowest = max(slowest, (time.perf_counter() - began) / 2)
    batches = max(1, round(TURN_SECONDS / slowest))
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(TURNS):
        for name, side in sides.items():
            began = time.perf_counter()
            side(batches)
            found[name].append(images * batches / (time.perf_counter() - began))
    return found


def matrix_rate(dtype: torch.dtype) -> float:
    """FLOP/s of products of two matrices of 2048×2048."""
    one, other = torch.randn(2, 2048, 2048).to(dtype).unbind()

    def multiply(times: int) -> None:
        for _ in range(times):
            torch.mm(one, other)

    return 2 * 2048**3 * statistics.median(rates({"": multiply}, images=1)[""])


def new_family(width: int, channels: int) -> dcgan.Family:
    torch.manual_seed(0)
    config = dcgan.Config(width=width, class_conditional=False, latent_size=LATENTS, precision=PRECISION)
    return dcgan.Family(config, ImageSpec(channels=channels, image_size=SIZE, classes=10))


def new_trainer(images: np.ndarray, width: int, total: int = 10**9) -> Trainer:
    batches = Batches(images, np.full(len(images), -1), batch_size=BATCH, seed=0, device=torch.device("cpu"))
    family = new_family(width, images.shape[1])

    def judge(generator: object, images_seen: int) -> Snapshot:
        return Snapshot(images_seen, 0.0, 1.0, "")

    return Trainer(family, batches, images=total, snapshot_images=total, judge=judge)


def steps_of(trainer: Trainer) -> Side:
    def side(steps: int) -> None:
        for _ in range(steps):
            trainer.advance()

    return side


class Pictures(Dataset[Tensor]):
    """Arrays as torchvision's own data sets give them: through Pillow and transforms, one by one."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images
        half = [0.5] * images.shape[1]
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(half, half)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        tensor: Tensor = self.transform(Image.fromarray(self.images[index].transpose(1, 2, 0).squeeze()))
        return tensor


class Tutorial:
    """The loop that tutorials teach: DataLoader with two workers, float32, contiguous, `.item()` in every step."""

    def __init__(self, images: np.ndarray, width: int) -> None:
        family = new_family(width, images.shape[1]).to(memory_format=torch.contiguous_format)
        self.generator, self.discriminator = family.generator, family.discriminator
        self.of_generator, self.of_discriminator = (
            torch.optim.Adam(player.parameters(), lr=2e-4, betas=(0.5, 0.999))
            for player in (self.generator, self.discriminator)
        )
        self.loss, self.none = nn.BCEWithLogitsLoss(), torch.full((BATCH,), -1)
        self.batches = self._forever(Pictures(images))

    def _forever(self, pictures: Pictures) -> Iterator[Tensor]:
        loader = DataLoader(pictures, BATCH, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True)
        while True:
            yield from loader

    def __call__(self, steps: int) -> None:
        for real in itertools.islice(self.batches, steps):
            self._step(real)

    def _step(self, real: Tensor) -> tuple[float, ...]:
        ones, zeros = torch.ones(BATCH), torch.zeros(BATCH)
        self.discriminator.zero_grad()
        scores = self.discriminator(real, self.none)
        real_loss = self.loss(scores, ones)
        real_loss.backward()
        real_score = scores.mean().item()
        fakes = self.generator(torch.randn(BATCH, LATENTS), self.none)
        scores = self.discriminator(fakes.detach(), self.none)
        fake_loss = self.loss(scores, zeros)
        fake_loss.backward()
        fake_score = scores.mean().item()
        self.of_discriminator.step()
        self.generator.zero_grad()
        loss = self.loss(self.discriminator(fakes, self.none), ones)
        loss.backward()
        self.of_generator.step()
        return (real_loss + fake_loss).item(), loss.item(), real_score, fake_score


class BareCalls:
    """The forward, backward and optimizer calls of the trainer's own step, on one batch and latents that stay."""

    def __init__(self, images: Tensor, width: int) -> None:
        self.family, self.images = new_family(width, images.shape[1]), images
        self.parameters = {name: list(player.parameters()) for name, player in self.family.named_children()}
        self.optimizers = {name: self.family.optimizer(name) for name in self.parameters}
        self.latents, self.none = torch.randn(BATCH, LATENTS), torch.full((BATCH,), -1)
        self.autocast = torch.autocast("cpu", torch.bfloat16, enabled=PRECISION == "bfloat16")

    def __call__(self, steps: int) -> None:
        generator, discriminator, objective = self.family.generator, self.family.discriminator, self.family.objective
        for _ in range(steps):
            with self.autocast:
                fakes = generator(self.latents, self.none).to(self.images.dtype)
                real_scores = discriminator(self.images, self.none)
                fake_scores = discriminator(fakes.detach(), self.none)
            self._update("discriminator", objective.discriminator(real_scores, fake_scores))
            with self.autocast:
                fake_scores = discriminator(fakes, self.none)
            self._update("generator", objective.generator(real_scores.detach(), fake_scores))

    def _update(self, player: str, loss: Tensor) -> None:
        self.optimizers[player].zero_grad()
        torch.autograd.backward(loss, inputs=self.parameters[player])
        self.optimizers[player].step()


class Report:
    """The table, row by row, and what there is to say below it."""

    def __init__(self) -> None:
        self.table = Table("", "measured", "beside", "images a second", "", "ratio (of turns)", "demanded", box=None)
        self.notes: list[str] = []

    def add(self, what: str, one: str, other: str, found: dict[str, list[float]], demanded: str) -> None:
        ratios = sorted(ours / theirs for ours, theirs in zip(found[one], found[other], strict=True))
        medians = [f"{statistics.median(found[side]):,.0f}" for side in (one, other)]
        ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"
        self.table.add_row(what, one, other, *medians, ratio, demanded)


def training(report: Report, images: np.ndarray, matrix_rates: dict[str, float]) -> None:
    """The trainer beside the tutorial's loop, and beside the bare calls of its own step."""
    for width, demanded in {64: "1.6, wanted 2", 32: "1.8"}.items():
        trainer = new_trainer(images, width)
        sides: dict[str, Side] = {FORGELINE: steps_of(trainer), TUTORIAL: Tutorial(images, width)}
        found = rates(sides)
        report.add(f"dcgan, width {width}", FORGELINE, TUTORIAL, found, demanded)
        for name, precision in {FORGELINE: PRECISION, TUTORIAL: "float32"}.items():
            with FlopCounterMode(display=False) as counter:
                sides[name](1)
            of_image = counter.get_total_flops() / BATCH
            reached = of_image * statistics.median(found[name]) / matrix_rates[precision]
            report.notes.append(
                f"width {width}, {name}: {of_image / 1e6:.0f} MFLOP an image, {reached:.0%} of the matrix rate"
            )
        found = rates({FORGELINE: sides[FORGELINE], BARE: BareCalls(trainer.batches.at(0).images, width)})
        report.add(f"dcgan, width {width}", FORGELINE, BARE, found, "0.95")


def model_of(generator: Generator, channels: int) -> Model:
    return Model(
        family="dcgan",
        config=None,
        classes=("all",),
        channels=channels,
        image_size=SIZE,
        images_seen=0,
        data_fingerprint="",
        selection={},
        generator=generator.eval().requires_grad_(False),
    )


def sampling(report: Report, width: int, channels: int) -> None:
    """Sampling beside the bare generator, without and with what writes the images."""
    generator = new_family(width, channels).generator
    model = model_of(generator, channels)
    latents, none = torch.randn(CHUNK, LATENTS), torch.full((CHUNK,), -1)
    drawn, _ = model.sample(seed=0, start=0, count=CHUNK)

    @torch.no_grad()
    def bare(chunks: int) -> None:
        for _ in range(chunks):
            generator(latents, none)

    def sample(chunks: int) -> None:
        model.sample(seed=0, start=0, count=chunks * CHUNK)

    def write(images: np.ndarray) -> None:
        rows = (
            Row(split="train", label=0, image=each, path=f"{i}.png", provenance={}) for i, each in enumerate(images)
        )
        with tempfile.TemporaryDirectory() as folder:
            write_imageset(
                Path(folder), rows, classes=("all",), source={"kind": "generator"}, resize=None, synthetic=True
            )

    def sample_and_write(chunks: int) -> None:
        write(model.sample(seed=0, start=0, count=chunks * CHUNK)[0])

    def write_only(chunks: int) -> None:
        write(np.concatenate([drawn] * chunks))

    sampled, shards, alone, bare_name = "samples", "samples into shards", "shards alone", "bare generator, float32"
    found = rates({sampled: sample, shards: sample_and_write, alone: write_only, bare_name: bare}, images=CHUNK)
    report.add(f"dcgan, width {width}", sampled, bare_name, found, "0.9")
    report.add(f"dcgan, width {width}", shards, bare_name, found, "0.9 where the CPU allows")
    report.add(f"dcgan, width {width}", alone, bare_name, found, "")


def quality(console: Console, root: Path, images_seen: int) -> None:
    """The FID in features of an in-domain classifier that both loops reach after the same number of MNIST images."""
    real, labels = mnist(root, train=True)
    held_out, _ = mnist(root, train=False)
    extractor = train_classifier(real, labels, classes=10, seed=1, images_seen=100_000)
    reference = embed(extractor, held_out)
    console.print(
        f"MNIST at {SIZE}×{SIZE}, dcgan of width 64 after {images_seen:,} images; FID of {len(held_out):,} samples"
    )
    console.print("to the test images in features of an in-domain classifier;")
    floor = frechet_distance(embed(extractor, real[: len(held_out)]), reference)
    console.print(f"as many training images: {floor:.3f}")
    trainer, tutorial = new_trainer(real, 64, images_seen), Tutorial(real, 64)

    def forgeline() -> Generator:
        while not trainer.finished:
            trainer.advance()

        return trainer.average

    def loop() -> Generator:
        tutorial(trainer.total_images // BATCH)
        return tutorial.generator

    for name, run in {FORGELINE: forgeline, TUTORIAL: loop}.items():
        began = time.perf_counter()
        generator = run()
        seconds = time.perf_counter() - began
        images, _ = model_of(generator, 1).sample(seed=0, start=0, count=len(held_out))
        console.print(f"{name}: {frechet_distance(embed(extractor, images), reference):.3f} after {seconds:,.0f} s")


def blurred(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images that are as smooth as pictures, uint8 (N, 1, 32, 32), and labels."""
    random = np.random.default_rng(0)
    small = torch.from_numpy(random.integers(0, 256, (count, 1, 8, 8)).astype(np.float32))
    return F.interpolate(small, SIZE, mode="bilinear").to(torch.uint8).numpy(), random.integers(0, 10, count)


def mnist(root: Path, *, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 1, 32, 32) and labels."""
    found = datasets.MNIST(str(root), train=train, download=True)
    large = F.interpolate(found.data[:, None].float(), SIZE, mode="bilinear", antialias=True)
    return large.round().to(torch.uint8).numpy(), found.targets.numpy()


def evaluating(console: Console, images: np.ndarray, labels: np.ndarray) -> None:
    """All metrics with the in-domain extractor: 10,000 images as generated ones, 10,000 held out, all others known.

    The first time, and again, when what depends on real images only is kept. The networks are as large as those that
    `features` trains, and hardly trained: how well they judge changes no second.
    """
    threads = len(os.sched_getaffinity(0))

    def network(seed: int, blocks: int) -> Classifier:
        return train_classifier(images, labels, classes=10, seed=seed, images_seen=1000, blocks=blocks)

    about = {"classifiers": {file: {"sha256": f"of {file}"} for file in (EXTRACTOR, FILTER, *JUDGES)}}
    ensemble = tuple(network(seed, 2) for seed in range(len(JUDGES)))
    judges = Judges(extractor=network(4, 1), filter=network(5, 1), ensemble=ensemble, about=about)
    generated, held_out, known = (
        evaluate.Images(images=images[rows], labels=labels[rows], description=rows_are)
        for rows, rows_are in (
            (slice(0, 10_000), "generated"),
            (slice(10_000, 20_000), "held out"),
            (slice(20_000, None), "known"),
        )
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ["FORGELINE_CACHE"] = folder  # outside of a DVC repository nothing is kept elsewhere
        for when in ("the first time", "again"):
            began = time.perf_counter()
            with evaluate.side_by_side(threads) as pool:
                evaluate.evaluate(
                    generated,
                    known,
                    held_out,
                    pool=pool,
                    classes=[str(label) for label in range(10)],
                    judges=judges,
                    params=evaluate.Params(),
                )
            console.print(
                f"evaluating 10,000 images against 10,000, the nearest of {len(known.images):,}, {when}: "
                f"{time.perf_counter() - began:.0f} s (demanded: 60)"
            )
    torch.set_num_threads(threads)


def inception(report: Report, images: np.ndarray) -> None:
    """What Inception's FID takes nearly all its time for, features, beside the bare network's forward."""
    sys.path.append(str(Path(__file__).parents[1]))
    from inception import write_random_weights

    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "random.pth")
        write_random_weights(weights)
        extractor = Pretrained(
            Settings(extractor=INCEPTION, layer=768, weights=str(weights), weights_sha256=sha256_file(weights))
        )
    batch = torch.from_numpy(images[:64])

    @torch.inference_mode()
    def bare(batches: int) -> None:
        for _ in range(batches):
            extractor.network(batch.to(extractor.device))

    def embed_images(batches: int) -> None:
        extractor.embed(np.tile(images[:64], (batches, 1, 1, 1)))

    features, bare_name = "features of Inception", "bare extractor, layer 768"
    report.add("32×32 to 299×299", features, bare_name, rates({features: embed_images, bare_name: bare}, 64), "0.9")


def augmenting(console: Console, images: np.ndarray) -> None:
    """What `augment` takes for 100,000 images of the slower of its parts: drawing and judging them, writing them."""
    few = images[:1000]  # that a copy could be of
    network = train_classifier(few, np.zeros(len(few), np.int64), classes=1, seed=1, images_seen=1000)
    sieve = augment.Sieve(filter=network, min_confidence=0, train=few, copy_distance=0)
    params = augment.Params(images_per_class=100_000)
    sampler = model_of(new_family(32, images.shape[1]).generator, images.shape[1])
    seconds = dict[str, float]()

    def timed(part: str, rows: Callable[[augment.Selection], object]) -> Any:
        selection = augment.Selection(sampler=sampler, sieve=sieve, params=params, classes=("all",))
        began = time.perf_counter()
        done = rows(selection)
        seconds[part] = time.perf_counter() - began
        return done

    def write(rows: Iterable[Row]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            write_imageset(Path(folder), rows, classes=("all",), source={}, resize=None, synthetic=True)

    rows = timed("draw", list)
    timed("write", lambda _: write(rows))
    timed("augment", write)
    ratio = seconds["augment"] / max(seconds["draw"], seconds["write"])
    parts = ", ".join(f"{part} {of:.0f} s" for part, of in seconds.items())
    console.print(f"augmenting by 100,000 images: {parts}, {ratio:.2f} of the slower part (demanded: 1.15)")


def hardware() -> str:
    """The machine in a line."""
    info = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in info.items()}
    wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in fields.get("flags", "").split()]
    return (
        f"{fields.get('model name', 'a CPU')} ({', '.join(wide)}), {torch.get_num_threads()} threads on as many cores, "
        f"load {os.getloadavg()[0]:.1f} when it began; torch {torch.__version__}"
    )


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--mnist", metavar="ROOT", type=Path, help="where torchvision keeps MNIST")
    words.add_argument("--images", type=int, default=200_000, help="that both loops see of it")
    asked = words.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    console = Console(width=150, highlight=False)
    console.print(hardware())
    matrix_rates = {name: matrix_rate(getattr(torch, name)) for name in sorted({"float32", PRECISION})}
    for name, rate in matrix_rates.items():
        console.print(f"products of 2048×2048 matrices in {name}: {rate / 1e9:,.0f} GFLOP/s")
    console.print(f"batches of {BATCH} random images, uint8 3×{SIZE}×{SIZE}; medians of {TURNS} turns\n")
    report = Report()
    images = np.random.default_rng(0).integers(0, 256, (10_000, 3, SIZE, SIZE), np.uint8)
    training(report, images, matrix_rates)
    sampling(report, 64, 3)
    inception(report, images)
    console.print(report.table)
    for note in report.notes:
        console.print(note)
    console.print()
    evaluating(console, *(mnist(asked.mnist, train=True) if asked.mnist else blurred(60_000)))
    augmenting(console, images)
    if asked.mnist:
        console.print()
        quality(console, asked.mnist, asked.images)


if __name__ == "__main__":
    main()
