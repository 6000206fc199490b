"""Read rows of a shard, decode each image once, and draw and render its views."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from cachetools import LRUCache
from numpy.typing import NDArray

from teacher_cache.data.index import ShardIndex
from teacher_cache.data.shards import Record, damaged_image, read_shard
from teacher_cache.data.view_batch import ViewBatch
from teacher_cache.disk_cache.decoded_cache import DecodedImages
from teacher_cache.errors import ImageError
from teacher_cache.views.decode import Pixels, count_pixels, decode
from teacher_cache.views.mix import Mix, draw_mix
from teacher_cache.views.policy import ViewPolicy
from teacher_cache.views.render import digest, render
from teacher_cache.views.view import View, draw_view


@dataclass(frozen=True)
class ViewIdentity:
    """What identifies views of one shard under one seed: N samples, then E other partners.

    keys: (N + E) record keys. rows: (N + E,) rows of the shard. digest: (N + E,) digest of each view's pixels and
    mixing. samples: N.
    """

    shard: int
    seed: int
    keys: tuple[str, ...]
    rows: NDArray[np.int64]
    digest: NDArray[np.uint64]
    samples: int


@dataclass(frozen=True)
class ShardViews(ViewIdentity):
    """Rendered views with their identity. batch: the N samples and E other partners."""

    batch: ViewBatch


@dataclass(frozen=True)
class DrawnViews:
    """Views that are drawn but not rendered, so that the caller decides where their pixels are written.

    images: the decoded image of each of the N + E rows. views: how each is rendered. fingerprints: (N + E,) of
    their mixing. fields: those of a ViewBatch of these views, without pixels.
    """

    shard: int
    seed: int
    size: int
    keys: tuple[str, ...]
    rows: NDArray[np.int64]
    images: list[Pixels]
    views: list[View]
    fingerprints: NDArray[np.uint64]
    fields: dict[str, NDArray[Any]]

    @property
    def samples(self) -> int:
        return len(self.fields["label"])

    @property
    def extras(self) -> int:
        """Number of partners that are not samples."""
        return len(self.rows) - self.samples

    def render(self, samples: Pixels, extras: Pixels) -> ViewIdentity:
        """Write the pixels: (N, S, S, 3) uint8 of the samples and (E, S, S, 3) of the other partners."""
        digests = np.empty(len(self.rows), dtype=np.uint64)
        for number, (image, view) in enumerate(zip(self.images, self.views, strict=True)):
            place = samples[number] if number < self.samples else extras[number - self.samples]
            place[:] = render(image, view, self.size)
            digests[number] = digest(place)
        return ViewIdentity(self.shard, self.seed, self.keys, self.rows, digests ^ self.fingerprints, self.samples)


class ViewReader:
    """Renders the views of rows of a shard under seeds.

    cached_shards: number of shards whose encoded records are cached, at least the number of streams read in turn.
    decoded_cache_bytes: maximum bytes of decoded images of the last shard in memory. The labeling job uses it to
    decode an image once for all seeds of a unit. With a decoded cache, images are read from the local disk.
    """

    def __init__(
        self, index: ShardIndex, policy: ViewPolicy, cached_shards: int = 1, decoded_cache_bytes: int = 0
    ) -> None:
        self._index, self._policy = index, policy
        self._shards: LRUCache[int, list[Record]] = LRUCache(cached_shards)
        self._decoded_cache_bytes, self._decoded_bytes = decoded_cache_bytes, 0
        self._verified: set[int] = set()
        self._images: dict[tuple[int, int], Pixels] = {}
        self._decoded: DecodedImages | None = None
        if index.decoded:
            self._decoded = DecodedImages(index.decoded, decode, count_pixels, cached_shards)
        self._mixes: LRUCache[tuple[int, int], Mix] = LRUCache(8 * cached_shards)

    def read(self, shard: int, rows: Sequence[int], seeds: Sequence[int]) -> list[ShardViews]:
        """Render the views of some rows, one ShardViews per seed; each image is decoded once.

        Raises ShardError for a damaged shard, or for an image that cannot be decoded, naming its key.
        """
        return [_render(drawn) for drawn in self.draw(shard, rows, seeds)]

    def draw(self, shard: int, rows: Sequence[int], seeds: Sequence[int]) -> list[DrawnViews]:
        """Decode the images of some rows and draw their views, one DrawnViews per seed. Raises as `read` does."""
        records = self._records(shard)
        mixes = [self._mix(shard, seed, len(records)) for seed in seeds]
        needed = list(dict.fromkeys((*rows, *(int(mix.partner[row]) for mix in mixes for row in rows))))
        images = {row: self._image(shard, records[row]) for row in needed}
        return [self._draw(shard, seed, rows, mix, images) for seed, mix in zip(seeds, mixes, strict=True)]

    def _draw(self, shard: int, seed: int, rows: Sequence[int], mix: Mix, images: dict[int, Pixels]) -> DrawnViews:
        records = self._records(shard)
        partners = [int(mix.partner[row]) for row in rows]
        drawn = list(dict.fromkeys((*rows, *partners)))
        position_of = {row: position for position, row in enumerate(drawn)}
        keys, samples = tuple(records[row].key for row in drawn), np.array(rows)
        fields: dict[str, NDArray[Any]] = {
            "label": np.array([records[row].label for row in rows]),
            "partner_label": np.array([records[row].label for row in partners]),
            "partner": np.array([position_of[row] for row in partners]),
            "lam": mix.lam[samples],
            "cutmix": mix.cutmix[samples],
            "box": mix.box[samples],
        }
        # all draws before all pixels: alternating takes 30 us more per view, because of the CPU's caches
        views = [
            draw_view(self._policy, seed, key, *images[row].shape[:2])
            for key, row in zip(keys, drawn, strict=True)
        ]
        pixels, size = [images[row] for row in drawn], self._policy.size
        return DrawnViews(shard, seed, size, keys, np.array(drawn), pixels, views, mix.fingerprints[drawn], fields)

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
        if image is None and self._decoded:
            image = self._decoded.image(shard, record.row, lambda: [one.image for one in self._records(shard)])
            if image is not None:
                return image
        if image is None:
            try:
                image = decode(record.image)
            except ImageError as error:
                raise damaged_image(self._index.url(shard), record.key, error) from None
            if self._decoded_bytes + image.nbytes <= self._decoded_cache_bytes:
                self._images[shard, record.row] = image
                self._decoded_bytes += image.nbytes
        return image


def _render(drawn: DrawnViews) -> ShardViews:
    pixels = np.empty((len(drawn.rows), drawn.size, drawn.size, 3), dtype=np.uint8)
    identity = drawn.render(pixels[: drawn.samples], pixels[drawn.samples :])
    fields = {name: torch.from_numpy(values) for name, values in drawn.fields.items()}
    return ShardViews(**vars(identity), batch=ViewBatch(pixels=torch.from_numpy(pixels), **fields))
