"""Batches: the plan's visits rendered in workers, each view checked against the cache's digest."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from student.ensemble import average
from student.loss import Truth
from student.recipe import CacheRef
from teacher_cache.ahead import reading_ahead
from teacher_cache.cache import TargetCache, Targets
from teacher_cache.errors import ReplayError
from teacher_cache.loader import load
from teacher_cache.mix import blend, mixed_labels
from teacher_cache.plan import PlanSpec, Visit, plan, steps_per_epoch
from teacher_cache.shards import ShardIndex
from teacher_cache.stream import Examples, ShardReader
from teacher_cache.world import World


@dataclass(frozen=True)
class Batch:
    """One step's views of B images; partners that are only mixed in stand behind them.

    pixels: (P, S, S, 3) uint8, P >= B. The rest as in Examples. hard: (B,) int64 and soft: (B, C) float32 of
    the teacher, or None.
    """

    pixels: Tensor
    label: Tensor
    partner_label: Tensor
    partner: Tensor
    lam: Tensor
    cutmix: Tensor
    box: Tensor
    hard: Tensor | None
    soft: Tensor | None

    def on(self, device: torch.device, classes: int) -> tuple[Tensor, Truth]:
        """Mixed pixels (B, 3, S, S) float32 in 0..255 and what they should be taken for, on a device."""
        pixels, partner, lam = self.pixels.to(device), self.partner.to(device), self.lam.to(device)
        mixed = blend(pixels, partner, lam, self.cutmix.to(device), self.box.to(device))
        label = mixed_labels(self.label.to(device), self.partner_label.to(device), lam, classes)
        hard, soft = (None if told is None else told.to(device) for told in (self.hard, self.soft))
        return mixed, Truth(label, hard, soft)

    def split(self, parts: int) -> list["Batch"]:
        """The images in equal parts, in order, each with its own partners behind it; parts must divide B."""
        if parts == 1:
            return [self]
        size = len(self.label) // parts
        return [self._cut(slice(start, start + size)) for start in range(0, size * parts, size)]

    def _cut(self, mine: slice) -> "Batch":
        pixels = torch.cat((self.pixels[mine], self.pixels[self.partner[mine]]))
        told = {name: tensor[mine] for name, tensor in vars(self).items() if tensor is not None}
        count = len(told["label"])
        return replace(self, **told | {"pixels": pixels, "partner": torch.arange(count, 2 * count)})


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

    def visits(self, epochs: range, first_step: int) -> Iterator[tuple[int, Visit]]:
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
        reader = ShardReader(feed.index, feed.spec.policy, shards_kept=streams + 1)
        replay = Teachers(feed.cache, feed.tau, streams) if feed.cache else None
        every = feed.visits(self._epochs, self._first_step)
        mine = (placed for placed in every if placed[1].stream // feed.world.size % workers == number)
        ahead = reading_ahead(mine, feed.index, lambda placed: placed[1].shard, streams)
        for _, of_step in groupby(ahead, key=lambda placed: (placed[0], placed[1].step)):
            yield _Share([part for _, visit in of_step for part in _parts(visit, reader, replay)])


def _parts(visit: Visit, reader: ShardReader, replay: "Teachers | None") -> Iterator[_Part]:
    for examples in reader.examples(visit.shard, visit.rows, visit.seeds):
        told = {name: getattr(examples, name).numpy() for name in TOLD}
        if replay:
            hard, soft = replay.targets(examples)
            told |= {"hard": hard.numpy()} | ({} if soft is None else {"soft": soft.numpy()})
        yield _Part(visit.stream, examples.pixels, told)


class Teachers:
    """What the caches of a recipe say of a view: the one teacher's own word, or the mean of several."""

    def __init__(self, caches: CacheRef, tau: float | None, streams: int) -> None:
        self._caches = caches
        alone = len(caches.paths) == 1
        self._replays = [Replay(path, tau if alone else tau or 1.0, streams) for path in caches.paths]

    def targets(self, examples: Examples) -> tuple[Tensor, Tensor | None]:
        """hard (N,) int64 and, at a temperature, soft (N, C). Raises ReplayError for a view that differs."""
        told = [replay.targets(examples) for replay in self._replays]
        if len(told) == 1:
            return told[0]
        softs = [
            F.one_hot(hard, replay.classes).float() if soft is None else soft
            for replay, (hard, soft) in zip(self._replays, told, strict=True)
        ]
        return average([hard for hard, _ in told], softs, self._caches.shares, self._caches.mean_of)


class Replay:
    """Reads targets from a cache, a (seed, shard) at a time, and checks that each view is the teacher's."""

    def __init__(self, path: str, tau: float | None, streams: int) -> None:
        self._cache = TargetCache.open(path)
        self._tau = None if self._cache.encoding.kind == "hard" else tau
        self.classes = self._cache.encoding.classes
        self._kept: OrderedDict[tuple[int, int], Targets] = OrderedDict()
        self._most = 2 * streams * self._cache.manifest.policy.aug_repeats

    def targets(self, examples: Examples) -> tuple[Tensor, Tensor | None]:
        """hard (N,) int64 and, at a temperature, soft (N, C), which a cache of hard labels lacks.

        Raises ReplayError for a view that differs.
        """
        targets = self._read(examples.seed, examples.shard)
        self._check(examples, targets)
        rows = examples.rows[: len(examples.label)]
        hard = torch.from_numpy(targets.hard[rows].astype(np.int64))
        if self._tau is None:
            return hard, None
        encoding = self._cache.encoding
        return hard, torch.from_numpy(encoding.expand(encoding.rows(targets.columns, rows), self._tau))

    def _read(self, seed: int, shard: int) -> Targets:
        if (seed, shard) not in self._kept:
            self._kept[seed, shard] = self._cache.read(seed, shard)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        self._kept.move_to_end((seed, shard))
        return self._kept[seed, shard]

    def _check(self, examples: Examples, targets: Targets) -> None:
        wrong = targets.strangers(examples.rows, examples.digest)
        if not len(wrong):
            return
        raise ReplayError(
            f"cache '{self._cache.where}': the view of '{examples.keys[wrong[0]]}' under seed {examples.seed} is "
            f"not the one the teacher judged ({len(wrong)} of {len(examples.rows)} views in this visit); "
            f"{self._cache.manifest.likely_cause()}; restore what changed or build a new cache"
        )


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
