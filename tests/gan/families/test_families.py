"""What must hold of every family: it trains, is exact when resumed, and samples what it kept. New ones join unasked."""

from __future__ import annotations

import dataclasses
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from pipeline.gan import families, machine
from pipeline.gan.batches import Batch, Batches, StepDraws
from pipeline.gan.checkpoint import Checkpoints
from pipeline.gan.family import Family, Generator, ImageSpec, Progress, load_family
from pipeline.gan.model import CHUNK, Model
from pipeline.gan.training import Snapshot, Trainer

NAMES = [module.name for module in pkgutil.iter_modules(families.__path__)]
STEPS, BATCH = 20, 8

# Settings for small networks with every kind of state, for the families that have them; and what one family needs.
SMALL: dict[str, Any] = {
    "width": 8,
    "max_width": 16,
    "latent_size": 8,
    "embedding_size": 4,
    "generator_widths": (8,),
    "discriminator_widths": (8,),
    "ema_halflife_images": 100,
    "r1_gamma": 0.5,
    "penalty_every": 3,
    "discriminator_steps": 2,
    "augment": ("color", "translation", "cutout"),
}
ADAPTIVE = {"augment": (), "transformations": ("flip", "translation", "scaling", "rotation", "color")}
OWN: dict[str, dict[str, Any]] = {
    "cyclegan": {"blocks": 1, "discriminator_layers": 1, "pool_size": 5},
    "r3gan": ADAPTIVE | {"transformation_probability": 0.5},
    "stylegan2": ADAPTIVE | {"path_every": 2},
}
SPECS = {"cyclegan": ImageSpec(channels=1, image_size=8, classes=2)}


def _config(name: str) -> Any:
    config = load_family(name).Config
    fields = {field.name for field in dataclasses.fields(config)}
    return config(**{key: value for key, value in SMALL.items() if key in fields} | OWN.get(name, {}))


def _spec(name: str) -> ImageSpec:
    return SPECS.get(name, ImageSpec(channels=1, image_size=8, classes=3))


def _family(name: str) -> Family:
    torch.manual_seed(0)
    return load_family(name).Family(_config(name), _spec(name))


def _judge(generator: Generator, images_seen: int) -> Snapshot:
    return Snapshot(images_seen, abs(images_seen - 88.0), 1.0, "")  # lowest neither at the first nor at the last


