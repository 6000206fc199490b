"""Time to hand one step's views from a loader worker to the training process.

    python benchmarks/hand_over.py [--views 16] [--size 32] [--steps 20]

Two ways in one run, for 4 and for 16 streams: one tensor for each field of each stream, and one share for all
streams of the worker, as training does it. Each step is requested when the worker has it ready, so that only the
hand-over is timed. Printed: milliseconds, median (least to most).
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from student.data.loader import _Part, _Share
from teacher_cache.data.loader import load

CLASSES, READY_SECONDS = 10, 0.15


def parts_of(views: int, size: int, streams: int) -> list[_Part]:
    """One step's parts: in each stream some views, and as many partners that are only mixed in."""
    count = views // streams
    fields = {
        "label": np.zeros(count, np.int64),
        "partner_label": np.zeros(count, np.int64),
        "partner": np.arange(count, 2 * count),
        "lam": np.ones(count, np.float32),
        "cutmix": np.zeros(count, bool),
        "box": np.zeros((count, 4), np.int64),
        "hard": np.zeros(count, np.int64),
        "soft": np.zeros((count, CLASSES), np.float32),
    }
    pixels = torch.zeros(2 * count, size, size, 3, dtype=torch.uint8)
    return [_Part(stream, pixels.clone(), fields) for stream in range(streams)]


class Steps(IterableDataset[Any]):
    """The same step again and again; as_share: one share instead of a tensor for each field of each stream."""

    def __init__(self, parts: list[_Part], as_share: bool, steps: int) -> None:
        self._parts, self._as_share, self._steps = parts, as_share, steps

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self._steps):
            if self._as_share:
                yield _Share(self._parts)
            else:
                yield [
                    [part.pixels.clone(), *(torch.from_numpy(field.copy()) for field in part.told.values())]
                    for part in self._parts
                ]


def milliseconds(parts: list[_Part], as_share: bool, steps: int) -> list[float]:
    """Of each step, from the request to the parts, when the worker has had time to get it ready."""
    found = []
    loader = iter(load(Steps(parts, as_share, steps + 1), 1))
    for number in range(steps + 1):
        time.sleep(READY_SECONDS)
        start = time.perf_counter()
        step = next(loader)
        if as_share:
            step.parts()
        if number:  # the worker starts during the first
            found.append(1000 * (time.perf_counter() - start))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=16)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for streams in (4, 16):
        parts = parts_of(chosen.views, chosen.size, streams)
        for as_share, name in ((False, "a tensor for each field of each stream"), (True, "one share")):
            found = milliseconds(parts, as_share, chosen.steps)
            middle = statistics.median(found)
            print(f"{streams} streams, {name}: {middle:.1f} ms ({min(found):.1f} to {max(found):.1f})", flush=True)


if __name__ == "__main__":
    main()
