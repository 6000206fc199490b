"""The pace of workers does not depend on the process that receives their items."""

import time
from collections.abc import Iterator

import pytest

from teacher_cache.data.loader import load
from teacher_cache.loading.pace import Pace

VIEWS, ITEMS, SECONDS = 10, 6, 0.04


class SlowViews:
    """Items of VIEWS views. Worker 0 takes SECONDS for each, the others a third of that."""

    def items(self, worker: int, workers: int) -> Iterator[int]:
        for _ in range(ITEMS):
            time.sleep(SECONDS if worker == 0 else SECONDS / 3)
            yield VIEWS


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("receiver_seconds", [0.0, 0.06])
def test_it_is_that_of_the_slowest_worker_for_a_fast_and_a_slow_receiver(
    workers: int, receiver_seconds: float
) -> None:
    pace = Pace()
    for views in load(SlowViews(), workers, pace=pace):
        pace.views += views
        time.sleep(receiver_seconds)
    assert pace.workers == max(workers, 1)
    fastest = max(workers, 1) * VIEWS / SECONDS
    assert 0.6 * fastest < pace.views_per_second <= fastest


def test_it_is_zero_before_the_first_view() -> None:
    assert Pace().views_per_second == 0 and Pace().workers == 0
