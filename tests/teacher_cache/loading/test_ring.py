"""Tests of arrays that several processes share: workers write them in place, and nothing is left behind."""

import gc
import multiprocessing
import signal
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.loading.messages import PREFETCH
from teacher_cache.loading.pool import LoaderPool
from teacher_cache.loading.ring import HELD, SLOTS, ArraySpec, SharedRing

ARRAYS = {
    "pixels": ArraySpec((5, 3), np.uint8),
    "soft": ArraySpec((5,), np.float32),
    "one": ArraySpec((), np.int64),
}


class Numbers:
    """Item n fills every array of its slot with 10 n + worker, and sends (worker, n)."""

    def __init__(self, ring: SharedRing, items: int) -> None:
        self._ring, self._items = ring, items

    def items(self, worker: int, workers: int) -> Iterator[tuple[int, int]]:
        for number in range(self._items):
            for array in self._ring.slot(number, worker).values():
                array[...] = 10 * number + worker
            yield worker, number


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_what_a_worker_writes_is_there_without_a_copy(method: str) -> None:
    ring = SharedRing(ARRAYS, writers=2)
    pool = LoaderPool(Numbers(ring, 12), 2, method, in_order=True)
    try:
        seen = []
        while received := pool.receive():
            worker, number = received.pop()
            values = {float(value) for array in ring.slot(number, worker).values() for value in array.ravel()}
            seen.append((worker, number))
            assert values == {10 * number + worker}
    finally:
        pool.stop()
    assert seen == [(worker, number) for number in range(12) for worker in (0, 1)]


@given(st.data())
def test_the_last_taken_items_stay_whole_while_the_workers_go_on(data: st.DataObject) -> None:
    """A worker writes an item as soon as the one PREFETCH before it was taken; the HELD last ones are in use."""
    ring = SharedRing(ARRAYS)
    taken = data.draw(st.integers(HELD, 20))
    for number in range(taken + PREFETCH):
        for array in ring.slot(number).values():
            array[...] = number
    for number in range(taken - HELD, taken):
        assert all((array == number).all() for array in ring.slot(number).values())
    assert SLOTS == PREFETCH + HELD


def test_arrays_do_not_overlap_and_tensors_have_the_same_memory() -> None:
    ring, value = SharedRing(ARRAYS, writers=3), 0
    places = [(writer, number, name) for writer in range(3) for number in range(SLOTS) for name in ARRAYS]
    for value, (writer, number, name) in enumerate(places):
        ring.slot(number, writer)[name][...] = value
    for value, (writer, number, name) in enumerate(places):
        assert set(ring.tensors(number, writer)[name].flatten().tolist()) == {value}
    assert ring.nbytes >= 3 * SLOTS * (15 + 20 + 8)


def _fill_and_wait(ring: SharedRing, ready: Event) -> None:
    ring.slot(0)["pixels"][...] = 7
    ready.set()
    signal.pause()


def mapped_rings() -> list[str]:
    """The files that this process maps as rings."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return [line.split(maxsplit=5)[5] for line in lines if "limbeck-ring" in line]


def test_a_ring_outlives_a_killed_worker_has_no_name_and_ends_with_its_last_user() -> None:
    gc.collect()
    before = mapped_rings()
    context = multiprocessing.get_context("spawn")
    ring, ready = SharedRing(ARRAYS), context.Event()
    process = context.Process(target=_fill_and_wait, args=(ring, ready))
    process.start()
    assert ready.wait(60)
    process.kill()
    process.join()
    assert (ring.slot(0)["pixels"] == 7).all()
    assert mapped_rings() == [*before, "/memfd:limbeck-ring (deleted)"]
    del ring, process
    gc.collect()
    assert mapped_rings() == before
