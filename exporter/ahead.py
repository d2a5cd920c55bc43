"""Compute the next blocks in other threads while the caller writes the last one."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
K = TypeVar("K")

THREADS = min(2, os.cpu_count() or 1)  # beyond two, the one that writes is what the others wait for


def ahead(make: Callable[[K], T], keys: Iterable[K], threads: int = THREADS) -> Generator[T]:
    """`make(key)` for each key, in order; at most `threads` results are made or waiting.

    numpy lets go of the interpreter lock, so threads serve; a single result is made by the
    caller. What `make` raises comes out at its turn; leaving early waits for what is under way.
    """
    keys = list(keys)
    if len(keys) < 2 or threads < 2:
        yield from map(make, keys)
        return
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for key in keys:
                if len(waiting) == threads:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(make, key))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
