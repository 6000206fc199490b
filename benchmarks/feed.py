"""Pace at which a training process can take batches whose views are ready, beside torch's and timm's loaders.

    python benchmarks/feed.py [--batch 1024] [--size 224] [--workers 2] [--steps 60]

The workers are real, and so are plan, mixing, targets and the check of the digests; instead of decoding and
rendering, a view is copied from ready pixels. Hard and top-10 targets of 1000 classes are read from real caches.
The other loaders read the same ready pixels: torch's DataLoader with its default collate function, timm's
PrefetchLoader with its fast_collate on the same CPU (it also converts the pixels to normalized float32).
"M ms a batch" is the CPU time of the training process itself. Each loader's rounds alternate with the others'.
Quartiles are over rounds. Then our loader runs for --memory-steps steps: the memory of the training
process and its workers, pages that they share counted once, after the first steps and at the end.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from step import CLASSES, ROWS, make_cache
from timm.data.loader import PrefetchLoader, fast_collate
from torch.utils.data import DataLoader, Dataset

import student.data.loader
from student.data.loader import Feed
from student.recipe import CacheRef
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.data.index import Shard, ShardIndex
from teacher_cache.data.plan import PlanSpec
from teacher_cache.data.view_reader import DrawnViews, ViewIdentity, ViewReader
from teacher_cache.distributed.world import World
from teacher_cache.loading.ring import SLOTS
from teacher_cache.views.mix import draw_mix

STREAMS = 8
READY: NDArray[np.uint8] = np.empty(0, dtype=np.uint8)
"""(R, S, S, 3) pixels that stand for rendered views; forked workers share them."""
DIGESTS: NDArray[np.uint64] = np.empty(0, dtype=np.uint64)
"""(ROWS,) of the views, as in the caches."""


class ReadyViews(DrawnViews):
    """Views whose pixels are only copied."""

    def render(self, samples: NDArray[np.uint8], extras: NDArray[np.uint8]) -> ViewIdentity:
        for places, first in ((samples, 0), (extras, self.samples)):
            for number, place in enumerate(places, start=first):
                place[:] = READY[self.rows[number] % len(READY)]
        return ViewIdentity(self.shard, self.seed, self.keys, self.rows, DIGESTS[self.rows], self.samples)


class ReadyReader(ViewReader):
    """Draws ready views of any row."""

    def draw(self, shard: int, rows: Sequence[int], seeds: Sequence[int]) -> list[DrawnViews]:
        return [self._ready(shard, seed, np.array(rows)) for seed in seeds]

    def _ready(self, shard: int, seed: int, samples: NDArray[np.int64]) -> ReadyViews:
        if (shard, seed) not in self._mixes:
            self._mixes[shard, seed] = draw_mix(self._policy, seed, shard, ROWS)
        mix = self._mixes[shard, seed]
        drawn = list(dict.fromkeys((*samples.tolist(), *mix.partner[samples].tolist())))
        position = {row: number for number, row in enumerate(drawn)}
        fields = {
            "label": samples % CLASSES,
            "partner_label": mix.partner[samples] % CLASSES,
            "partner": np.array([position[row] for row in mix.partner[samples].tolist()]),
            "lam": mix.lam[samples],
            "cutmix": mix.cutmix[samples],
            "box": mix.box[samples],
        }
        keys = tuple(map(str, drawn))
        return ReadyViews(shard, seed, self._policy.size, keys, np.array(drawn), [], [], mix.fingerprints, fields)


class ReadyImages(Dataset[tuple[Any, int]]):
    """The same pixels as a map-style dataset: (3, S, S) uint8 in the form that the collate function takes."""

    def __init__(self, length: int, as_tensor: bool) -> None:
        self._length, self._as_tensor = length, as_tensor

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> tuple[Any, int]:
        pixels = READY[number % len(READY)].transpose(2, 0, 1)
        return (torch.from_numpy(pixels) if self._as_tensor else pixels), number % CLASSES


@dataclass(frozen=True)
class Round:
    """One loader's images per second, and the CPU milliseconds of the training process for a batch."""

    images_per_second: float
    own_ms: float


def run_round(batches: Iterator[Any], batch: int, steps: int) -> Round:
    """Take `steps` batches after the first ones, which start the workers."""
    for _ in range(4):
        next(batches)
    started, own = time.perf_counter(), time.process_time()
    for _ in range(steps):
        next(batches)
    seconds, own_seconds = time.perf_counter() - started, time.process_time() - own
    return Round(steps * batch / seconds, 1000 * own_seconds / steps)


