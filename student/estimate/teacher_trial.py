"""A short trial of the teacher job on this machine: the job's own code on a sample of the recipe's own images."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from student.estimate.machine import TeacherFigures
from student.estimate.sample import SampleSize, cut_sample
from student.estimate.workload import encodings_of
from teacher_cache.cache.encoding import Encoding
from teacher_cache.cache.layout import Unit
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.cache.zarr_codec import pack
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.plan import pair_order
from teacher_cache.data.shards import read_shard
from teacher_cache.data.view_reader import ViewReader
from teacher_cache.distributed.device import pick_device
from teacher_cache.labeling.labeler import Labeler
from teacher_cache.labeling.prepare import manifest_for, open_cache
from teacher_cache.labeling.unit_dataset import UnitDataset, unit_loader
from teacher_cache.models.teacher import Teacher, load_teacher
from teacher_cache.recipe import CacheRecipe

FIRST_ROWS = 8
LEAST_UNITS = 3
"""Of each worker; while it makes the first, the job comes up to its speed."""
LEAST_GROWTH, MOST_GROWTH = 1.5, 8.0
"""How many times as large a next sample is, at least, or there is none, and at most."""
AIM = 0.6
"""The share of the seconds that are left which a sample is meant to take."""


@dataclass(frozen=True)
class Calibration:
    """Rates, bytes of a target by encoding (digest apart), and the sample with its cache, to go on with."""

    teacher: TeacherFigures
    bytes: dict[str, float]
    sample: ShardIndex
    cache: TargetCache


@dataclass(frozen=True)
class _Trial:
    """One run of the job over a sample: its views, the seconds from opening the cache to its last unit, and the
    views a second once each worker had made a unit."""

    views: int
    seconds: float
    rate: float
    sample: ShardIndex
    cache: TargetCache


def calibrate(recipe: CacheRecipe, index: ShardIndex, seconds: float, folder: Path) -> Calibration:
    """Run the job for about `seconds` on samples in `folder`, or as long as the least of them takes.

    A job takes start_seconds + views / views_per_second. Larger samples follow while there is time; the rate is
    that of the last one's units but the first, which are made while the job starts.
    """
    began, device = time.monotonic(), pick_device(recipe.job.device)
    teacher = load_teacher(recipe.teacher, index.classes, recipe.views.size).to(device)
    if recipe.job.compile:
        teacher.network.compile()
    loaded = time.monotonic() - began
    job, until = _Job(recipe, index, teacher, device, folder), time.monotonic() + seconds
    first = trial = job.run(SampleSize(LEAST_UNITS * job.lanes, min(FIRST_ROWS, job.most)))
    while (views := AIM * (until - time.monotonic()) * trial.rate) > LEAST_GROWTH * trial.views:
        trial = job.run(job.size_for(min(views, MOST_GROWTH * trial.views)))
    logits, judged = _label(recipe, trial.sample, teacher, device, until - time.monotonic())
    largest = max(range(len(index.shards)), key=lambda number: index.shards[number].rows)
    labels = np.array([record.label for record in read_shard(index, largest)])
    sizes = {name: bytes_of(one, logits, labels) for name, one in encodings_of(recipe, len(index.classes)).items()}
    start = loaded + max(first.seconds - first.views / trial.rate, 0.0)
    figures = TeacherFigures(views_per_second=trial.rate, judged_per_second=judged, start_seconds=start)
    return Calibration(figures, sizes, trial.sample, trial.cache)


def bytes_of(encoding: Encoding, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Bytes of a target, digest apart, in chunks as large as a shard, of whose rows only some were judged.

    labels: of the whole shard; the teacher's classes take as much, and compress far worse in a chunk of a few.
    All else is told by two sizes of chunk, as an object has bytes of its own.
    """
    rows, half = len(labels), max(len(logits) // 2, 1)
    hard = len(pack([labels.astype(encoding.columns(1)["hard"].dtype)], 1)) / rows
    whole, part = (_packed(encoding, some) for some in (logits, logits[:half]))
    each = (whole - part) / (len(logits) - half) if half < len(logits) else whole
    return hard + each + max(whole - each * len(logits), 0) / rows


def _packed(encoding: Encoding, logits: NDArray[np.float32]) -> int:
    columns = encoding.encode(logits, np.zeros(len(logits), dtype=np.uint64))
    return sum(len(pack([values], 1)) for name, values in columns.items() if name not in ("hard", "digest"))


class _Job:
    """The recipe's job, on samples."""

    def __init__(
        self, recipe: CacheRecipe, index: ShardIndex, teacher: Teacher, device: torch.device, folder: Path
    ) -> None:
        self._recipe, self._index, self._teacher, self._device = recipe, index, teacher, device
        self._folder, self._number = folder, 0
        self.lanes, self.most = max(recipe.job.workers, 1), max(shard.rows for shard in index.shards)
        block, repeats = recipe.cache.seeds_per_unit, recipe.views.aug_repeats
        self.seeds = min(-(-repeats // block) * block, recipe.cache.seeds)

    def size_for(self, views: float) -> SampleSize:
        """A sample of about so many views, in as many units for each worker."""
        rows = views / self.seeds / self.lanes
        units = max(round(rows / self.most), LEAST_UNITS)
        return SampleSize(units * self.lanes, min(max(round(rows / units), 2), self.most))

    def run(self, size: SampleSize) -> _Trial:
        self._number += 1
        folder = self._folder / str(self._number)
        sample = cut_sample(self._index, size, folder / "shards")
        asked = self._recipe.cache.model_copy(update={"path": str(folder / "cache.zarr"), "seeds": self.seeds})
        recipe = self._recipe.model_copy(update={"cache": asked})
        began = time.monotonic()
        cache = open_cache(recipe, manifest_for(recipe, sample, self._teacher), extend=False)
        pieces = UnitDataset(cache.layout, {unit: [cache.where] for unit in cache.missing()}, sample, recipe.job)
        views, first = sample.rows * self.seeds, self.lanes * size.rows * len(cache.layout.seeds(Unit(0, 0)))
        taken, steady = 0, began
        with Labeler(self._teacher, cache, set(cache.missing()), self._device) as at_work:
            for piece in unit_loader(pieces, recipe.job.workers):
                at_work.submit(piece)
                assert piece.views  # no other job works on the sample
                taken += len(piece.views.batch.label)
                if taken <= first:
                    steady = time.monotonic()
            rate = (views - first) / (time.monotonic() - steady)
        return _Trial(views, time.monotonic() - began, rate, sample, cache)


def _label(
    recipe: CacheRecipe, sample: ShardIndex, teacher: Teacher, device: torch.device, most: float
) -> tuple[NDArray[np.float32], float]:
    """The teacher's logits (N, C) of a sample under one seed, and how many it gives a second.

    most: seconds after which no other batch is begun.
    """
    reader, logits, seconds = ViewReader(sample, recipe.views), list[NDArray[np.float32]](), 0.0
    for shard, start in _batches(sample, recipe.job.batch):
        order = pair_order(recipe.views, 0, shard, sample.shards[shard].rows)
        (examples,) = reader.read(shard, order[start : start + recipe.job.batch].tolist(), [0])
        began = time.monotonic()
        logits.append(teacher(examples.batch.mixed(device)).cpu().numpy())
        seconds += time.monotonic() - began
        if seconds > most:
            break
    return np.concatenate(logits), sum(map(len, logits)) / seconds


def _batches(sample: ShardIndex, size: int) -> Iterator[tuple[int, int]]:
    """Each batch's shard and first place in it."""
    for number, shard in enumerate(sample.shards):
        yield from ((number, start) for start in range(0, shard.rows, size))
