"""Work spread over threads: the order, the threads, the errors and the figures of work done alone."""

import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from eval.kernel import kid_interval, kid_subsets
from eval.memorisation import memorisation
from eval.prdc import prdc
from eval.threads import spread


def threads_of_products() -> int:
    return max(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")


def test_the_order_is_that_of_the_items_and_each_thread_has_products_of_its_own() -> None:
    with threadpool_limits(3, "blas"):
        barrier = threading.Barrier(3, timeout=20)  # passed only where three run at once

        def work(item: int) -> tuple[int, int]:
            if item < 3:
                barrier.wait()
            return item, threads_of_products()

        assert list(spread(work, range(7))) == [(item, 1) for item in range(7)]
        assert threads_of_products() == 3


def test_an_error_comes_through_and_leaves_the_threads_as_they_were() -> None:
    def work(item: int) -> float:
        return 1 / item

    with threadpool_limits(2, "blas"):
        with pytest.raises(ZeroDivisionError):
            list(spread(work, [1, 0, 1]))
        assert threads_of_products() == 2


def test_figures_do_not_depend_on_the_number_of_threads() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2100, 16)), rng.standard_normal((2300, 16)) * 1.1
    found = []
    for threads in (1, 3):
        with threadpool_limits(threads, "blas"):
            near = memorisation(b[:1200], b[1200:], a)
            subsets = kid_subsets(a, b, subsets=5, subset_size=1500)
            found.append((prdc(a, b, 5), kid_interval(a, b), subsets.tolist(), near.generated.tolist()))
    assert found[0] == found[1]
