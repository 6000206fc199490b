"""The dataset of a labeling job: units cut into batches of rendered views."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch

from teacher_cache.cache.layout import Layout, Unit
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.console import log_line
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.loader import load
from teacher_cache.data.plan import pair_order
from teacher_cache.data.prefetch import prefetch
from teacher_cache.data.view_reader import ShardViews, ViewReader
from teacher_cache.distributed.machine import memory_bytes
from teacher_cache.recipe import JobSpec


@dataclass(frozen=True)
class UnitBatch:
    """Views of some rows of a unit under one of its seeds; None in place of them if another job has written it."""

    unit: Unit
    views: ShardViews | None

    def pin_memory(self) -> "UnitBatch":
        """Copy the tensors to pinned memory; `load` calls this."""
        if self.views is None:
            return self
        return replace(self, views=replace(self.views, batch=self.views.batch.pin_memory()))


class UnitDataset:
    """Each of n workers reads every n-th unit. The views in a batch do not depend on the number of workers.

    wanted: the units, each with the paths of the caches in which it is missing.
    """

    def __init__(self, layout: Layout, wanted: dict[Unit, list[str]], index: ShardIndex, job: JobSpec) -> None:
        self._layout, self._wanted, self._index, self._job = layout, wanted, index, job
        self.paths = {*index.urls, *(path for paths in wanted.values() for path in paths)}

    def items(self, worker: int, workers: int) -> Iterator[UnitBatch]:
        policy = self._layout.manifest.policy
        reader = ViewReader(self._index, policy, decoded_cache_bytes=decoded_bytes(self._job))
        caches: dict[str, TargetCache] = {}
        for unit, paths in self.units(worker, workers):
            caches |= {path: TargetCache.open(path) for path in paths if path not in caches}
            if all(caches[path].has(unit) for path in paths):
                yield UnitBatch(unit, None)
                continue
            for seed in self._layout.seeds(unit):
                order = pair_order(policy, seed, unit.shard, self._layout.rows[unit.shard])
                for start in range(0, len(order), self._job.batch):
                    rows = order[start : start + self._job.batch].tolist()
                    for views in reader.read(unit.shard, rows, [seed]):
                        yield UnitBatch(unit, views)

    def units(self, worker: int, workers: int) -> Iterator[tuple[Unit, list[str]]]:
        """Yield the units of one worker, each with the paths of the caches in which it is missing."""
        own = islice(self._wanted.items(), worker, None, workers)
        return prefetch(own, self._index, lambda wanted: wanted[0].shard)


def decoded_bytes(job: JobSpec) -> int:
    """Memory of each worker for decoded images in bytes: job.decoded_gib.

    If that is more than this machine's memory for all workers together, they share half of the memory.
    """
    wanted, memory, workers = int(job.decoded_gib * 2**30), memory_bytes(), max(job.workers, 1)
    return wanted if wanted * workers <= memory else memory // 2 // workers


def log_decoded_bytes(job: JobSpec) -> None:
    """Log one line if job.decoded_gib does not fit into the memory of this machine."""
    used = decoded_bytes(job) / 2**30
    if round(used, 3) < round(job.decoded_gib, 3):
        log_line(
            f"job.decoded_gib = {job.decoded_gib:g} for job.workers = {job.workers} exceeds the "
            f"{memory_bytes() / 2**30:.2f} GiB of memory of this process; using {used:.2f} GiB per worker"
        )


def unit_loader(dataset: UnitDataset, workers: int, in_order: bool = True) -> Iterator[UnitBatch]:
    """Load the batches of a dataset in worker processes, or in this process if `workers` is 0.

    in_order: take the workers' batches in turn, instead of as they become ready.
    """
    return load(dataset, workers, *dataset.paths, pin_memory=torch.cuda.is_available(), in_order=in_order)
