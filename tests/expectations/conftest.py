"""Manifests in which everything holds, to be damaged."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

CLASSES = ("ant", "bee", "cow")


def manifest(count: int, splits: tuple[str, ...]) -> pd.DataFrame:
    position = np.arange(count)
    return pd.DataFrame(
        {
            "split": [splits[i // 3 % len(splits)] for i in position],
            "label": position % 3,
            "class_name": [CLASSES[i % 3] for i in position],
            "path": [f"{i}.png" for i in position],
            "content": [f"{i:064x}" for i in position],
            "mean": np.linspace(10.0, 200.0, count),
            "std": np.linspace(1.0, 90.0, count),
        }
    )


@pytest.fixture
def classes() -> tuple[str, ...]:
    return CLASSES


@pytest.fixture
def real() -> pd.DataFrame:
    return manifest(180, ("train", "validation", "test")).assign(width=8, height=8, mode="L")


@pytest.fixture
def synthetic() -> pd.DataFrame:
    return manifest(150, ("train",)).assign(
        seed=3, index=np.arange(150), spread=1.2, confidence=0.9, nearest_distance=0.25
    )
