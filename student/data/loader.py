"""Load training batches: worker processes render the read requests of the plan and read the cached targets."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice

from student.data.batch import Batch
from student.data.replay import CombinedReplay
from student.recipe import CacheRef
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.loader import load
from teacher_cache.data.plan import PlanSpec, ReadRequest, plan, steps_per_epoch
from teacher_cache.data.prefetch import prefetch
from teacher_cache.data.view_reader import ViewReader
from teacher_cache.distributed.world import World
from teacher_cache.errors import LoaderError


@dataclass(frozen=True)
class _StreamBatch:
    """The part of a step's batch that one read request gives under one seed."""

    stream: int
    batch: Batch


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

    def batches(self, epochs: range, first_step: int, workers: int) -> Iterator[Batch]:
        """Yield the batches of some epochs, from `first_step` of the first epoch. They do not depend on `workers`.

        The workers run through all epochs, so that they read the next epoch during the evaluation of the last.
        """
        workers = min(workers, self.spec.streams // self.world.size)
        urls = (*self.index.urls, *(self.cache.paths if self.cache else ()))
        loader = load(_StepDataset(self, epochs, first_step), workers, *urls)
        planned, steps = len(epochs) * self.steps_per_epoch() - first_step, 0
        while received := self._receive_step(loader, max(workers, 1)):
            steps += 1
            yield received.pop()
        if steps != planned:
            raise LoaderError(f"{steps:,} of {planned:,} steps were received from the workers; rerun")

    def _receive_step(self, loader: Iterator[list[_StreamBatch]], workers: int) -> list[Batch]:
        """The next step's batch in a list, or [] after the last step. Raises LoaderError if views are missing."""
        parts = [part for own in islice(loader, workers) for part in own]
        if not parts:
            return []
        views, planned = sum(len(part.batch.label) for part in parts), self.spec.batch // self.world.size
        if views != planned:
            raise LoaderError(f"{views:,} of {planned:,} views of a step were received from the workers; rerun")
        parts.sort(key=lambda part: part.stream)
        return [Batch.concatenate([part.batch for part in parts])]

    def requests(self, epochs: range, first_step: int) -> Iterator[tuple[int, ReadRequest]]:
        """Yield (epoch, read request) for this process, in order."""
        for epoch in epochs:
            for request in plan(self.spec, self._rows(), epoch, self.world, first_step):
                yield epoch, request
            first_step = 0

    def _rows(self) -> list[int]:
        return [shard.rows for shard in self.index.shards]


class _StepDataset:
    """In each worker: one item per step, with the batches of the worker's streams."""

    def __init__(self, feed: Feed, epochs: range, first_step: int) -> None:
        self._feed, self._epochs, self._first_step = feed, epochs, first_step

    def items(self, worker: int, workers: int) -> Iterator[list[_StreamBatch]]:
        feed = self._feed
        streams = -(-feed.spec.streams // feed.world.size // workers)
        reader = ViewReader(feed.index, feed.spec.policy, cached_shards=streams + 1)
        replay = CombinedReplay(feed.cache, feed.tau, streams) if feed.cache else None
        requests = feed.requests(self._epochs, self._first_step)
        own = (item for item in requests if item[1].stream // feed.world.size % workers == worker)
        prefetched = prefetch(own, feed.index, lambda item: item[1].shard, streams)
        for _, step_requests in groupby(prefetched, key=lambda item: (item[0], item[1].step)):
            yield [part for _, request in step_requests for part in _stream_batches(request, reader, replay)]


def _stream_batches(
    request: ReadRequest, reader: ViewReader, replay: CombinedReplay | None
) -> Iterator[_StreamBatch]:
    for read in reader.read(request.shard, request.rows, request.seeds):
        hard, soft = replay.targets(read) if replay else (None, None)
        yield _StreamBatch(request.stream, Batch(**vars(read.batch), hard=hard, soft=soft))
