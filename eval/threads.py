"""Work on arrays spread over threads: each runs its part whole, products on one thread, instead of waiting for others.

A product uses all cores by itself, what stands between two products uses one. Where the parts are independent it is
faster to give every core a part of its own.
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_info, threadpool_limits

Item = TypeVar("Item")
Made = TypeVar("Made")
LIMITED = threading.RLock()  # the limit is that of the process, and its end gives back what its begin found


def spread(work: Callable[[Item], Made], items: Iterable[Item]) -> list[Made]:
    """`work` of every item, in the order of the items, on as many threads as the linear algebra has (OMP_NUM_THREADS).

    `work` must be free of side effects. A work that spreads its own runs it on its own thread.
    """
    parts = list(items)
    threads = _threads() if len(parts) > 1 else 1
    if threads < 2:
        return list(map(work, parts))
    with LIMITED, threadpool_limits(1, "blas"), ThreadPoolExecutor(min(threads, len(parts))) as pool:
        return list(pool.map(work, parts))


def _threads() -> int:
    """How many the linear algebra would use here."""
    return max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)
