"""train: a family learns the training split; the snapshot that is nearest to the validation split goes on."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipeline import paths
from pipeline.errors import FailedError, ForgelineError, UserError
from pipeline.gan import distributed, machine, standing, training
from pipeline.gan.batches import Batches
from pipeline.gan.checkpoint import Checkpoints, locked
from pipeline.gan.distributed import from_first
from pipeline.gan.family import Family, Generator, ImageSpec, load_family
from pipeline.gan.model import Model
from pipeline.gan.training import Snapshot, Trainer, describe_diversity
from pipeline.imageset import ImageSet
from pipeline.imageset.files import atomic_folder, sha256_file, write_atomically
from pipeline.metrics.classifier import Classifier, embed
from pipeline.metrics.fidelity import by_domain, frechet_distance
from pipeline.metrics.judges import Judges
from pipeline.metrics.modes import least_diverse, mean_distances
from pipeline.params import THREADS, Document, within
from pipeline.progress import ProgressLine, duration
from pipeline.report.grids import interpolation_strip, sample_grid
from pipeline.report.tables import to_csv

_SCORED = 1000  # samples of a snapshot
_SEED = 2**32  # of grids and scored samples: training's own seeds are below
_INPUTS = "inputs.json"
_KEEP_UNFINISHED_SECONDS = 7 * 24 * 3600


@dataclass(frozen=True, kw_only=True)
class Params:
    """`train` of params.yaml."""

    family: str
    images: int  # how many the discriminator sees, with repetition
    snapshot_images: int  # how often the generator is scored and a grid drawn
    batch_size: int = 64  # of all processes together
    class_balance: float = 0.0  # 0: images are seen equally often, 1: classes, 0.5: by the root of their size
    seed: int = 0
    processes: int = 1  # that share each batch: on this machine, or as many as torchrun starts on several
    threads: int | None = None  # of each process; none: the fastest where the run begins, its bits depend on it
    warm_start: str | None = None  # the branch, tag or commit whose model is trained on: the stage `parent`

    def __post_init__(self) -> None:
        alone = load_family(self.family).Config.trains_alone
        within(self, images=(1, inf), snapshot_images=(1, inf), batch_size=(2, inf), processes=(1, inf))
        within(self, seed=(0, _SEED - 1), threads=THREADS, class_balance=(0, 1))
        if self.processes > 1 and alone:
            raise ValueError(f"processes is {self.processes}; {self.family} needed 1, since {alone}")
        if self.batch_size % self.processes:
            raise ValueError(f"batch_size is {self.batch_size}; needed a multiple of the {self.processes} processes")


class StoppedError(ForgelineError):
    """Training was told to stop, and its state is safe."""

    def __init__(self, signal_number: int, images_seen: int) -> None:
        super().__init__(
            f"training stopped by {signal.Signals(signal_number).name} at {images_seen:,} images; "
            "the same command goes on from there"
        )
        self.exit_status = 128 + signal_number


def read_params(document: Document) -> tuple[Params, Any]:
    """`train`, and the Config of its family."""
    params = document.section("train", Params)
    return params, document.section(f"families.{params.family}", load_family(params.family).Config)


def run(document: Document) -> None:
    """Train to the end, from where a run with the same inputs was stopped, and write the outputs."""
    params, config = read_params(document)
    stop = Stop()
    if params.processes > 1 and "RANK" not in os.environ:  # else torchrun, or this very line, has started it
        with stop.noting():
            command = [sys.executable, "-m", "pipeline", "stage", "train"]
            sys.exit(distributed.launch(command, params.processes, stopping=stop))
    with distributed.together(params.processes):
        _run(params, config, stop)


def _run(params: Params, config: Any, stop: Stop) -> None:
    device = machine.device()
    real = ImageSet.open(paths.REAL / paths.IMAGESET)
    if config.precision == "auto":
        config = dataclasses.replace(config, precision=from_first(machine.fastest_precision(device)))
    family = _family(params, config, real).to(device)
    if family.balanced and params.batch_size % len(real.classes):
        raise UserError(
            f"params.yaml: train.batch_size is {params.batch_size}; needed a multiple of {len(real.classes)}, the "
            f"classes, which {params.family} wants equally often"
        )
    inputs = _inputs(params, config, real)
    _require_those_of_the_first(inputs)
    with distributed.first_of_host():
        batches = _batches(params, family, real, device)
    build = partial(_trainer, batches=batches, images=params.images, snapshot_images=params.snapshot_images)
    trial = partial(build, judge=_ask_the_first)
    if distributed.rank() > 0:
        try:
            _set_threads(params.threads, family, trial, None)
            trainer = trial(family)
            _help(trainer, stop)
            _standing(trainer, real, params)
        except ForgelineError as error:
            sys.exit(error.exit_status)  # process 0 says why
        return
    parent = paths.PARENT / paths.PLAYERS
    model = Model(
        family=params.family,
        config=config,
        classes=real.classes,
        channels=real.channels,
        image_size=real.image_size,
        images_seen=0,
        data_fingerprint=real.fingerprint,
        parent=sha256_file(parent) if parent.exists() else None,
        selection={},
        generator=family.generator,
    )
    with _state_folder(inputs) as folder:
        _set_threads(params.threads, family, trial, folder / "threads")
        judge = SnapshotJudge(model, Judges.load(paths.FEATURES).extractor, real, folder / "grids", stop)
        trainer = build(family, judge=judge)
        _train(trainer, Checkpoints(folder / "checkpoints"), stop)
        _write(trainer, judge, inputs | {"train.threads": torch.get_num_threads()}, _standing(trainer, real, params))


def _batches(params: Params, family: Family, real: ImageSet, device: torch.device, split: str = "train") -> Batches:
    """Of the images of a split, which a family that wants its classes equally often sees so in any case."""
    return Batches(
        *real.arrays(split),
        batch_size=params.batch_size,
        seed=params.seed,
        device=device,
        balanced=family.balanced,
        class_balance=params.class_balance,
    )


def _family(params: Params, config: Any, real: ImageSet) -> Family:
    spec = ImageSpec(channels=real.channels, image_size=real.image_size, classes=len(real.classes))
    torch.manual_seed(params.seed)
    try:
        return load_family(params.family).Family(config, spec)
    except ValueError as error:
        raise UserError(f"{real.root}: {error}") from None


def _trainer(family: Family, **rest: Any) -> Trainer:
    """One that begins from the model in out/parent, where one is there."""
    trainer, parent = Trainer(family, **rest), paths.PARENT / paths.PLAYERS
    if parent.exists():
        try:
            trainer.begin_from(load_file(parent))
        except ValueError as error:
            raise UserError(
                f"params.yaml: train.warm_start names a model of another family, size or setting: {error}"
            ) from None
        except SafetensorError as error:
            raise FailedError(f"{parent}: is not a whole file: {' '.join(str(error).split())}") from None
    return trainer


def _set_threads(asked: int | None, family: Family, trial: Callable[[Family], Trainer], known: Path | None) -> None:
    """As many as asked for, or as are fastest; the file keeps the answer of process 0 for when the run is resumed."""
    if asked is None and known is not None and known.exists():
        asked = int(known.read_text())
    if (threads := from_first(asked)) is None:
        most = from_first(max(1, len(os.sched_getaffinity(0)) // distributed.local_world_size()))
        on_gpu = torch.cuda.is_available()  # then threads only feed it, and judge
        threads = from_first(most if on_gpu else machine.fastest_threads(trial(copy.deepcopy(family)).step, most))
        if known is not None:
            write_atomically(known, str(threads).encode())
            _say(f"CPU threads: {threads} of {most}" + ("" if on_gpu else ", the fastest by trial"))
    torch.set_num_threads(threads)


class Told(Exception):  # noqa: N818
    """A signal came in a block that it may interrupt."""


class Stop:
    """Whether training was told to stop, by SIGTERM or Ctrl-C."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.interrupts = False

    def __call__(self) -> bool:
        return bool(self.received)

    @property
    def signal_number(self) -> int:
        return self.received[0] if self.received else signal.SIGTERM  # another process was told

    @contextmanager
    def noting(self) -> Iterator[None]:
        """In the block signals are noted, and not acted upon."""
        before = {number: signal.signal(number, self._take) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, number: int, _: object) -> None:
        self.received.append(number)
        if self.interrupts:
            raise Told

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Raise Told in the block as soon as a noted signal comes, or at once when one has come before."""
        self.interrupts = True
        try:
            if self():
                raise Told
            yield
        finally:
            self.interrupts = False


class SnapshotJudge:
    """Scores snapshots by their Fréchet distance to held-out images, measures diversity, and draws a grid of each.

    Translations are of the same images that they are compared with, those of the other domain.
    """

    def __init__(self, model: Model, extractor: Classifier, real: ImageSet, grids: Path, stop: Stop) -> None:
        """`model` says what all snapshots have in common. A validation split too small for it is eked out."""
        self.extractor, self.grids, self.stop = extractor, grids, stop
        held_out = real.counts["validation"]
        enough = (min(held_out) if model.translates else sum(held_out)) > extractor.dimensions and max(held_out) > 1
        splits = ["validation"] if enough else ["validation", "train"]
        self.metric = f"Fréchet distance to the {' and '.join(splits)} split in features of the in-domain extractor"
        if model.translates:
            self.metric += ", of translations of that split into each domain, the mean of both"
        images, labels = map(np.concatenate, zip(*map(real.arrays, splits), strict=True))
        self.model, self.shown = model.with_sources(images, labels), model.with_sources(*real.arrays("validation"))
        self.samples = self.model.distinct(_SCORED)
        self.reference = embed(extractor, images)
        self.parts = by_domain(labels, translated=model.translates)
        self.distances = mean_distances(self.reference, labels if model.conditional else np.full_like(labels, -1))

    def __call__(self, generator: Generator, images_seen: int) -> Snapshot | None:
        """None when training is told to stop meanwhile: a large model takes longer than a stop may."""
        try:
            with self.stop.interrupting():
                return self._judge(generator, images_seen)
        except Told:
            return None

    def _judge(self, generator: Generator, images_seen: int) -> Snapshot:
        model = dataclasses.replace(self.model, generator=generator, images_seen=images_seen)
        write_atomically(self.grids / f"{images_seen:08d}.png", self.grid(generator))
        images, labels = model.sample(seed=_SEED + 1, start=0, count=self.samples)
        generated = embed(self.extractor, images)
        pairs = zip(by_domain(labels, translated=model.translates), self.parts, strict=True)
        score = np.mean([frechet_distance(generated[ours], self.reference[theirs]) for ours, theirs in pairs])
        label, diversity = least_diverse(mean_distances(generated, labels), self.distances)
        return Snapshot(images_seen, float(score), diversity, model.classes[label] if label >= 0 else "")

    def grid(self, generator: Generator) -> bytes:
        return sample_grid(dataclasses.replace(self.shown, generator=generator), seed=_SEED)


def _ask_the_first(generator: Generator, images_seen: int) -> Snapshot | None:
    raise AssertionError("process 0 judges for all")


def _train(trainer: Trainer, checkpoints: Checkpoints, stop: Stop) -> None:
    """From the newest checkpoint to the end. Raises StoppedError when a signal came first, its state safe."""
    if (state := from_first(checkpoints.load())) is not None:
        trainer.restore(state)
        _say(f"goes on from the checkpoint at {trainer.images_seen:,} images")
    started, cpu_started, first = time.monotonic(), time.process_time(), trainer.images_seen
    line = ProgressLine("train", trainer.total_images, "images", done=first)
    with stop.noting():
        training.run(trainer, checkpoints, report=line.update, say=_say, stopping=stop)
    if not trainer.finished:
        raise StoppedError(stop.signal_number, trainer.images_seen)
    wall, cpu = duration(time.monotonic() - started), time.process_time() - cpu_started
    _say(f"{trainer.images_seen - first:,} images in {wall}, {cpu:.0f} CPU-seconds")


def _help(trainer: Trainer, stop: Stop) -> None:
    """The same beside process 0, which writes and speaks for all."""
    if (state := from_first(None)) is not None:
        trainer.restore(state)
    with stop.noting():
        training.run(trainer, None, report=lambda *_: None, say=lambda _: None, stopping=stop)
    if not trainer.finished:
        sys.exit(128 + stop.signal_number)


def _standing(trainer: Trainer, real: ImageSet, params: Params) -> dict[str, Any] | None:
    """How the game stands at the end, which all processes must ask; None where nobody can be asked."""
    family = trainer.family
    if not isinstance(family, standing.Family):
        return None
    with distributed.first_of_host():
        held_out = _batches(params, family, real, trainer.batches.generator.device, "validation")
    found = standing.standing(family, trainer.batches, held_out, step=trainer.steps)
    if "domains" in found:
        found["domains"] = dict(zip(real.classes, found["domains"], strict=True))
    return {"held_out": "validation split"} | found


def _write(trainer: Trainer, judge: SnapshotJudge, inputs: dict[str, Any], stands: dict[str, Any] | None) -> None:
    """The snapshot with the lowest score as out/model; curves, grids and what fixed the bits as out/training."""
    best = trainer.best_snapshot
    trainer.average.load_state_dict(trainer.best)
    selection = {
        "metric": judge.metric,
        "score": best.score,
        "samples": judge.samples,
        "real_images": len(judge.reference),
        "snapshots": len(trainer.snapshots),
    }
    model = dataclasses.replace(
        judge.model, images_seen=best.images_seen, selection=selection, generator=trainer.average
    )
    with atomic_folder(paths.MODEL) as folder:
        model.save(folder)
    with atomic_folder(paths.TRAINING) as folder:
        shutil.copytree(judge.grids, folder / "grids")
        (folder / "samples.png").write_bytes(judge.grid(model.generator))
        (folder / "interpolation.png").write_bytes(interpolation_strip(model, seed=_SEED))
        (folder / _INPUTS).write_text(json.dumps(inputs, indent=2) + "\n", encoding="utf-8")
        if stands is not None:
            (folder / "game.json").write_text(json.dumps(stands, indent=2) + "\n", encoding="utf-8")
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in trainer.players().items()}, folder / paths.PLAYERS
        )
        (folder / "curves.csv").write_text(to_csv(trainer.curves), encoding="utf-8")
        snapshots = [snapshot._asdict() for snapshot in trainer.snapshots]
        (folder / "snapshots.csv").write_text(to_csv(snapshots), encoding="utf-8")
    _say(f"kept the generator of {best.images_seen:,} images, nearest at {best.score:.4g}: {judge.metric}")
    if best.collapsed:
        _say(f"its {describe_diversity(best)}")


def _inputs(params: Params, config: Any, real: ImageSet) -> dict[str, Any]:
    """All that fixes the bits of a run, by dotted name, as JSON: a state fits only where every one is the same."""
    named = {f"train.{name}": value for name, value in dataclasses.asdict(params).items()}
    named |= {f"families.{params.family}.{name}": value for name, value in dataclasses.asdict(config).items()}
    loaded = (module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "pipeline")
    named |= {
        "data": real.fingerprint,
        "features": _sha256(path for path in paths.FEATURES.rglob("*") if path.is_file()),
        "parent": _sha256(path for path in paths.PARENT.rglob("*") if path.is_file()),
        "code": _sha256(Path(file) for file in loaded if file),
        "torch": torch.__version__,
        "device": machine.name(),
    }
    return cast(dict[str, Any], json.loads(json.dumps(named, sort_keys=True)))


def _require_those_of_the_first(inputs: dict[str, Any]) -> None:
    """Hosts share neither a disk nor a clone."""
    first = from_first(inputs)
    if changed := [name for name in sorted(inputs | first) if inputs.get(name) != first.get(name)]:
        raise FailedError(
            f"process {distributed.rank()} has another {', '.join(changed)} than process 0; needed the same"
        )


def _sha256(files: Iterable[Path]) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in sorted(files))).hexdigest()


@contextmanager
def _state_folder(inputs: dict[str, Any]) -> Iterator[Path]:
    """The locked folder of this run's state, beside the DVC cache; removed when the block ends without an exception."""
    cache = paths.dvc_cache()
    if cache is None:
        raise UserError(
            f"{Path.cwd()}: is not a DVC repository; needed one to keep checkpoints in, 'dvc init' makes it"
        )
    root = cache.parent / "forgeline-state"
    root.mkdir(parents=True, exist_ok=True)
    text = json.dumps(inputs, indent=2)
    folder = root / hashlib.sha256(text.encode()).hexdigest()
    with locked(folder):
        known = folder / _INPUTS
        if not known.exists():
            _say_what_changed(inputs, root)
            write_atomically(known, text.encode())
        _forget_old(root)
        (folder / "grids").mkdir(exist_ok=True)
        yield folder
        shutil.rmtree(folder)


def _say_what_changed(inputs: dict[str, Any], root: Path) -> None:
    """Against the newest unfinished run, if there is one."""
    with suppress(FileNotFoundError):  # it has just ended
        unfinished = sorted(root.glob(f"*/{_INPUTS}"), key=lambda path: path.stat().st_mtime)
        if unfinished:
            others = json.loads(unfinished[-1].read_text())
            changed = [name for name in sorted(inputs | others) if inputs.get(name) != others.get(name)]
            _say(f"starts afresh: an unfinished run is there, but with another {', '.join(changed)}")


def _forget_old(root: Path) -> None:
    """Remove the states of runs that stopped long ago and were never gone on with."""
    for folder in (path for path in root.iterdir() if path.is_dir()):
        with suppress(FileNotFoundError, FailedError):  # it has just ended; it is running
            touched = max(path.stat().st_mtime for path in [folder, *folder.iterdir()])
            if time.time() - touched > _KEEP_UNFINISHED_SECONDS:
                with locked(folder):
                    shutil.rmtree(folder)


def _say(sentence: str) -> None:
    print(f"train: {sentence}", file=sys.stderr, flush=True)
