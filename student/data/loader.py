"""Load training batches: worker processes render the read requests of the plan and read the cached targets."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np

from student.data.batch import Batch
from student.data.replay import CombinedReplay
from student.data.step_ring import SliceWriter, StepRing, step_arrays
from student.recipe import CacheRef
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.loader import load
from teacher_cache.data.plan import PlanSpec, ReadRequest, plan, steps_per_epoch
from teacher_cache.data.prefetch import prefetch
from teacher_cache.data.view_reader import ViewReader
from teacher_cache.distributed.ring_memory import check_ring_memory
from teacher_cache.distributed.world import World
from teacher_cache.errors import LoaderError
from teacher_cache.loading.pace import Pace
from teacher_cache.loading.ring import SLOTS, ArraySpec, ring_bytes


@dataclass(frozen=True)
class Feed:
    """The source of the batches of a run. cache: None without one. tau: temperature of soft targets, or None."""

    spec: PlanSpec
    index: ShardIndex
    cache: CacheRef | None
    tau: float | None
    world: World

    def steps_per_epoch(self) -> int:
        """Raises RecipeError if an epoch has no whole batch, or the processes cannot share the streams evenly."""
        next(plan(self.spec, self._rows(), 0, self.world))
        return steps_per_epoch(self.spec, self._rows())

    @property
    def streams(self) -> int:
        """Number of streams of this process."""
        return self.spec.streams // self.world.size

    def check_memory(self) -> None:
        """Log the memory of the batches, if notable. Raises RecipeError if the machine has less."""
        views, size = self.spec.batch // self.world.size, self.spec.policy.size
        nbytes = ring_bytes(step_arrays(self.spec, self.streams, self._targets()))
        advice = "lower train.batch or views.size, or use more machines"
        check_ring_memory(nbytes, f"{SLOTS} batches of {views:,} views of {size} px", advice)

    def batches(self, epochs: range, first_step: int, workers: int, pace: Pace | None = None) -> Iterator[Batch]:
        """Yield the batches of some epochs, from `first_step` of the first epoch. They do not depend on `workers`.

        A batch is in memory that later steps use again: it is valid until the next one is requested. The workers
        run through all epochs, so that they read the next epoch during the evaluation of the last. pace: gets the
        pace of the workers.
        """
        planned, step = len(epochs) * self.steps_per_epoch() - first_step, 0
        workers, pace = min(workers, self.streams), pace or Pace()
        ring = StepRing(self.spec, self.streams, self._targets())
        urls = (*self.index.urls, *(self.cache.paths if self.cache else ()))
        counts = load(_StepDataset(self, ring, epochs, first_step), workers, *urls, ring=ring.memory, pace=pace)
        while parts := list(islice(counts, max(workers, 1))):
            if sum(parts) != ring.views:
                raise LoaderError(f"{sum(parts):,} of {ring.views:,} views of a step were received; rerun")
            pace.views += ring.views
            yield ring.batch(step)
            step += 1
        if step != planned:
            raise LoaderError(f"{step:,} of {planned:,} steps were received from the workers; rerun")

    def _targets(self) -> dict[str, ArraySpec]:
        """One row of the targets of the cache; {} without one."""
        if self.cache is None:
            return {}
        targets = {"hard": ArraySpec((), np.int64)}
        if CombinedReplay(self.cache, self.tau, streams=1).has_soft:
            targets["soft"] = ArraySpec((len(self.index.classes),), np.float32)
        return targets

    def requests(self, epochs: range, first_step: int) -> Iterator[tuple[int, ReadRequest]]:
        """Yield (epoch, read request) for this process, in order."""
        for epoch in epochs:
            for request in plan(self.spec, self._rows(), epoch, self.world, first_step):
                yield epoch, request
            first_step = 0

    def _rows(self) -> list[int]:
        return [shard.rows for shard in self.index.shards]


class _StepDataset:
    """In each worker: renders the slices of the worker's streams, and yields the number of views of each step."""

    def __init__(self, feed: Feed, ring: StepRing, epochs: range, first_step: int) -> None:
        self._feed, self._ring, self._epochs, self._first_step = feed, ring, epochs, first_step

    def items(self, worker: int, workers: int) -> Iterator[int]:
        feed, processes = self._feed, self._feed.world.size
        streams = -(-feed.spec.streams // processes // workers)
        reader = ViewReader(feed.index, feed.spec.policy, cached_shards=streams + 1)
        replay = CombinedReplay(feed.cache, feed.tau, streams) if feed.cache else None
        requests = feed.requests(self._epochs, self._first_step)
        own = (item for item in requests if item[1].stream // processes % workers == worker)
        prefetched = prefetch(own, feed.index, lambda item: item[1].shard, streams)
        by_step = groupby(prefetched, key=lambda item: (item[0], item[1].step))
        for number, (_, items) in enumerate(by_step):
            views = 0
            for stream, slice_requests in groupby(items, key=lambda item: item[1].stream):
                writer = self._ring.slice(number, stream // processes)
                for _, request in slice_requests:
                    _write(writer, request, reader, replay)
                views += writer.written
            yield views


def _write(writer: SliceWriter, request: ReadRequest, reader: ViewReader, replay: CombinedReplay | None) -> None:
    for drawn in reader.draw(request.shard, request.rows, request.seeds):
        identity = writer.render(drawn)
        if replay:
            writer.put_targets(*replay.targets(identity))
