"""The trainer: deaf to the opponent, watchful. tests/gan/families/test_families.py trains every family with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import FailedError
from pipeline.gan.batches import Batch, Batches
from pipeline.gan.checkpoint import Checkpoints
from pipeline.gan.family import Family, Generator, ImageSpec, Progress, load_family
from pipeline.gan.training import DivergedError, Judge, Snapshot, Trainer, run

SPEC = ImageSpec(channels=1, image_size=8, classes=3)
STEPS, BATCH = 20, 8


def _judge(generator: Generator, images_seen: int) -> Snapshot:
    return Snapshot(images_seen, abs(images_seen - 88.0), 1.0, "")  # lowest neither at the first nor at the last


def _family() -> Family:
    torch.manual_seed(0)
    module = load_family("conditional")
    return module.Family(module.Config(width=8, ema_halflife_images=100, r1_gamma=0.5, penalty_every=3), SPEC)


def _trainer(
    family: Family, *, images: int = STEPS * BATCH, snapshot_images: int = 40, judge: Judge = _judge
) -> Trainer:
    random = np.random.default_rng(0)
    images_, labels = random.integers(0, 256, (50, 1, 8, 8), np.uint8), random.integers(0, 3, 50)
    batches = Batches(images_, labels, batch_size=BATCH, seed=1, device=torch.device("cpu"))
    return Trainer(family, batches, images=images, snapshot_images=snapshot_images, judge=judge)


def _advance_to(trainer: Trainer, step: int) -> None:
    while trainer.steps < step:
        trainer.advance()


def _run(
    trainer: Trainer,
    folder: Path,
    *,
    report: Callable[[int, str], None] = lambda images_seen, note: None,
    say: Callable[[str], None] = pytest.fail,
    stopping: Callable[[], bool] = lambda: False,
) -> Checkpoints:
    checkpoints = Checkpoints(folder)
    run(trainer, checkpoints, report=report, say=say, stopping=stopping)
    return checkpoints


def test_the_learning_rate_falls_to_zero_by_the_end() -> None:
    trainer = _trainer(_family())
    while not trainer.finished:
        trainer.advance()
    rates = [group["lr"] for optimizer in trainer.optimizers.values() for group in optimizer.param_groups]
    share_left = BATCH / (STEPS * BATCH) / (1 - trainer.family.config.fall_from)
    assert rates == pytest.approx([trainer.family.config.learning_rate * share_left] * len(rates))


def test_the_average_is_the_formula() -> None:
    family = _family()
    trainer = _trainer(family)
    expected = [p.clone() for p in family.generator.parameters()]
    for step in range(6):
        _advance_to(trainer, step + 1)
        halflife = min(100, step * BATCH * family.config.ema_ramp)
        decay = 0.5 ** (BATCH / halflife) if halflife else 0.0
        expected = [decay * e + (1 - decay) * p for e, p in zip(expected, family.generator.parameters(), strict=True)]
    for averaged, formula in zip(trainer.average.parameters(), expected, strict=True):
        torch.testing.assert_close(averaged, formula)


class _One(Generator):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))


class _Scripted(Family):
    """Two players of one weight each; every loss depends on both weights and has a value that the test decides."""

    def __init__(self, value: Callable[[int, str], float], players: tuple[str, ...] = ("discriminator", "generator")):
        super().__init__()
        self.config = load_family("conditional").Config()
        self.generator, self.discriminator = _One(), _One()
        self.value, self.players = value, players

    def losses(self, real: Batch, progress: Progress) -> Iterator[tuple[str, Tensor]]:
        for player in self.players:
            both = self.generator.weight * self.discriminator.weight
            yield player, both - both.detach() + self.value(progress.step, player)


@pytest.mark.parametrize("player", ["generator", "discriminator"])
def test_a_loss_moves_its_own_player_only(player: str) -> None:
    family = _Scripted(lambda step, player: 1.0, players=(player,))
    _advance_to(_trainer(family), 1)
    for name, parameter in family.named_parameters():
        assert (parameter.item() != 1.0) == (parameter.grad is not None) == name.startswith(player)


def test_curves_are_means_over_the_steps_since_the_last_row() -> None:
    trainer = _trainer(_Scripted(lambda step, player: step if player == "generator" else 0.0), images=BATCH * 1000)
    while not trainer.finished:
        trainer.advance()
    assert [row["images_seen"] for row in trainer.curves] == [BATCH * 5 * (row + 1) for row in range(200)]
    assert [row["generator_loss"] for row in trainer.curves] == [5 * row + 2 for row in range(200)]
    assert {row["discriminator_loss"] for row in trainer.curves} == {0}


def test_the_lowest_score_is_kept_with_its_weights() -> None:
    trainer = _trainer(_family(), snapshot_images=8)
    weights = {}
    for step in range(STEPS + 1):
        _advance_to(trainer, step)
        weights[trainer.images_seen] = {name: t.clone() for name, t in trainer.average.state_dict().items()}
    trainer.advance()
    assert trainer.finished
    assert [snapshot.images_seen for snapshot in trainer.snapshots] == [8 * step for step in range(STEPS + 1)]
    best = trainer.best_snapshot
    assert best[:2] == (88, 0.0)
    assert all(torch.equal(trainer.best[name], weights[best.images_seen][name]) for name in trainer.best)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_divergence_names_step_player_and_last_good_checkpoint(value: float, tmp_path: Path) -> None:
    def loss_of(step: int, player: str) -> float:
        return value if step >= 12 and player == "generator" else 1.0

    trainer = _trainer(_Scripted(loss_of))
    with pytest.raises(FailedError) as failed:
        _run(trainer, tmp_path)
    assert f"generator_loss is {value} in step 12 " in str(failed.value)
    state = Checkpoints(tmp_path).load()
    assert f"last good checkpoint: {state['steps'] * BATCH:,} images" in str(failed.value)
    assert state["steps"] <= 12
    assert all(math.isfinite(value.item()) for value in state["family"].values())


def test_a_broken_weight_is_never_written(tmp_path: Path) -> None:
    trainer = _trainer(_family())
    _advance_to(trainer, 1)
    next(trainer.family.discriminator.parameters()).data[0] = math.nan  # type: ignore[union-attr]
    with pytest.raises(DivergedError, match=r"^discriminator\.\S+ is not finite after step 0$"):
        trainer.state()


def test_told_to_stop_it_leaves_a_checkpoint_of_that_very_moment(tmp_path: Path) -> None:
    trainer = _trainer(_family())
    _run(trainer, tmp_path, stopping=lambda: trainer.images_seen >= 5 * BATCH)
    assert not trainer.finished
    assert Checkpoints(tmp_path).load()["steps"] == 5


def test_told_to_stop_while_it_is_judged_it_leaves_at_once_and_judges_again_later(tmp_path: Path) -> None:
    told = False

    def judge(generator: Generator, images_seen: int) -> Snapshot | None:
        nonlocal told
        told = images_seen == 80
        return None if told else _judge(generator, images_seen)

    stopped = _trainer(_family(), judge=judge)
    _run(stopped, tmp_path, stopping=lambda: told)
    assert [snapshot.images_seen for snapshot in stopped.snapshots] == [0, 40]
    resumed, whole = _trainer(_family()), _trainer(_family())
    resumed.restore(Checkpoints(tmp_path).load())
    assert resumed.images_seen == 80
    for trainer, folder in {resumed: "resumed", whole: "whole"}.items():
        _run(trainer, tmp_path / folder)
    assert resumed.snapshots == whole.snapshots
    assert all(torch.equal(resumed.best[name], whole.best[name]) for name in whole.best)


def test_progress_is_reported_at_every_step_with_the_losses(tmp_path: Path) -> None:
    said: list[tuple[int, str]] = []
    _run(_trainer(_family()), tmp_path, report=lambda *what: said.append(what))
    assert [images_seen for images_seen, _ in said] == [BATCH * (step + 1) for step in range(STEPS)]
    assert "discriminator_loss" in said[-1][1]
    assert "generator_loss" in said[-1][1]


def test_mode_collapse_is_said_whenever_diversity_falls_below_half(tmp_path: Path) -> None:
    diversity = {0: 0.0, 40: 0.9, 80: 0.4, 120: 0.3, 160: 0.5, 200: 0.49}  # of a generator that has learned nothing: 0

    def judge(generator: Generator, images_seen: int) -> Snapshot:
        return Snapshot(images_seen, 1.0, diversity[images_seen], "seven" if images_seen < 100 else "")

    said: list[str] = []
    _run(_trainer(_family(), images=200, judge=judge), tmp_path, say=said.append)
    assert said == [
        "mode collapse at 80 images: samples of class 'seven' are 40% as diverse as real images; expected at least 50%",
        "mode collapse at 200 images: samples are 49% as diverse as real images; expected at least 50%",
    ]
