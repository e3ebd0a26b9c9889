"""Work on several items at a time, by threads, with the results in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_THREADS = 8


def in_parallel(
    work: Callable[[T], R],
    items: Iterable[T],
    stopped: threading.Event | None = None,
    *,
    threads: int = _THREADS,
    ahead: int = 1000,
    size: Callable[[T], int] = lambda _: 1,
) -> Generator[R, None, None]:
    """The results in order. What is begun and not yet yielded has the `size` `ahead` in all, or is one item.

    At a failure nothing more is begun, and `stopped` tells what is under way to end.
    """
    pool = ThreadPoolExecutor(threads)
    begun: deque[Future[R]] = deque()
    sizes: deque[int] = deque()
    try:
        for item in items:
            needed = size(item)
            while begun and sum(sizes) + needed > ahead:
                sizes.popleft()
                yield begun.popleft().result()  # and no name for it, which would keep it
            begun.append(pool.submit(work, item))
            sizes.append(needed)
        while begun:
            yield begun.popleft().result()
    except BaseException:
        if stopped:
            stopped.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
