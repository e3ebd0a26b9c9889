"""What this machine computes with: its GPU where there is one, and what trains fastest on it.

The last is measured where a run begins, and the bits of a run depend on it.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from typing import Literal

import torch

_WORTH = 1.5  # times as fast must bfloat16 be in a matrix product
_ENOUGH = 1.1  # times the time of the fastest is fast enough: fewer threads then


def device() -> torch.device:
    """The GPU of this process where there is one, told to give the same bits each time; else the CPU.

    On a GPU PyTorch has no such way for the gradients of `grid_sample` (the geometric ADA) and of reflection padding
    (`cyclegan`): with these, runs differ in their last bits.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling new memory costs time, and nobody reads it before it is written. PyTorch's stubs do not know the setting.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # Nodes that a thread of the GPU's would make are numbered apart, and gradients summed in an order that depends on
    # how many there were before: with one thread it is the same in every process.
    torch.autograd.set_multithreading_enabled(False)
    warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation")
    return torch.device("cuda", torch.cuda.current_device())


def name() -> str:
    """Of the device, as far as bits depend on it: the GPU's, or the instructions that the CPU has."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()


def fastest_precision(device: torch.device) -> Literal["bfloat16", "float32"]:
    """bfloat16 on GPUs that have it, and on CPUs where it multiplies matrices faster.

    On a CPU that takes AMX as a rule (7 times as fast on one core of a Xeon); without its instructions convolutions
    in bfloat16 are 3 times (AVX-512) or 11 times (AVX2) slower than in float32.
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    gain = _product_seconds(torch.float32) / _product_seconds(torch.bfloat16)
    return "bfloat16" if gain > _WORTH else "float32"


def _product_seconds(dtype: torch.dtype) -> float:
    matrix = torch.ones(512, 512, dtype=dtype)
    return min(_seconds(lambda: torch.mm(matrix, matrix)) for _ in range(5))


def fastest_threads(step: Callable[[], object], most: int) -> int:
    """The fewest threads that do `step` in about the shortest time: of powers of two up to `most`, and that itself.

    Each is tried four times by turns and its best counts, so that what else runs here meets all alike.
    """
    counts: list[int] = sorted({most, *(2**power for power in range(most.bit_length()))})
    best = dict.fromkeys(counts, float("inf"))
    before = torch.get_num_threads()
    for _ in range(4):
        for count in counts:
            torch.set_num_threads(count)
            best[count] = min(best[count], _seconds(step))
    torch.set_num_threads(before)
    return next(count for count in counts if best[count] <= _ENOUGH * min(best.values()))


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
