"""Read rows of a shard, decode each image once, and draw and render its views."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from cachetools import LRUCache
from numpy.typing import NDArray

from teacher_cache.data.index import ShardIndex
from teacher_cache.data.shards import Record, damaged_image, read_shard
from teacher_cache.data.view_batch import ViewBatch
from teacher_cache.errors import ImageError
from teacher_cache.views.decode import Pixels, decode
from teacher_cache.views.mix import Mix, draw_mix
from teacher_cache.views.policy import ViewPolicy
from teacher_cache.views.render import digest, render
from teacher_cache.views.view import draw_view


@dataclass(frozen=True)
class ShardViews:
    """Views of one shard under one seed, with their identity.

    keys: (N + E) record keys. rows: (N + E,) rows of the shard. digest: (N + E,) digest of each view's pixels and
    mixing. batch: the N samples and E other partners.
    """

    shard: int
    seed: int
    keys: tuple[str, ...]
    rows: NDArray[np.int64]
    digest: NDArray[np.uint64]
    batch: ViewBatch


class ViewReader:
    """Renders the views of rows of a shard under seeds.

    cached_shards: number of shards whose encoded records are cached, at least the number of streams read in turn.
    decoded_cache_bytes: maximum bytes of decoded images of the last shard in memory. The labeling job uses it to
    decode an image once for all seeds of a unit.
    """

    def __init__(
        self, index: ShardIndex, policy: ViewPolicy, cached_shards: int = 1, decoded_cache_bytes: int = 0
    ) -> None:
        self._index, self._policy = index, policy
        self._shards: LRUCache[int, list[Record]] = LRUCache(cached_shards)
        self._decoded_cache_bytes, self._decoded_bytes = decoded_cache_bytes, 0
        self._verified: set[int] = set()
        self._images: dict[tuple[int, int], Pixels] = {}
        self._mixes: LRUCache[tuple[int, int], Mix] = LRUCache(8 * cached_shards)

    def read(self, shard: int, rows: Sequence[int], seeds: Sequence[int]) -> list[ShardViews]:
        """Render the views of some rows, one ShardViews per seed; each image is decoded once.

        Raises ShardError for a damaged shard, or for an image that cannot be decoded, naming its key.
        """
        records = self._records(shard)
        mixes = [self._mix(shard, seed, len(records)) for seed in seeds]
        needed = list(dict.fromkeys((*rows, *(int(mix.partner[row]) for mix in mixes for row in rows))))
        images = {row: self._image(shard, records[row]) for row in needed}
        return [self._render(shard, seed, rows, mix, images) for seed, mix in zip(seeds, mixes, strict=True)]

    def _render(
        self, shard: int, seed: int, rows: Sequence[int], mix: Mix, images: dict[int, Pixels]
    ) -> ShardViews:
        policy, records = self._policy, self._records(shard)
        partners = [int(mix.partner[row]) for row in rows]
        rendered = list(dict.fromkeys((*rows, *partners)))
        position_of = {row: position for position, row in enumerate(rendered)}
        keys = tuple(records[row].key for row in rendered)
        pixels = np.empty((len(rendered), policy.size, policy.size, 3), dtype=np.uint8)
        digests = np.empty(len(rendered), dtype=np.uint64)
        # first all draws, then all pixels: alternating takes 30 us more per view, because of the CPU's caches
        views = [
            draw_view(policy, seed, key, *images[row].shape[:2]) for key, row in zip(keys, rendered, strict=True)
        ]
        for position, (row, view) in enumerate(zip(rendered, views, strict=True)):
            pixels[position] = render(images[row], view, policy.size)
            digests[position] = digest(pixels[position])
        samples = np.array(rows)
        batch = ViewBatch(
            pixels=torch.from_numpy(pixels),
            label=torch.tensor([records[row].label for row in rows]),
            partner_label=torch.tensor([records[row].label for row in partners]),
            partner=torch.tensor([position_of[row] for row in partners]),
            lam=torch.from_numpy(mix.lam[samples]),
            cutmix=torch.from_numpy(mix.cutmix[samples]),
            box=torch.from_numpy(mix.box[samples]),
        )
        digests ^= mix.fingerprints[rendered]
        return ShardViews(shard, seed, keys, np.array(rendered), digests, batch)

    def _records(self, shard: int) -> list[Record]:
        if shard not in self._shards:
            self._shards[shard] = read_shard(self._index, shard, verify=shard not in self._verified)
            self._verified.add(shard)
            self._images.clear()
            self._decoded_bytes = 0
        return self._shards[shard]

    def _mix(self, shard: int, seed: int, rows: int) -> Mix:
        if (shard, seed) not in self._mixes:
            self._mixes[shard, seed] = draw_mix(self._policy, seed, shard, rows)
        return self._mixes[shard, seed]

    def _image(self, shard: int, record: Record) -> Pixels:
        image = self._images.get((shard, record.row))
        if image is None:
            try:
                image = decode(record.image)
            except ImageError as error:
                raise damaged_image(self._index.url(shard), record.key, error) from None
            if self._decoded_bytes + image.nbytes <= self._decoded_cache_bytes:
                self._images[shard, record.row] = image
                self._decoded_bytes += image.nbytes
        return image
