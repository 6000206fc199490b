"""Time to transfer one step's views from a loader worker to the training process.

    python benchmarks/hand_over.py [--views 16] [--size 32] [--steps 20]

For 4 and for 16 streams, as in training. Each step is requested after the worker has prepared it, so only the
transfer is timed. Prints milliseconds: median (min to max).
"""

import argparse
import statistics
import time
from collections.abc import Iterator

import torch

from student.data.batch import Batch
from student.data.loader import _StreamBatch
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
    """Yields the same step `repeats` times."""

    def __init__(self, step: list[_StreamBatch], repeats: int) -> None:
        self._step, self._repeats = step, repeats

    def items(self, worker: int, workers: int) -> Iterator[list[_StreamBatch]]:
        for _ in range(self._repeats):
            yield self._step


def transfer_milliseconds(step: list[_StreamBatch], repeats: int) -> list[float]:
    """Time each transfer from the request of a prepared step to its batches."""
    times = []
    loader = load(RepeatedStep(step, repeats + 1), 1)
    for number in range(repeats + 1):
        time.sleep(PREPARE_SECONDS)
        start = time.perf_counter()
        next(loader)
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
        times = transfer_milliseconds(step, options.steps)
        print(
            f"{streams} streams: {statistics.median(times):.1f} ms ({min(times):.1f} to {max(times):.1f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