def _images(name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    random, spec = np.random.default_rng(0), _spec(name)
    images = random.integers(0, 256, (count, spec.channels, spec.image_size, spec.image_size), np.uint8)
    return images, random.integers(0, spec.classes, count)


CPU = torch.device("cpu")


def _trainer(name: str, device: torch.device = CPU) -> Trainer:
    family = _family(name).to(device)
    batches = Batches(*_images(name, 50), batch_size=BATCH, seed=1, device=device, balanced=family.balanced)
    return Trainer(family, batches, images=STEPS * BATCH, snapshot_images=40, judge=_judge)


def _leaves(tree: object) -> Iterator[object]:
    """The leaves of a state in order, tensors as bytes."""
    match tree:
        case dict():
            for key in tree:
                yield key
                yield from _leaves(tree[key])
        case list() | tuple():
            for value in tree:
                yield from _leaves(value)
        case Tensor():
            yield tree.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        case _:
            yield tree


@pytest.mark.parametrize("name", NAMES)
def test_every_player_learns_and_resumed_equals_uninterrupted_bit_for_bit(name: str, tmp_path: Path) -> None:
    whole = _trainer(name)
    before = {player: [p.clone() for p in parameters] for player, parameters in whole.parameters.items()}
    for _ in range(7):
        whole.advance()
    Checkpoints(tmp_path).save(whole.images_seen, whole.state())
    resumed = _trainer(name)
    resumed.restore(Checkpoints(tmp_path).load())
    assert list(_leaves(whole.state())) == list(_leaves(resumed.state()))
    for trainer in (whole, resumed):
        while not trainer.finished:
            trainer.advance()  # raises where a loss is not finite
    assert list(_leaves(whole.state())) == list(_leaves(resumed.state()))
    for player, parameters in whole.parameters.items():
        assert any(not torch.equal(old, new) for old, new in zip(before[player], parameters, strict=True)), player


@pytest.mark.parametrize("name", NAMES)
def test_the_average_is_kept_as_a_model_and_a_sample_does_not_depend_on_what_is_sampled_with_it(
    name: str, tmp_path: Path
) -> None:
    trainer, spec = _trainer(name), _spec(name)
    for _ in range(5):
        trainer.advance()
    model = Model(
        family=name,
        config=_config(name),
        classes=tuple(map(str, range(spec.classes))),
        channels=spec.channels,
        image_size=spec.image_size,
        images_seen=trainer.images_seen,
        data_fingerprint="0",
        selection={},
        generator=trainer.average,
    ).with_sources(*_images(name, 300))
    spread = 1.0 if model.translates else 100.0  # young networks tell latents hardly apart
    images, labels = model.sample(seed=5, start=0, count=CHUNK + 10, spread=spread)
    assert np.unique(images, axis=0).shape[0] > CHUNK / 2
    model.save(tmp_path)
    loaded = Model.load(tmp_path).with_sources(*_images(name, 300))
    assert loaded.config == model.config
    for start, count in ((0, CHUNK + 10), (CHUNK - 3, 7), (CHUNK + 9, 1)):
        some, of_these = loaded.sample(seed=5, start=start, count=count, spread=spread)
        assert np.array_equal(some, images[start : start + count])
        assert np.array_equal(of_these, labels[start : start + count])


def _said(given: object) -> object:
    match given:
        case Tensor():
            return tuple(given.shape)
        case torch.Generator():
            return "generator"
        case _:
            return given


class Work(TorchDispatchMode):
    """Notes which operations are done, on tensors of which shapes and with which numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tree_map(_said, (args, kwargs))
        self.done.append(f"{operation} {given}")
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NAMES)
def test_steps_of_one_kind_are_the_same_work(name: str) -> None:
    """What is recorded on a GPU is played with other batches: no number of the host may change in between."""
    trainer = _trainer(name)
    done: dict[Any, list[str]] = {}
    compared = 0
    for _ in range(STEPS):
        progress = Progress(step=trainer.steps, images_seen=trainer.images_seen, total_images=trainer.total_images)
        kind, batch = trainer.family.prepare(progress), trainer.batches.at(trainer.steps)
        if kind is None:
            assert trainer.family.config.trains_alone  # a pool of images changes with every step
            return
        with Work() as work:
            list(trainer._passes(batch, progress))
        compared += kind in done
        assert done.setdefault(kind, work.done) == work.done
        trainer.step()
    assert compared


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU is needed")
@pytest.mark.parametrize("name", NAMES)
def test_on_a_gpu_recorded_steps_equal_others_and_resumed_equals_uninterrupted_bit_for_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OWN, "stylegan2", {"path_every": 2})  # geometric ADA has no bits to rely on there
    monkeypatch.setitem(OWN, "r3gan", {})
    recorded, eager = _trainer(name, machine.device()), _trainer(name, machine.device())
    eager._recorder = None
    for _ in range(12):
        recorded.advance()
    Checkpoints(tmp_path).save(recorded.images_seen, recorded.state())
    resumed = _trainer(name, machine.device())
    resumed.restore(Checkpoints(tmp_path).load())
    for trainer in (recorded, eager, resumed):
        while not trainer.finished:
            trainer.advance()
    assert list(_leaves(recorded.state())) == list(_leaves(eager.state()))
    assert list(_leaves(recorded.state())) == list(_leaves(resumed.state()))
    assert recorded._recorder is not None
    assert bool(recorded._recorder.recordings) == (not recorded.family.config.trains_alone)


@pytest.mark.parametrize(("dtype", "precision"), [(torch.float64, "float32"), (torch.float32, "bfloat16")])
@pytest.mark.parametrize("name", NAMES)
def test_losses_have_the_precision_of_the_images_whatever_the_networks_use(
    name: str, dtype: torch.dtype, precision: str
) -> None:
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(0)
        spec = _spec(name)
        family = load_family(name).Family(dataclasses.replace(_config(name), precision=precision), spec)
        draws = StepDraws(torch.Generator().manual_seed(1), BATCH)
        size = spec.image_size
        images, labels = draws.uniform(spec.channels, size, size) * 2 - 1, torch.arange(BATCH) % spec.classes
        batch = Batch(images=images, labels=labels, draws=draws)
        assert family.generator.sample_like(batch).dtype == dtype  # outside the losses nothing is rounded
        for step in range(2):
            for player, loss in family.losses(batch, Progress(step=step, images_seen=8 * step, total_images=100)):
                assert loss.dtype == dtype, player
                assert loss.isfinite(), player
    finally:
        torch.set_default_dtype(default)


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_are_finite_in_bfloat16_and_losses_in_float32(name: str) -> None:
    spec = _spec(name)
    torch.manual_seed(0)
    family = load_family(name).Family(dataclasses.replace(_config(name), precision="bfloat16"), spec)
    draws = StepDraws(torch.Generator().manual_seed(1), BATCH)
    images = draws.uniform(spec.channels, spec.image_size, spec.image_size) * 2 - 1
    images[: BATCH // 2] = -1  # images that are all alike are where a deviation or a norm has no slope
    batch = Batch(images=images, labels=torch.arange(BATCH) % spec.classes, draws=draws)
    for step in range(4):
        for player, loss in family.losses(batch, Progress(step=step, images_seen=25 * step, total_images=100)):
            assert loss.dtype == torch.float32, player
            learning = list(family.get_submodule(player).parameters())
            gradients = torch.autograd.grad(loss, learning, allow_unused=True)
            assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None), player


def _whole_or_half(folder: Path) -> dict[str, list[Tensor]]:
    """All weights and running statistics of every family after 20 steps in float64, of this process."""
    torch.set_default_dtype(torch.float64)
    found = {}
    for name in NAMES:
        if not load_family(name).Config.trains_alone:
            trainer = _trainer(name)
            while not trainer.finished:
                trainer.advance()
            state = trainer.state()
            found[name] = [*state["family"].values(), *state["average"].values()]
            found[name] += [torch.tensor(list(row.values())) for row in state["curves"]]
    return found


def _be_process(number: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(number)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
    torch.save(_whole_or_half(folder), folder / str(number))
    dist.destroy_process_group()


def test_two_processes_with_half_the_batch_each_equal_one_with_the_whole(tmp_path: Path) -> None:
    others = [subprocess.Popen([sys.executable, __file__, str(number), str(tmp_path)]) for number in range(2)]
    default = torch.get_default_dtype()
    try:
        alone = _whole_or_half(tmp_path)
    finally:
        torch.set_default_dtype(default)
    assert [process.wait() for process in others] == [0, 0]
    for number in range(2):
        together = torch.load(tmp_path / str(number))
        assert together.keys() == alone.keys()
        for name in alone:
            for one, other in zip(together[name], alone[name], strict=True):
                torch.testing.assert_close(
                    one, other, rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
                )


if __name__ == "__main__":
    _be_process(int(sys.argv[1]), Path(sys.argv[2]))
