"""All images of a shard index, prepared for evaluation."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from teacher_cache.data.index import ShardIndex
from teacher_cache.data.loader import load
from teacher_cache.data.prefetch import prefetch
from teacher_cache.data.shards import damaged_image, read_shard
from teacher_cache.errors import ImageError, LoaderError
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

    The order is that of the index with 0 or 1 workers; several workers take the shards in turn.
    Raises ShardError for a damaged shard or an image that cannot be decoded, LoaderError as `load` does, or if the
    number of images is not that of the index.
    """
    dataset, seen = _EvalDataset(index, spec, batch), 0
    for images in load(dataset, min(workers, len(index.shards)), *index.urls):
        seen += len(images.keys)
        yield images
    if seen != index.rows:
        raise LoaderError(f"shards '{index.folder}': {seen:,} of {index.rows:,} images were evaluated; rerun")


class _EvalDataset:
    """Each of n workers reads every n-th shard."""

    def __init__(self, index: ShardIndex, spec: EvalSpec, batch: int) -> None:
        self._index, self._spec, self._batch = index, spec, batch

    def items(self, worker: int, workers: int) -> Iterator[EvalBatch]:
        for shard in prefetch(range(worker, len(self._index.shards), workers), self._index, int):
            records = read_shard(self._index, shard)
            for start in range(0, len(records), self._batch):
                chunk = records[start : start + self._batch]
                pixels = [self._prepare(shard, record.key, record.image) for record in chunk]
                yield EvalBatch(
                    [r.key for r in chunk], torch.stack(pixels), torch.tensor([r.label for r in chunk])
                )

    def _prepare(self, shard: int, key: str, image: bytes) -> Tensor:
        spec = self._spec
        try:
            return torch.from_numpy(decode_for_eval(image, spec.size, spec.crop, spec.interpolation))
        except ImageError as error:
            raise damaged_image(self._index.url(shard), key, error) from None
