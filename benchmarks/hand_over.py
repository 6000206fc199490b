"""Time to transfer one step's views from a loader worker to the training process.

    python benchmarks/hand_over.py [--views 16] [--size 32] [--steps 20]

Compares two forms of the same step, for 4 and for 16 streams: one tensor for each field of each stream, and all
streams of the worker packed together, as in training. Each step is requested after the worker has prepared it, so
only the transfer is timed. Prints milliseconds: median (min to max).
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

from student.data.batch import Batch
from student.data.loader import _PackedBatches, _StreamBatch
from teacher_cache.data.loader import load

CLASSES = 10
PREPARE_SECONDS = 0.15
"""Longer than the worker needs to prepare a step."""


def make_step(views: int, size: int, streams: int) -> list[_StreamBatch]:
    """One step: views / streams samples for each stream, each with a partner that is not a sample."""
    count = views // streams
    return [
        _StreamBatch(
            stream,
            Batch(
                pixels=torch.zeros(2 * count, size, size, 3, dtype=torch.uint8),
                label=torch.zeros(count, dtype=torch.int64),
                partner_label=torch.zeros(count, dtype=torch.int64),
                partner=torch.arange(count, 2 * count),
                lam=torch.ones(count),
                cutmix=torch.zeros(count, dtype=torch.bool),
                box=torch.zeros(count, 4, dtype=torch.int64),
                hard=torch.zeros(count, dtype=torch.int64),
                soft=torch.zeros(count, CLASSES),
            ),
        )
        for stream in range(streams)
    ]


class RepeatedStep:
    """Yields the same step `repeats` times, packed or as one tensor for each field of each stream."""

    def __init__(self, step: list[_StreamBatch], packed: bool, repeats: int) -> None:
        self._step, self._packed, self._repeats = step, packed, repeats

    def items(self, worker: int, workers: int) -> Iterator[Any]:
        for _ in range(self._repeats):
            if self._packed:
                yield _PackedBatches(self._step)
            else:
                yield [[tensor.clone() for tensor in part.batch.tensors().values()] for part in self._step]


def transfer_milliseconds(step: list[_StreamBatch], packed: bool, repeats: int) -> list[float]:
    """Time each transfer from the request of a prepared step to its batches."""
    times = []
    loader = iter(load(RepeatedStep(step, packed, repeats + 1), 1))
    for number in range(repeats + 1):
        time.sleep(PREPARE_SECONDS)
        start = time.perf_counter()
        received = next(loader)
        if packed:
            list(received.unpack())
        if number:  # the first time includes the start of the worker
            times.append(1000 * (time.perf_counter() - start))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=16, help="samples per step")
    parser.add_argument("--size", type=int, default=32, help="side of a view in pixels")
    parser.add_argument("--steps", type=int, default=20, help="timed steps")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for streams in (4, 16):
        step = make_step(options.views, options.size, streams)
        for packed, form in ((False, "one tensor for each field of each stream"), (True, "packed together")):
            times = transfer_milliseconds(step, packed, options.steps)
            median = statistics.median(times)
            print(f"{streams} streams, {form}: {median:.1f} ms ({min(times):.1f} to {max(times):.1f})", flush=True)


if __name__ == "__main__":
    main()
