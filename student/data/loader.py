"""Batches: the plan's visits rendered in workers, each view checked against the cache's digest."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from student.data.batch import Batch
from student.data.replay import Teachers
from student.recipe import CacheRef
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.loader import load
from teacher_cache.data.plan import PlanSpec, ReadRequest, plan, steps_per_epoch
from teacher_cache.data.prefetch import prefetch
from teacher_cache.data.view_reader import ViewReader
from teacher_cache.distributed.world import World

COPIED_BYTES = 2**20
TOLD = ("label", "partner_label", "partner", "lam", "cutmix", "box")


@dataclass(frozen=True)
class _Part:
    """What one visit under one seed adds to a batch: N images, E views behind them that are only mixed in.

    told: by the names of Batch, arrays of the N; of a teacher what it gives.
    """

    stream: int
    pixels: Tensor
    told: dict[str, NDArray[Any]]

    @property
    def images(self) -> int:
        return len(self.told["label"])


class _Share:
    """A worker's parts of a step, on their way: pixels as one tensor in shared memory, which costs some
    milliseconds whatever its size; few pixels are copied with the rest instead."""

    def __init__(self, parts: list[_Part]) -> None:
        self._told = [(part.stream, len(part.pixels), part.told) for part in parts]
        pixels = torch.cat([part.pixels for part in parts])
        self._pixels = pixels if pixels.nbytes > COPIED_BYTES else pixels.numpy()

    def parts(self) -> list[_Part]:
        pixels = torch.as_tensor(self._pixels).split([count for _, count, _ in self._told])
        return [_Part(stream, own, told) for own, (stream, _, told) in zip(pixels, self._told, strict=True)]


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
        places = (*self.index.places, *(self.cache.paths if self.cache else ()))
        loader = load(_Parts(self, epochs, first_step), workers, *places)
        waiting: list[_Part] = []
        for number, ready in enumerate(loader, start=1):
            waiting += ready.parts()
            if number % max(workers, 1) == 0:  # every worker has handed in its streams of this step
                yield _collate(sorted(waiting, key=lambda part: part.stream))
                waiting = []

    def requests(self, epochs: range, first_step: int) -> Iterator[tuple[int, ReadRequest]]:
        """This process's visits with their epochs, in order."""
        for epoch in epochs:
            for visit in plan(self.spec, self._rows(), epoch, self.world, first_step):
                yield epoch, visit
            first_step = 0

    def _rows(self) -> list[int]:
        return [shard.rows for shard in self.index.shards]


class _Parts(IterableDataset[_Share]):
    """One share a step: the parts of the streams that this worker reads."""

    def __init__(self, feed: Feed, epochs: range, first_step: int) -> None:
        self._feed, self._epochs, self._first_step = feed, epochs, first_step

    def __iter__(self) -> Iterator[_Share]:
        feed, worker = self._feed, get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        streams = -(-feed.spec.streams // feed.world.size // workers)
        reader = ViewReader(feed.index, feed.spec.policy, shards_kept=streams + 1)
        replay = Teachers(feed.cache, feed.tau, streams) if feed.cache else None
        every = feed.requests(self._epochs, self._first_step)
        mine = (placed for placed in every if placed[1].stream // feed.world.size % workers == number)
        ahead = prefetch(mine, feed.index, lambda placed: placed[1].shard, streams)
        for _, of_step in groupby(ahead, key=lambda placed: (placed[0], placed[1].step)):
            yield _Share([part for _, visit in of_step for part in _parts(visit, reader, replay)])


def _parts(visit: ReadRequest, reader: ViewReader, replay: "Teachers | None") -> Iterator[_Part]:
    for examples in reader.read(visit.shard, visit.rows, visit.seeds):
        told = {name: getattr(examples, name).numpy() for name in TOLD}
        if replay:
            hard, soft = replay.targets(examples)
            told |= {"hard": hard.numpy()} | ({} if soft is None else {"soft": soft.numpy()})
        yield _Part(visit.stream, examples.pixels, told)


def _collate(parts: list[_Part]) -> Batch:
    """Join parts: the images of all of them first, then the views that are only mixed in."""
    before, behind = 0, sum(part.images for part in parts)
    partner = []
    for part in parts:
        places = part.told["partner"]
        partner.append(np.where(places < part.images, places + before, places - part.images + behind))
        before, behind = before + part.images, behind + len(part.pixels) - part.images
    joined = {name: np.concatenate([part.told[name] for part in parts]) for name in parts[0].told}
    told = {name: torch.from_numpy(array) for name, array in joined.items()}
    pixels = [part.pixels[: part.images] for part in parts] + [part.pixels[part.images :] for part in parts]
    told["partner"] = torch.from_numpy(np.concatenate(partner))
    own = {name: told[name] for name in TOLD}
    return Batch(pixels=torch.cat(pixels), hard=told.get("hard"), soft=told.get("soft"), **own)
