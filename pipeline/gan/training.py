"""The one training loop. It knows players and losses, and nothing of what a family does with them."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.errors import FailedError
from pipeline.gan import schedules
from pipeline.gan.batches import Batch, Batches
from pipeline.gan.checkpoint import Checkpoints, Tree
from pipeline.gan.distributed import (
    all_mean,
    any_of,
    average_gradients,
    from_first,
    rank,
    synchronize_batch_norm,
    world_size,
)
from pipeline.gan.family import Family, Generator, Progress
from pipeline.gan.recording import Recorder

CURVE_ROWS = 200  # of a whole run
COLLAPSED = 0.5  # of the diversity of real images: samples below are said to have collapsed
_UNSETTLED = 256  # steps whose numbers may wait on the device before they are looked at
_CHECKPOINT_SHARE = 0.02  # of the time goes into checkpoints


class Snapshot(NamedTuple):
    """A moment at which the averaged generator was judged."""

    images_seen: int
    score: float  # lower is better
    diversity: float  # of samples, over that of real images; of the class where it is least
    least_diverse: str  # that class; empty where samples have no class

    @property
    def collapsed(self) -> bool:
        return self.diversity < COLLAPSED


Judge = Callable[[Generator, int], Snapshot | None]  # of the averaged generator at so many images; None: told to stop


class DivergedError(Exception):
    """A loss or a weight is no longer a finite number."""


class Trainer:
    """A run and its whole state: two trainers with equal arguments and equal states go on equally, bit for bit."""

    def __init__(self, family: Family, batches: Batches, *, images: int, snapshot_images: int, judge: Judge) -> None:
        """To train for `images` images; a snapshot is judged before, every `snapshot_images` and at the end."""
        synchronize_batch_norm(family)
        self.family, self.batches, self.judge = family, batches, judge
        self.total_images = -(-images // batches.batch_size) * batches.batch_size  # whole steps
        self.snapshot_images = snapshot_images
        self.parameters = {name: list(player.parameters()) for name, player in family.named_children()}
        self.optimizers = {name: family.optimizer(name) for name in self.parameters}
        self.average = copy.deepcopy(family.generator).eval().requires_grad_(False)
        self.steps = 0
        self.curves: list[dict[str, float]] = []
        self.snapshots: list[Snapshot] = []
        self.best: dict[str, Tensor] = {}  # the weights with the lowest score
        self._sums: dict[str, list[float]] = {}  # name → sum and count since the last row of the curves
        self._unsettled: list[tuple[int, list[str], Tensor]] = []  # step, names, values; still on the device
        draws = batches.generator
        alone_on_gpu = draws.device.type == "cuda" and world_size() == 1  # several wait for each other within a step
        self._recorder = Recorder(self._passes, self.parameters, draws) if alone_on_gpu else None
        self._live, self._averaged = _floating(family.generator), _floating(self.average)

    @property
    def images_seen(self) -> int:
        return self.steps * self.batches.batch_size

    @property
    def finished(self) -> bool:
        return self.images_seen >= self.total_images and not self._snapshot_is_due()

    @property
    def best_snapshot(self) -> Snapshot:
        """The snapshot whose weights are in `best`."""
        return min(self.snapshots, key=lambda snapshot: snapshot.score)

    def advance(self) -> None:
        """The snapshot that is due, or one step and what the curves say of it. Raises DivergedError."""
        if self._snapshot_is_due():
            self._take_snapshot()
            return
        self.step()
        if len(self._unsettled) >= _UNSETTLED:
            self._settle()
        if self._passed(max(1, self.total_images // CURVE_ROWS)):
            self._add_row()

    def _passed(self, every: int) -> bool:
        """Whether the last step came past a multiple of so many images, or to the end."""
        before = self.images_seen - self.batches.batch_size
        return before // every != self.images_seen // every or self.images_seen >= self.total_images

    def _snapshot_is_due(self) -> bool:
        if self.snapshots and self.snapshots[-1].images_seen == self.images_seen:
            return False
        return self.steps == 0 or self._passed(self.snapshot_images)

    def step(self) -> None:
        with self._recorder.at_work() if self._recorder else nullcontext():
            progress = Progress(step=self.steps, images_seen=self.images_seen, total_images=self.total_images)
            kind, batch = self.family.prepare(progress), self.batches.at(self.steps)
            passes = self._recorder(kind, batch, progress) if self._recorder else self._passes(batch, progress)
            for player in passes:
                average_gradients(self.parameters[player])
                optimizer = self.optimizers[player]
                for group in optimizer.param_groups:
                    group.update(self.family.hyperparameters(player, progress))
                optimizer.step()
            self._update_average()
            charts = progress.charts
            self._unsettled.append((self.steps, list(charts), torch.stack([*charts.values()]).detach()))
            self.steps += 1

    def _passes(self, batch: Batch, progress: Progress) -> Iterator[str]:
        """Forward and backward: each player when its parameters have the gradients of its loss."""
        for player, loss in self.family.losses(batch, progress):
            for parameter in self.parameters[player]:
                parameter.grad = None
            torch.autograd.backward(loss, inputs=self.parameters[player])  # no gradient leaks into the opponent
            progress.charts[f"{player}_loss"] = loss.detach()
            yield player

    @torch.no_grad()
    def _update_average(self) -> None:
        config = self.family.config
        decay = schedules.ema_decay(
            self.images_seen, self.batches.batch_size, config.ema_halflife_images, config.ema_ramp
        )
        torch._foreach_lerp_(list(self._averaged.values()), list(self._live.values()), 1 - decay)

    def _settle(self) -> None:
        """Bring the numbers of the last steps, means over all processes, to the host in one transfer; look at them."""
        if not self._unsettled:
            return
        values = all_mean(torch.cat([values for _, _, values in self._unsettled]).double()).tolist()
        known = [(step, name) for step, names, _ in self._unsettled for name in names]
        for (step, name), value in zip(known, values, strict=True):
            if not math.isfinite(value):
                raise DivergedError(f"{name} is {value} in step {step:,}")
            total = self._sums.setdefault(name, [0.0, 0])
            total[0] += value
            total[1] += 1
        self._unsettled.clear()

    def _add_row(self) -> None:
        self._settle()
        means = {name: total / count for name, (total, count) in self._sums.items()}
        self.curves.append({"images_seen": self.images_seen, **means})
        self._sums.clear()

    def _take_snapshot(self) -> None:
        """Process 0 judges for all. It stays due where the judge was told to stop."""
        self._settle()
        snapshot = from_first(self.judge(self.average, self.images_seen) if rank() == 0 else None)
        if snapshot is None:
            return
        if not self.snapshots or snapshot.score < self.best_snapshot.score:
            self.best = {name: tensor.clone() for name, tensor in self.average.state_dict().items()}
        self.snapshots.append(snapshot)

    def state(self) -> Tree:
        """All that a checkpoint must hold. Raises DivergedError rather than hand out a broken state."""
        self._settle()
        for name, weights in _floating(self.family).items():
            if not weights.isfinite().all():
                raise DivergedError(f"{name} is not finite after step {self.steps - 1:,}")
        return {
            "steps": self.steps,
            "family": self.family.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": {
                name: [dict(optimizer.state[parameter]) for parameter in self.parameters[name]]
                for name, optimizer in self.optimizers.items()
            },
            "best": self.best,
            "curves": self.curves,
            "snapshots": self.snapshots,
            "sums": self._sums,
        }

    def players(self) -> dict[str, Tensor]:
        """What a later training may begin from: the family as it is now, and the average that was the nearest."""
        named = {"family": self.family.state_dict(), "average": self.best}
        return {f"{part}.{name}": tensor for part, state in named.items() for name, tensor in state.items()}

    def begin_from(self, players: dict[str, Tensor]) -> None:
        """Begin as another training ended; optimizers, schedules and counts begin anew.

        Raises ValueError where the tensors are not those of this family with these settings and images.
        """
        for part, module in {"family": self.family, "average": self.average}.items():
            found = {name: value for name, value in players.items() if name.startswith(f"{part}.")}
            needed = {f"{part}.{name}": tensor for name, tensor in module.state_dict().items()}
            for name in sorted(needed.keys() | found.keys()):
                has, wants = (tuple(all_[name].shape) if name in all_ else None for all_ in (found, needed))
                if has != wants:
                    raise ValueError(f"{name} is {has or 'not there'}; needed {wants or 'none'}")
            module.load_state_dict({name.removeprefix(f"{part}."): value for name, value in found.items()})

    def restore(self, state: Tree) -> None:
        """Go on from a state that an equal trainer gave."""
        self.steps = state["steps"]
        self.family.load_state_dict(state["family"])
        self.average.load_state_dict(state["average"])
        for name, optimizer in self.optimizers.items():
            for parameter, held in zip(self.parameters[name], state["optimizers"][name], strict=True):
                optimizer.state[parameter] = {key: _placed_like(parameter, value) for key, value in held.items()}
        self.snapshots = [Snapshot(*row) for row in state["snapshots"]]
        self.best, self.curves, self._sums = state["best"], state["curves"], state["sums"]


def run(
    trainer: Trainer,
    checkpoints: Checkpoints | None,
    *,
    report: Callable[[int, str], None],
    say: Callable[[str], None],
    stopping: Callable[[], bool],
) -> None:
    """Train to the end, or until `stopping()` in any process; then the last checkpoint is of that very moment.

    A checkpoint is written whenever it costs no more than a fiftieth of the time since the last one: the machine
    decides how often. Only process 0 has `checkpoints`. Raises FailedError on divergence.
    """
    written, cost = time.monotonic(), 0.0
    try:
        while not trainer.finished:
            known = len(trainer.snapshots)
            trainer.advance()
            if len(trainer.snapshots) == known:
                report(trainer.images_seen, _note(trainer))
            elif sentence := _on_collapse(trainer.snapshots):
                say(sentence)
            due = checkpoints is not None and cost <= _CHECKPOINT_SHARE * (time.monotonic() - written)
            stop, due = any_of(stopping(), due)
            if stop or due:
                began, state = time.monotonic(), trainer.state()
                if checkpoints is not None:
                    checkpoints.save(trainer.images_seen, state)
                written = time.monotonic()
                cost = written - began
            if stop:
                return
    except DivergedError as error:
        good = None if checkpoints is None else checkpoints.images_seen
        raise FailedError(
            f"training diverged: {error} ({trainer.images_seen:,} images); "
            f"last good checkpoint: {'none' if good is None else f'{good:,} images'}; "
            "a lower learning_rate or a stronger penalty may hold it"
        ) from None


def _on_collapse(snapshots: Sequence[Snapshot]) -> str:
    """A sentence when the last snapshot is less diverse than it must be and the one before was not."""
    before, last = snapshots[-2:] if len(snapshots) > 1 else (snapshots[0], snapshots[0])
    if before.collapsed or not last.collapsed:
        return ""
    return f"mode collapse at {last.images_seen:,} images: {describe_diversity(last)}"


def describe_diversity(snapshot: Snapshot) -> str:
    """How diverse the samples of a snapshot are, in words."""
    samples = f"samples of class '{snapshot.least_diverse}'" if snapshot.least_diverse else "samples"
    return f"{samples} are {snapshot.diversity:.0%} as diverse as real images; expected at least {COLLAPSED:.0%}"


def _note(trainer: Trainer) -> str:
    if not trainer.curves:
        return ""
    return ", ".join(f"{name} {value:.2f}" for name, value in trainer.curves[-1].items() if name.endswith("_loss"))


def _floating(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}


def _placed_like(parameter: Tensor, value: Tensor) -> Tensor:
    """A copy as the optimizer itself would have made it: on the same device, in the same memory format and aligned."""
    if value.shape != parameter.shape:
        return value.to(parameter.device).clone()
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
