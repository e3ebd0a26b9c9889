from __future__ import annotations

import hashlib
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.imageset.subset import rare_labels, stratified_fraction


def hashes(count: int) -> list[str]:
    return [hashlib.sha256(str(i).encode()).hexdigest() for i in range(count)]


@given(st.lists(st.integers(0, 3), max_size=80), st.integers(1, 100))
def test_each_class_gives_its_share_rounded_up(labels: list[int], percent: int) -> None:
    kept = stratified_fraction(hashes(len(labels)), np.array(labels, np.int64), percent / 100)
    assert kept.dtype == np.int64
    assert kept.tolist() == sorted(set(kept.tolist()))
    for label in set(labels):
        assert sum(labels[row] == label for row in kept) == ceil(labels.count(label) * percent / 100 - 1e-9)


@given(st.lists(st.integers(0, 3), max_size=80), st.floats(0.001, 1), st.floats(0.001, 1))
def test_a_smaller_fraction_is_within_a_larger_one(labels: list[int], one: float, other: float) -> None:
    contents, found = hashes(len(labels)), np.array(labels, np.int64)
    small, large = (set(stratified_fraction(contents, found, share).tolist()) for share in sorted([one, other]))
    assert small <= large


@given(st.permutations(range(20)), st.floats(0.01, 1))
def test_the_order_of_rows_does_not_matter(order: list[int], fraction: float) -> None:
    contents, labels = hashes(20), np.arange(20) % 3
    kept = {contents[row] for row in stratified_fraction(contents, labels, fraction)}
    shuffled = [contents[row] for row in order]
    assert {shuffled[row] for row in stratified_fraction(shuffled, labels[order], fraction)} == kept


@given(st.lists(st.integers(0, 3), max_size=80), st.integers(1, 30), st.integers(1, 30), st.floats(0.01, 1))
def test_a_class_with_a_count_gives_as_many_and_the_others_their_share(
    labels: list[int], one: int, other: int, share: float
) -> None:
    contents, found = hashes(len(labels)), np.array(labels, np.int64)
    small, large = (set(stratified_fraction(contents, found, share, {2: n}).tolist()) for n in sorted([one, other]))
    assert small <= large
    assert sum(labels[row] == 2 for row in small) == min(labels.count(2), one, other)
    without = stratified_fraction(contents, found, share).tolist()
    assert {row for row in small if labels[row] != 2} == {row for row in without if labels[row] != 2}


def test_a_whole_is_not_lost_to_rounding() -> None:
    assert len(stratified_fraction(hashes(100), np.zeros(100, np.int64), 0.07)) == 7


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_a_fraction_is_above_0_and_at_most_1(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"^fraction is .*; needed above 0 and at most 1"):
        stratified_fraction(hashes(3), np.zeros(3, np.int64), fraction)


@pytest.mark.parametrize(
    ("counts", "labels"), [((100, 25, 24), [2]), ((100, 100, 26), []), ((7,), []), ((1, 400, 4, 390), [0, 2])]
)
def test_rare_is_what_has_fewer_than_a_quarter_of_the_largest_class(counts: tuple[int, ...], labels: list[int]) -> None:
    assert rare_labels(counts) == labels
