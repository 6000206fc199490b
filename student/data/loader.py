"""Load training batches: worker processes render the read requests of the plan and read the cached targets."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch.utils.data import IterableDataset, get_worker_info

from student.data.batch import Batch
from student.data.replay import CombinedReplay
from student.recipe import CacheRef
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.loader import load
from teacher_cache.data.plan import PlanSpec, ReadRequest, plan, steps_per_epoch
from teacher_cache.data.prefetch import prefetch
from teacher_cache.data.view_reader import ViewReader
from teacher_cache.distributed.world import World

COPIED_BYTES = 2**20
"""Pixels of at most this size are copied from a worker, not sent in shared memory."""


@dataclass(frozen=True)
class _StreamBatch:
    """The part of a step's batch that one read request gives under one seed."""

    stream: int
    batch: Batch


class _PackedBatches:
    """The stream batches of one worker and step, packed for sending to the trainer.

    All pixels are one tensor, since each tensor in shared memory costs some milliseconds at any size. If it is
    small, and for all other fields, NumPy arrays are copied instead.
    """

    def __init__(self, parts: list[_StreamBatch]) -> None:
        self._streams = [part.stream for part in parts]
        self._counts = [len(part.batch.pixels) for part in parts]
        self._fields = [
            {name: tensor.numpy() for name, tensor in part.batch.tensors().items() if name != "pixels"}
            for part in parts
        ]
        pixels = torch.cat([part.batch.pixels for part in parts])
        self._pixels = pixels if pixels.nbytes > COPIED_BYTES else pixels.numpy()

    def unpack(self) -> Iterator[_StreamBatch]:
        pixels = torch.as_tensor(self._pixels).split(self._counts)
        for stream, own, arrays in zip(self._streams, pixels, self._fields, strict=True):
            fields = {name: torch.from_numpy(array) for name, array in arrays.items()}
            yield _StreamBatch(stream, Batch(pixels=own, **fields))


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
        received: list[_StreamBatch] = []
        for count, packed in enumerate(loader, start=1):
            received += packed.unpack()
            if count % max(workers, 1) == 0:  # every worker has sent its streams of this step
                received.sort(key=lambda part: part.stream)
                yield Batch.concatenate([part.batch for part in received])
                received = []

    def requests(self, epochs: range, first_step: int) -> Iterator[tuple[int, ReadRequest]]:
        """Yield (epoch, read request) for this process, in order."""
        for epoch in epochs:
            for request in plan(self.spec, self._rows(), epoch, self.world, first_step):
                yield epoch, request
            first_step = 0

    def _rows(self) -> list[int]:
        return [shard.rows for shard in self.index.shards]


class _StepDataset(IterableDataset[_PackedBatches]):
    """In each worker: one item per step, with the batches of the worker's streams."""

    def __init__(self, feed: Feed, epochs: range, first_step: int) -> None:
        self._feed, self._epochs, self._first_step = feed, epochs, first_step

    def __iter__(self) -> Iterator[_PackedBatches]:
        feed, worker = self._feed, get_worker_info()
        worker_id, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        streams = -(-feed.spec.streams // feed.world.size // workers)
        reader = ViewReader(feed.index, feed.spec.policy, cached_shards=streams + 1)
        replay = CombinedReplay(feed.cache, feed.tau, streams) if feed.cache else None
        requests = feed.requests(self._epochs, self._first_step)
        own = (item for item in requests if item[1].stream // feed.world.size % workers == worker_id)
        prefetched = prefetch(own, feed.index, lambda item: item[1].shard, streams)
        for _, step_requests in groupby(prefetched, key=lambda item: (item[0], item[1].step)):
            yield _PackedBatches(
                [part for _, request in step_requests for part in _stream_batches(request, reader, replay)]
            )


def _stream_batches(
    request: ReadRequest, reader: ViewReader, replay: CombinedReplay | None
) -> Iterator[_StreamBatch]:
    for read in reader.read(request.shard, request.rows, request.seeds):
        hard, soft = replay.targets(read) if replay else (None, None)
        yield _StreamBatch(request.stream, Batch(**vars(read.batch), hard=hard, soft=soft))
