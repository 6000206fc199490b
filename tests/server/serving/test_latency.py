import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.serving.latency import Latency

SECONDS = st.floats(1e-4, 100)


@given(batches=st.lists(st.tuples(SECONDS, st.integers(1, 64)), max_size=8), deadline=SECONDS)
def test_queue_timeout_is_the_deadline_minus_one_batch_and_at_least_half_the_deadline(
    batches: list[tuple[float, int]], deadline: float
) -> None:
    latency = Latency()
    for seconds, images in batches:
        latency.record(seconds, images)
    longest, shortest = (max(batches)[0], min(batches)[0]) if batches else (0.0, 0.0)
    assert deadline / 2 <= latency.queue_timeout(deadline) <= deadline
    assert latency.queue_timeout(deadline) >= deadline - longest * (1 + 1e-9)
    assert latency.queue_timeout(deadline) == deadline / 2 or latency.queue_timeout(
        deadline
    ) <= deadline - shortest * (1 - 1e-9)


def test_estimated_wait_depends_on_recent_seconds_per_image_and_worker_count() -> None:
    latency = Latency()
    assert latency.estimate_wait(100, 2) == 0  # no measurement yet
    latency.record(0.8, 4)
    assert latency.estimate_wait(10, 2) == pytest.approx(10 * 0.2 / 2)
    assert latency.estimate_wait(10, 0) == pytest.approx(10 * 0.2)  # no worker is ready: one is assumed
    for _ in range(100):
        latency.record(0.1, 1)
    assert latency.estimate_wait(10, 1) == pytest.approx(1, rel=0.01)
