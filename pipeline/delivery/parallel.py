"""Requests to a store, several at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_THREADS = 8


def in_parallel(
    work: Callable[[T], R], items: Iterable[T], stopped: threading.Event, *, ahead: int = 1000
) -> Iterator[R]:
    """The results in order, at most `ahead` items begun before their turn; an item is taken when its work is begun.

    At a failure nothing more is begun, and `stopped` tells what is under way to end.
    """
    pool = ThreadPoolExecutor(_THREADS)
    begun: deque[Future[R]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) > ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    except BaseException:
        stopped.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
