from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits

from pipeline.errors import FailedError
from pipeline.sources.digits import Config, Source


def test_the_digits_are_scikit_learns_on_the_whole_range() -> None:
    source = Source(Config())
    with source.read(source.inventory()) as reading:
        found = list(reading.images)
    truth = load_digits()
    assert len(found) == reading.count == 1797
    pixels = np.stack([np.asarray(raw.data) for raw in found])
    assert (pixels.min(), pixels.max()) == (0, 255)
    np.testing.assert_array_equal(np.rint(pixels / 255 * 16), truth.images)
    assert [raw.label for raw in found] == [str(label) for label in truth.target]
    assert min(Counter(raw.label for raw in found).values()) == 174
    assert {raw.split for raw in found} == {None}


def test_other_digits_than_the_inventorys_are_refused() -> None:
    source = Source(Config())
    with (
        pytest.raises(FailedError, match=r"^scikit-learn's digits have the sha256 \w+; needed 00$"),
        source.read(source.inventory() | {"sha256": "00"}),
    ):
        pass


def test_the_inventory_costs_no_heavy_import() -> None:
    code = (
        "import sys; from pipeline.params import Document; from pipeline.stages import source; "
        "source.read_params(Document({'source': {'kind': 'digits'}})).inventory(); "
        "print({'torch', 'sklearn', 'boto3', 'torchvision', 'scipy', 'pandas'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