def our_batches(options: argparse.Namespace, cache: TargetCache, tau: float | None) -> Iterator[Any]:
    shards = [Shard(f"{number}.tar", ROWS, 0, "") for number in range(len(cache.rows))]
    index = ShardIndex("none", tuple(shards), tuple(map(str, range(CLASSES))))
    spec = PlanSpec(cache.manifest.policy, 1, options.batch, STREAMS)
    feed = Feed(spec, index, CacheRef(path=cache.where), tau, World())
    return feed.batches(range(1_000_000), 0, options.workers)


def loaders(options: argparse.Namespace, folder: Path) -> dict[str, Callable[[], Iterator[Any]]]:
    """Functions that start each loader, by name."""
    global READY, DIGESTS
    rng = np.random.default_rng(0)
    READY = rng.integers(256, size=(256, options.size, options.size, 3), dtype=np.uint8)
    shards = 2 * STREAMS * max(1, options.batch // ROWS)
    caches = {kind: make_cache(folder / kind, kind, options.size, shards) for kind in ("hard", "topk")}
    digests = {kind: cache.read(0, 0).digest.astype(np.uint64) for kind, cache in caches.items()}

    def ours(kind: str, tau: float | None) -> Iterator[Any]:
        global DIGESTS
        DIGESTS = digests[kind]
        return our_batches(options, caches[kind], tau)

    def torchs() -> Iterator[Any]:
        images = ReadyImages(10**9, as_tensor=True)
        return iter(DataLoader(images, options.batch, num_workers=options.workers))

    def timms() -> Iterator[Any]:
        images = ReadyImages(10**9, as_tensor=False)
        loader = DataLoader(images, options.batch, num_workers=options.workers, collate_fn=fast_collate)
        return iter(PrefetchLoader(loader, device=torch.device("cpu")))

    return {
        "limbeck, hard targets": lambda: ours("hard", None),
        "limbeck, top-10 targets": lambda: ours("topk", 3.0),
        "torch DataLoader, no targets": torchs,
        "timm PrefetchLoader, no targets": timms,
    }


def memory_growth(batches: Iterator[Any], steps: int) -> tuple[float, float]:
    """Resident MiB of this process and its workers after 50 steps, and after `steps`."""

    def resident() -> float:
        us = psutil.Process()
        return sum(one.memory_full_info().pss for one in (us, *us.children())) / 2**20

    first = 0.0
    for number in range(steps):
        next(batches)
        if number == min(50, steps) - 1:
            first = resident()
    return first, resident()


def quartiles(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:,.1f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:,.1f} ({low:,.1f} to {high:,.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1024, help="views in a batch")
    parser.add_argument("--size", type=int, default=224, help="side of a view in pixels")
    parser.add_argument("--workers", type=int, default=2, help="loader processes")
    parser.add_argument("--steps", type=int, default=60, help="timed steps of our loader in a round")
    parser.add_argument("--other-steps", type=int, default=6, help="timed steps of the others in a round")
    parser.add_argument("--memory-steps", type=int, default=2000, help="steps over which memory is measured")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each loader")
    options = parser.parse_args()
    torch.set_num_threads(1)
    student.data.loader.ViewReader = ReadyReader  # type: ignore[misc]
    rounds: dict[str, list[Round]] = {}
    with tempfile.TemporaryDirectory() as folder:
        starts = loaders(options, Path(folder))
        for _ in range(options.rounds):
            for name, start in starts.items():
                steps = options.steps if name.startswith("limbeck") else options.other_steps
                rounds.setdefault(name, []).append(run_round(start(), options.batch, steps))
        first, last = memory_growth(starts["limbeck, top-10 targets"](), options.memory_steps)
    table = Table(
        title=f"batch {options.batch}, {options.size} px, {options.workers} workers", title_justify="left"
    )
    for column in ("loader", "images/s", "own ms a batch"):
        table.add_column(column, justify="left" if column == "loader" else "right")
    for name, found in rounds.items():
        paces, own = [one.images_per_second for one in found], [one.own_ms for one in found]
        table.add_row(name, quartiles(paces), quartiles(own))
    Console(width=110).print(table)
    ours = [found for name, found in rounds.items() if name.startswith("limbeck")]
    slowest = min(statistics.median(one.images_per_second for one in found) for found in ours)
    largest = max(statistics.median(one.own_ms for one in found) for found in ours)
    ring = SLOTS * options.batch * options.size**2 * 3 / 2**20
    print(
        f"memory: {first:,.0f} MiB after 50 steps, {last:,.0f} MiB after {options.memory_steps:,}; of it at least "
        f"{ring:,.0f} MiB are the {SLOTS} batches"
    )
    print(f"feed: {slowest:,.0f} images/s, {largest:.1f} ms a batch")


if __name__ == "__main__":
    main()
