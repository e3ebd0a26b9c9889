"""Steps as CUDA graphs: what a GPU is to do is recorded once, and played again without Python between the kernels.

A small network's kernels take less time than Python needs to launch them. A recording has the very same kernels on the
same kinds of memory, so it gives the same bits; random numbers come from the generator's seed at the time of playing.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.gan.batches import Batch
from pipeline.gan.family import Progress

Passes = Callable[[Batch, Progress], Iterator[str]]

_REMEMBERED = 64  # kinds of steps; one that has not come again by then is not worth a recording


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What is done up to a player's step, and where it leaves that player's gradients; the last has no player."""

    graph: torch.cuda.CUDAGraph
    player: str | None
    gradients: Sequence[Tensor | None]


@dataclass(frozen=True, kw_only=True)
class _Recording:
    parts: Sequence[_Part]
    charts: Mapping[str, Tensor]


class Recorder:
    """Gives the passes of steps: as they are, or played from a recording.

    `passes` yields each player when its gradients are there, having taken all that changes from the batch, and from
    the progress nothing but what the kind of the step says.
    """

    def __init__(self, passes: Passes, parameters: Mapping[str, Sequence[Tensor]], draws: torch.Generator) -> None:
        self.passes, self.parameters, self.draws = passes, parameters, draws
        self.stream = torch.cuda.Stream(draws.device)  # type: ignore[no-untyped-call]  # PyTorch gives it no types
        self.pool = torch.cuda.graph_pool_handle()
        self.seen: deque[Hashable] = deque(maxlen=_REMEMBERED)
        self.recordings: dict[Hashable, _Recording] = {}
        self.batch: Batch | None = None  # the memory that recordings read

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Whatever belongs to a step is done in the block."""
        around = torch.cuda.current_stream()
        self.stream.wait_stream(around)
        with torch.cuda.stream(self.stream):
            yield
        around.wait_stream(self.stream)

    def __call__(self, kind: Hashable | None, batch: Batch, progress: Progress) -> Iterator[str]:
        """The players of a step, each when its gradients are there. A kind is recorded when it comes again."""
        if kind in self.recordings:
            self._bring(batch)
            return self._play(self.recordings[kind], progress)
        if kind is None or kind not in self.seen:
            self.seen.append(kind)
            return self.passes(batch, progress)
        return self._record(kind, self._bring(batch), progress)

    def _bring(self, batch: Batch) -> Batch:
        """The batch where recordings read it."""
        if self.batch is None:
            self.batch = batch
        else:
            self.batch.images.copy_(batch.images)
            self.batch.labels.copy_(batch.labels)
        return self.batch

    def _record(self, kind: Hashable, batch: Batch, progress: Progress) -> Iterator[str]:
        passes, parts = self.passes(batch, progress), list[_Part]()
        player: str | None = ""
        while player is not None:
            graph = torch.cuda.CUDAGraph()
            graph.register_generator_state(self.draws)
            with warnings.catch_warnings(), torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                warnings.filterwarnings("ignore", message="The CUDA Graph is empty")  # after the last step as a rule
                player = next(passes, None)
            gradients = [parameter.grad for parameter in self.parameters[player]] if player else []
            parts.append(_Part(graph=graph, player=player, gradients=gradients))
            graph.replay()
            if player:
                yield player
        self.recordings[kind] = _Recording(parts=parts, charts=dict(progress.charts))

    def _play(self, recording: _Recording, progress: Progress) -> Iterator[str]:
        for part in recording.parts:
            part.graph.replay()
            if part.player:
                for parameter, gradient in zip(self.parameters[part.player], part.gradients, strict=True):
                    parameter.grad = gradient
                yield part.player
        progress.charts.update(recording.charts)
