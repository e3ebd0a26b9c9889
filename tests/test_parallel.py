from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pipeline.parallel import in_parallel


@pytest.mark.parametrize("sizes", [[1] * 50, [3, 5, 8, 1, 1, 1, 9, 10, 2], [7, 30, 7, 30, 30, 1]])
def test_what_is_begun_before_its_turn_is_of_a_limited_size(sizes: list[int]) -> None:
    begun: list[int] = []
    found = []
    for place in in_parallel(
        lambda place: begun.append(place) or place,
        range(len(sizes)),
        threading.Event(),
        ahead=10,
        size=sizes.__getitem__,
    ):
        waiting = [sizes[each] for each in begun if each > place]
        assert sum(waiting) <= 10
        found.append(place)
    assert found == [*range(len(sizes))]
    assert sorted(begun) == found


def test_after_a_failure_nothing_more_is_begun() -> None:
    begun: list[int] = []

    def work(place: int) -> int:
        begun.append(place)
        return 1 // (place - 3)

    stopped = threading.Event()
    with pytest.raises(ZeroDivisionError):
        for _ in in_parallel(work, range(100), stopped, ahead=4):
            pass
    assert stopped.is_set()
    assert len(begun) < 10


def test_the_results_keep_the_order_and_only_a_little_is_taken_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for index in range(1000):
            taken.append(index)
            yield index

    results = in_parallel(lambda index: index * index, items(), threads=2, ahead=8)
    assert [next(results) for _ in range(10)] == [index * index for index in range(10)]
    assert len(taken) < 30
    assert list(results) == [index * index for index in range(10, 1000)]
