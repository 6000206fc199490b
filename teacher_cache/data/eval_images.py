"""All images of a shard index, prepared for evaluation."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teacher_cache.data.index import ShardIndex
from teacher_cache.data.loader import load
from teacher_cache.data.prefetch import prefetch
from teacher_cache.data.shards import damaged_image, read_shard
from teacher_cache.distributed.machine import memory_bytes
from teacher_cache.distributed.world import World
from teacher_cache.errors import ImageError, LoaderError
from teacher_cache.loading.ring import SLOTS, ArraySpec, SharedRing
from teacher_cache.models.spec import EvalSpec
from teacher_cache.views.eval_transform import decode_for_eval

NO_LABEL = -1
"""The label of the images that pad a batch."""


@dataclass(frozen=True)
class EvalBatch:
    """B prepared images. pixels: (B, S, S, 3) uint8. label: (B,) int64. keys: record keys.

    A padded batch has fewer keys; the label of its other images is NO_LABEL.
    """

    keys: list[str]
    pixels: Tensor
    label: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {"pixels": self.pixels, "label": self.label}

    def to(self, device: torch.device) -> Self:
        """Copy to a device; from pinned memory, the copy runs asynchronously."""
        pixels, label = (tensor.to(device, non_blocking=True) for tensor in self.tensors().values())
        return replace(self, pixels=pixels, label=label)

    def unpadded(self) -> Self:
        images = len(self.keys)
        return replace(self, pixels=self.pixels[:images], label=self.label[:images])


def eval_batches(
    index: ShardIndex,
    spec: EvalSpec,
    batch: int,
    workers: int,
    world: World = World(),
    padded: bool = False,
) -> Iterator[EvalBatch]:
    """Yield the images of this process, prepared as `spec` says, in batches of at most `batch` images.

    The processes of `world`, and the workers of a process, share the rows of the index evenly. The order is that
    of the index with one process and 0 or 1 workers. padded: all batches have the same size. Pixels and labels are
    valid until the next two batches are requested. A quarter of the memory limits the number of workers.
    Raises ShardError for a damaged shard or an image that cannot be decoded, LoaderError as `load` does, or if the
    number of images is not that of the share.
    """
    rows = share(range(index.rows), world.rank, world.size)
    space = memory_bytes() // 4 // (SLOTS * batch * spec.size**2 * 3)  # number of workers whose batches fit
    workers = min(workers, len(rows), max(space, 1))
    dataset, seen = _EvalDataset(index, spec, rows, batch, workers), 0
    for sent in load(dataset, workers, *index.urls, ring=dataset.memory):
        seen += len(sent.keys)
        arrays = dataset.memory.tensors(sent.number, sent.worker)
        images = EvalBatch(sent.keys, arrays["pixels"], arrays["label"])
        yield images if padded else images.unpadded()
    if seen != len(rows):
        raise LoaderError(f"shards '{index.folder}': {seen:,} of {len(rows):,} images were evaluated; rerun")


def share(rows: range, number: int, of: int) -> range:
    """Part `number` of `of` parts of nearly equal length."""
    return rows[len(rows) * number // of : len(rows) * (number + 1) // of]


@dataclass(frozen=True)
class _SentImages:
    """What a worker sends of an EvalBatch; the rest is in its slot of the ring. number: counted by worker."""

    keys: list[str]
    worker: int
    number: int


@dataclass(frozen=True)
class _Span:
    """Consecutive rows of one shard."""

    shard: int
    rows: slice


class _EvalDataset:
    """Each of n workers reads one of n parts of the rows."""

    def __init__(self, index: ShardIndex, spec: EvalSpec, rows: range, batch: int, workers: int) -> None:
        self._index, self._spec, self._rows = index, spec, rows
        largest = max(-(-len(rows) // max(workers, 1)), 1)
        self._batch = -(-largest // -(-largest // batch))  # as many batches, of nearly equal size
        pixels = ArraySpec((self._batch, spec.size, spec.size, 3), np.uint8)
        label = ArraySpec((self._batch,), np.int64)
        self.memory = SharedRing({"pixels": pixels, "label": label}, max(workers, 1))

    def items(self, worker: int, workers: int) -> Iterator[_SentImages]:
        images = self._images(share(self._rows, worker, workers))
        for number in count():
            slot = self.memory.slot(number, worker)
            slot["label"][:] = NO_LABEL
            keys = []
            for place, (key, pixels, label) in enumerate(islice(images, self._batch)):
                slot["pixels"][place], slot["label"][place] = pixels, label
                keys.append(key)
            if not keys:
                return
            yield _SentImages(keys, worker, number)

    def _images(self, rows: range) -> Iterator[tuple[str, NDArray[np.uint8], int]]:
        for span in prefetch(self._spans(rows), self._index, lambda span: span.shard):
            for record in read_shard(self._index, span.shard)[span.rows]:
                yield record.key, self._prepare(span.shard, record.key, record.image), record.label

    def _spans(self, rows: range) -> Iterator[_Span]:
        """The parts of the shards that make up some rows of the index."""
        first = 0
        for shard, one in enumerate(self._index.shards):
            start, stop = max(rows.start - first, 0), min(rows.stop - first, one.rows)
            if start < stop:
                yield _Span(shard, slice(start, stop))
            first += one.rows

    def _prepare(self, shard: int, key: str, image: bytes) -> NDArray[np.uint8]:
        spec = self._spec
        try:
            return decode_for_eval(image, spec.size, spec.crop, spec.interpolation)
        except ImageError as error:
            raise damaged_image(self._index.url(shard), key, error) from None
