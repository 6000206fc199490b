"""Batches: the plan's visits rendered in workers, each view checked against the cache's digest."""

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


@dataclass(frozen=True)
class _StreamBatch:
    """What one read request under one seed adds to the batch of a step."""

    stream: int
    batch: Batch


class _PackedBatches:
    """The stream batches of one worker and step, in the form that is sent to the trainer.

    All pixels are one tensor in shared memory, which costs some milliseconds whatever its size; if there are few,
    they are copied with the other fields. The other fields are NumPy arrays, which pickle copies.
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
    """Where an epoch's batches come from. cache: one or several, or None. tau: of the soft targets, or None."""

    spec: PlanSpec
    index: ShardIndex
    cache: CacheRef | None
    tau: float | None
    world: World

    def steps_per_epoch(self) -> int:
        """Raises RecipeError where an epoch holds no whole batch, or the streams cannot be shared out."""
        next(plan(self.spec, self._rows(), 0, self.world))
        return steps_per_epoch(self.spec, self._rows())

    def batches(self, epochs: range, first_step: int, workers: int) -> Iterator[Batch]:
        """The batches of some epochs, from a step of the first on; the same for any number of workers.

        The workers live through all epochs, so that the next one is read while the last is evaluated.
        """
        workers = min(workers, self.spec.streams // self.world.size)
        urls = (*self.index.urls, *(self.cache.paths if self.cache else ()))
        loader = load(_StepDataset(self, epochs, first_step), workers, *urls)
        received: list[_StreamBatch] = []
        for count, packed in enumerate(loader, start=1):
            received += packed.unpack()
            if count % max(workers, 1) == 0:  # every worker has handed in its streams of this step
                received.sort(key=lambda part: part.stream)
                yield Batch.concatenate([part.batch for part in received])
                received = []

    def requests(self, epochs: range, first_step: int) -> Iterator[tuple[int, ReadRequest]]:
        """This process's visits with their epochs, in order."""
        for epoch in epochs:
            for request in plan(self.spec, self._rows(), epoch, self.world, first_step):
                yield epoch, request
            first_step = 0

    def _rows(self) -> list[int]:
        return [shard.rows for shard in self.index.shards]


class _StepDataset(IterableDataset[_PackedBatches]):
    """One share a step: the parts of the streams that this worker reads."""

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
