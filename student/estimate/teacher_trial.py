"""A short trial of the labeling job on this machine: runs the job's code on a sample of the recipe's images."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from student.estimate.machine import TeacherFigures
from student.estimate.sample import SampleSize, cut_sample
from student.estimate.workload import possible_encodings
from teacher_cache.cache.encoding import Encoding
from teacher_cache.cache.layout import Unit
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.cache.zarr_codec import pack
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.plan import pair_order
from teacher_cache.data.shards import read_shard
from teacher_cache.data.view_reader import ViewReader
from teacher_cache.distributed.device import pick_device
from teacher_cache.distributed.machine import loader_workers
from teacher_cache.labeling.labeler import Labeler
from teacher_cache.labeling.prepare import manifest_for, open_cache, place_on_device
from teacher_cache.labeling.unit_dataset import UnitDataset, unit_loader
from teacher_cache.models.teacher import Teacher, load_teacher
from teacher_cache.recipe import CacheRecipe

FIRST_ROWS = 8
MIN_UNITS = 3
"""Units per worker in a sample. The first one is not timed, because the job is still starting."""
MIN_GROWTH, MAX_GROWTH = 1.5, 8.0
"""Bounds of the size of the next sample relative to the last; below the minimum, the trial ends."""
SAMPLE_TIME_SHARE = 0.6
"""Share of the remaining time that the next sample is planned to take."""


@dataclass(frozen=True)
class Calibration:
    """Result of a trial. bytes: of a target without its digest, by encoding. sample, cache: of the last run."""

    teacher: TeacherFigures
    bytes: dict[str, float]
    sample: ShardIndex
    cache: TargetCache


@dataclass(frozen=True)
class _Trial:
    """One run of the job on a sample.

    seconds: from opening the cache to the last unit. views_per_second: after the first unit of each worker.
    """

    views: int
    seconds: float
    views_per_second: float
    sample: ShardIndex
    cache: TargetCache


def calibrate(recipe: CacheRecipe, index: ShardIndex, seconds: float, folder: Path) -> Calibration:
    """Run the job for about `seconds` on samples in `folder`, at least once on the smallest sample.

    A job takes start_seconds + views / views_per_second. The samples grow while there is time. The rate is that of
    the last sample, without the first unit of each worker.
    """
    started, device = time.monotonic(), pick_device(recipe.job.device)
    teacher = place_on_device(load_teacher(recipe.teacher, index.classes, recipe.views.size), recipe, device)
    load_seconds = time.monotonic() - started
    job, deadline = _SampleJob(recipe, index, teacher, device, folder), time.monotonic() + seconds
    first = trial = job.run(SampleSize(MIN_UNITS * job.workers, min(FIRST_ROWS, job.max_rows)))
    while (
        views := SAMPLE_TIME_SHARE * (deadline - time.monotonic()) * trial.views_per_second
    ) > MIN_GROWTH * trial.views:
        trial = job.run(job.size_for(min(views, MAX_GROWTH * trial.views)))
    logits, teacher_rate = _label(recipe, trial.sample, teacher, device, deadline - time.monotonic())
    largest = max(range(len(index.shards)), key=lambda number: index.shards[number].rows)
    labels = np.array([record.label for record in read_shard(index, largest)])
    sizes = {
        name: bytes_of(encoding, logits, labels)
        for name, encoding in possible_encodings(recipe, len(index.classes)).items()
    }
    start_seconds = load_seconds + max(first.seconds - first.views / trial.views_per_second, 0.0)
    figures = TeacherFigures(
        views_per_second=trial.views_per_second,
        teacher_images_per_second=teacher_rate,
        start_seconds=start_seconds,
    )
    return Calibration(figures, sizes, trial.sample, trial.cache)


def bytes_of(encoding: Encoding, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Bytes of a target without its digest in chunks of a whole shard, predicted from logits of some of its rows.

    labels: of the whole shard. They stand for the teacher's classes, which compress equally well in such a chunk
    and much worse in a chunk of few rows. The other columns are packed in chunks of two sizes, which separates the
    bytes per target from the fixed bytes per object.
    """
    rows, half = len(labels), max(len(logits) // 2, 1)
    hard = len(pack([labels.astype(encoding.columns(1)["hard"].dtype)], 1)) / rows
    all_bytes, half_bytes = (_packed(encoding, sample) for sample in (logits, logits[:half]))
    per_target = (all_bytes - half_bytes) / (len(logits) - half) if half < len(logits) else all_bytes
    return hard + per_target + max(all_bytes - per_target * len(logits), 0) / rows


def _packed(encoding: Encoding, logits: NDArray[np.float32]) -> int:
    columns = encoding.encode(logits, np.zeros(len(logits), dtype=np.uint64))
    return sum(len(pack([values], 1)) for name, values in columns.items() if name not in ("hard", "digest"))


class _SampleJob:
    """Runs the recipe's job on samples."""

    def __init__(
        self, recipe: CacheRecipe, index: ShardIndex, teacher: Teacher, device: torch.device, folder: Path
    ) -> None:
        self._recipe, self._index, self._teacher, self._device = recipe, index, teacher, device
        self._folder, self._number = folder, 0
        self._loaders = loader_workers(recipe.job.workers, device.type)
        self.workers, self.max_rows = max(self._loaders, 1), max(shard.rows for shard in index.shards)
        block, repeats = recipe.cache.seeds_per_unit, recipe.views.aug_repeats
        self.seeds = min(-(-repeats // block) * block, recipe.cache.seeds)

    def size_for(self, views: float) -> SampleSize:
        """A sample of about `views` views, with the same number of units for each worker."""
        rows = views / self.seeds / self.workers
        units = max(round(rows / self.max_rows), MIN_UNITS)
        return SampleSize(units * self.workers, min(max(round(rows / units), 2), self.max_rows))

    def run(self, size: SampleSize) -> _Trial:
        """Cut a sample, build its cache, and time the job."""
        self._number += 1
        folder = self._folder / str(self._number)
        sample = cut_sample(self._index, size, folder / "shards")
        cache_spec = self._recipe.cache.model_copy(
            update={"path": str(folder / "cache.zarr"), "seeds": self.seeds}
        )
        recipe = self._recipe.model_copy(update={"cache": cache_spec})
        started = time.monotonic()
        cache = open_cache(recipe, manifest_for(recipe, sample, self._teacher), extend=False)
        missing = {unit: [cache.where] for unit in cache.missing()}
        dataset = UnitDataset(cache.layout, missing, sample, recipe.job, self._loaders)
        views, first = sample.rows * self.seeds, self.workers * size.rows * len(cache.layout.seeds(Unit(0, 0)))
        submitted, warm_at = 0, started
        with Labeler(self._teacher, cache, set(cache.missing()), self._device) as labeler:
            for unit_batch in unit_loader(dataset):
                labeler.submit(unit_batch)
                assert unit_batch.views  # no other job works on the sample
                submitted += len(unit_batch.views.batch.label)
                if submitted <= first:
                    warm_at = time.monotonic()
            rate = (views - first) / (time.monotonic() - warm_at)
        return _Trial(views, time.monotonic() - started, rate, sample, cache)


def _label(
    recipe: CacheRecipe, sample: ShardIndex, teacher: Teacher, device: torch.device, max_seconds: float
) -> tuple[NDArray[np.float32], float]:
    """Label a sample under one seed: the teacher's (N, C) logits, and images per second.

    No further batch starts after `max_seconds`.
    """
    reader, logits, seconds = ViewReader(sample, recipe.views), list[NDArray[np.float32]](), 0.0
    for shard, start in _batches(sample, recipe.job.batch):
        order = pair_order(recipe.views, 0, shard, sample.shards[shard].rows)
        (views,) = reader.read(shard, order[start : start + recipe.job.batch].tolist(), [0])
        started = time.monotonic()
        logits.append(teacher(views.batch.mixed(device)).cpu().numpy())
        seconds += time.monotonic() - started
        if seconds > max_seconds:
            break
    return np.concatenate(logits), sum(map(len, logits)) / seconds


def _batches(sample: ShardIndex, size: int) -> Iterator[tuple[int, int]]:
    """Shard number and start of each batch in the shard's order."""
    for number, shard in enumerate(sample.shards):
        yield from ((number, start) for start in range(0, shard.rows, size))
