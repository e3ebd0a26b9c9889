"""What is fastest here."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from pipeline.gan.machine import fastest_precision, fastest_threads


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 1.0, 2: 0.6, 4: 0.3, 6: 0.29}, 4),  # the last two are about the same
        ({1: 1.0, 2: 1.05, 4: 2.0, 6: 3.0}, 1),
        ({1: 6.0, 2: 3.0, 4: 1.5, 6: 1.0}, 6),
    ],
)
def test_the_fewest_threads_that_are_about_as_fast_as_any_are_chosen(
    seconds: dict[int, float], best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0

    def step() -> None:
        nonlocal clock
        clock += seconds[torch.get_num_threads()]

    before = torch.get_num_threads()
    monkeypatch.setattr(time, "perf_counter", lambda: clock)
    assert fastest_threads(step, 6) == best
    assert torch.get_num_threads() == before


def test_the_precision_is_one_that_this_machine_multiplies_in() -> None:
    found = fastest_precision(torch.device("cpu"))
    flags = Path("/proc/cpuinfo").read_text().split()
    if "amx_bf16" in flags:
        assert found == "bfloat16"
    elif "avx512_bf16" not in flags:
        assert found == "float32"
