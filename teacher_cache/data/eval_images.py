"""All images of a shard index, prepared for evaluation."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teacher_cache.data.index import ShardIndex
from teacher_cache.data.loader import load
from teacher_cache.data.prefetch import prefetch
from teacher_cache.data.shards import damaged_image, read_shard
from teacher_cache.errors import ImageError, LoaderError
from teacher_cache.loading.ring import ArraySpec, SharedRing
from teacher_cache.models.spec import EvalSpec
from teacher_cache.views.eval_transform import decode_for_eval


@dataclass(frozen=True)
class EvalBatch:
    """B prepared images of one shard. keys: B record keys. pixels: (B, S, S, 3) uint8. label: (B,) int64."""

    keys: list[str]
    pixels: Tensor
    label: Tensor


def eval_batches(index: ShardIndex, spec: EvalSpec, batch: int, workers: int) -> Iterator[EvalBatch]:
    """Yield every image of an index, prepared as `spec` says, in batches of at most `batch` images.

    The order is that of the index with 0 or 1 workers; several workers take the shards in turn. The pixels are
    valid until the next two batches are requested.
    Raises ShardError for a damaged shard or an image that cannot be decoded, LoaderError as `load` does, or if the
    number of images is not that of the index.
    """
    workers = min(workers, len(index.shards))
    dataset, seen = _EvalDataset(index, spec, batch, workers), 0
    if torch.cuda.is_available():
        dataset.memory.pin()
    for sent in load(dataset, workers, *index.urls):
        seen += len(sent.keys)
        pixels = dataset.memory.tensors(sent.number, sent.worker)["pixels"]
        yield EvalBatch(sent.keys, pixels[: len(sent.keys)], torch.tensor(sent.label))
    if seen != index.rows:
        raise LoaderError(f"shards '{index.folder}': {seen:,} of {index.rows:,} images were evaluated; rerun")


@dataclass(frozen=True)
class _SentImages:
    """What a worker sends of an EvalBatch; the pixels are in its slot of the ring. number: counted by worker."""

    keys: list[str]
    label: list[int]
    worker: int
    number: int


class _EvalDataset:
    """Each of n workers reads every n-th shard."""

    def __init__(self, index: ShardIndex, spec: EvalSpec, batch: int, workers: int) -> None:
        self._index, self._spec, self._batch = index, spec, batch
        rows = min(batch, max((shard.rows for shard in index.shards), default=0))
        pixels = ArraySpec((rows, spec.size, spec.size, 3), np.uint8)
        self.memory = SharedRing({"pixels": pixels}, max(workers, 1))

    def items(self, worker: int, workers: int) -> Iterator[_SentImages]:
        numbers = count()
        for shard in prefetch(range(worker, len(self._index.shards), workers), self._index, int):
            records = read_shard(self._index, shard)
            for start in range(0, len(records), self._batch):
                chunk, number = records[start : start + self._batch], next(numbers)
                pixels = self.memory.slot(number, worker)["pixels"]
                for place, record in zip(pixels, chunk, strict=False):
                    place[:] = self._prepare(shard, record.key, record.image)
                yield _SentImages([r.key for r in chunk], [r.label for r in chunk], worker, number)

    def _prepare(self, shard: int, key: str, image: bytes) -> NDArray[np.uint8]:
        spec = self._spec
        try:
            return decode_for_eval(image, spec.size, spec.crop, spec.interpolation)
        except ImageError as error:
            raise damaged_image(self._index.url(shard), key, error) from None
