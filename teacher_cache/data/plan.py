"""The plan of an epoch: which rows are read under which seeds, in which order. A pure function.

An epoch is one sequence of rows: the shards are shuffled, and in each shard the mixing pairs are shuffled,
partners side by side. The sequence is cut into streams of equal length. Step t takes the t-th slice of each
stream.
The numbers of processes and workers are not inputs, so they cannot change a batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from teacher_cache.distributed.world import World
from teacher_cache.errors import RecipeError
from teacher_cache.rng import generator
from teacher_cache.views.mix import draw_mix
from teacher_cache.views.policy import ViewPolicy


@dataclass(frozen=True)
class PlanSpec:
    """The inputs of the plan.

    batch: views in a global batch. streams: slices of each batch. seeds: number of seeds, in the cache if there is
    one. order: selects another order of shards and rows. first_seed: the first seed, 0 with a cache.
    Raises RecipeError if `batch` is not a multiple of streams x aug_repeats.
    """

    policy: ViewPolicy
    seeds: int
    batch: int
    streams: int
    order: int = 0
    first_seed: int = 0

    def __post_init__(self) -> None:
        if self.batch % (self.streams * self.policy.aug_repeats):
            raise RecipeError(
                f"batch = {self.batch} must be a multiple of streams x views.aug_repeats = "
                f"{self.streams} x {self.policy.aug_repeats}"
            )

    @property
    def rows_per_slice(self) -> int:
        return self.batch // self.streams // self.policy.aug_repeats


@dataclass(frozen=True)
class ReadRequest:
    """Rows of one shard to read under some seeds, for one stream's slice of one step."""

    step: int
    stream: int
    shard: int
    rows: tuple[int, ...]
    seeds: tuple[int, ...]


def epoch_seeds(spec: PlanSpec, epoch: int) -> tuple[int, ...]:
    """The seeds of an epoch; if there are fewer seeds than epochs, they repeat.

    With repeated augmentation, an epoch reads 1/repeats of the rows, each under `repeats` seeds. Then `repeats`
    consecutive epochs read every row once under each of those seeds.
    """
    repeats = spec.policy.aug_repeats
    first = spec.first_seed + epoch // repeats % (spec.seeds // repeats) * repeats
    return tuple(range(first, first + repeats))


def steps_per_epoch(spec: PlanSpec, rows: list[int]) -> int:
    """Number of whole batches in the shortest epoch. The rest of the rows is not read in that epoch."""
    repeats = spec.policy.aug_repeats
    samples = min(sum(_part(count, part, repeats)[1] for count in rows) for part in range(repeats))
    return samples // spec.streams // spec.rows_per_slice


def plan(spec: PlanSpec, rows: list[int], epoch: int, world: World, first_step: int = 0) -> Iterator[ReadRequest]:
    """Yield the read requests of one process in one epoch, in order of step and stream.

    rows: number of rows of each shard. The process takes the streams rank, rank + size, ...
    Raises RecipeError if the streams are not a multiple of the processes, or an epoch has no whole batch.
    """
    if spec.streams % world.size:
        raise RecipeError(
            f"{world.size} processes cannot share {spec.streams} streams; "
            f"set train.streams to a multiple of {world.size}"
        )
    steps = steps_per_epoch(spec, rows)
    if steps == 0:
        raise RecipeError(
            f"{sum(rows)} images do not fill one batch of {spec.batch}; use more images or a smaller batch"
        )
    epoch_order = _EpochOrder(spec, rows, epoch)
    seeds = epoch_seeds(spec, epoch)
    for step in range(first_step, steps):
        for stream in range(world.rank, spec.streams, world.size):
            start = stream * (epoch_order.length // spec.streams) + step * spec.rows_per_slice
            for shard, shard_rows in epoch_order.read(start, start + spec.rows_per_slice):
                yield ReadRequest(step, stream, shard, shard_rows, seeds)


class _EpochOrder:
    """The sequence of rows of an epoch. Any slice can be read without computing the others."""

    def __init__(self, spec: PlanSpec, rows: list[int], epoch: int) -> None:
        self._spec, self._rows, self._epoch = spec, rows, epoch
        self._part = epoch % spec.policy.aug_repeats
        self._shards = (
            generator("shards", *_order_name(spec.order), epoch).random(len(rows)).argsort(kind="stable")
        )
        counts = [_part(rows[shard], self._part, spec.policy.aug_repeats)[1] for shard in self._shards]
        self._ends = np.cumsum(counts)
        self.length = int(self._ends[-1])

    def read(self, start: int, stop: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Yield (shard, rows) for the positions start to stop - 1 of the sequence."""
        while start < stop:
            position = int(np.searchsorted(self._ends, start, side="right"))
            end = int(self._ends[position])
            order = self._order(int(self._shards[position]))
            last = len(order) - (end - min(stop, end))
            first = len(order) - (end - start)
            yield int(self._shards[position]), tuple(order[first:last].tolist())
            start = end

    def _order(self, shard: int) -> NDArray[np.int64]:
        repeats = self._spec.policy.aug_repeats
        first_seed = epoch_seeds(self._spec, self._epoch)[0]
        rows, pass_number = self._rows[shard], self._epoch // repeats
        pairs = pair_order(self._spec.policy, first_seed, shard, rows, pass_number, self._spec.order)
        first, count = _part(self._rows[shard], self._part, repeats)
        return pairs[first : first + count]


@lru_cache(maxsize=64)
def pair_order(
    policy: ViewPolicy, seed: int, shard: int, rows: int, pass_number: int = 0, order: int = 0
) -> NDArray[np.int64]:
    """All rows of a shard, (rows,) int64: shuffled pairs of mixing partners, then a row without a partner."""
    partner = draw_mix(policy, seed, shard, rows).partner
    places, rng = np.arange(rows), generator("order", *_order_name(order), pass_number, shard)
    if not policy.mixes:
        return rng.random(rows).argsort(kind="stable")
    lower = places[places < partner]
    shuffled = lower[rng.random(len(lower)).argsort(kind="stable")]
    pairs = np.stack((shuffled, partner[shuffled]), axis=1).ravel()
    return np.concatenate((pairs, places[places == partner]))


def _order_name(order: int) -> tuple[str, ...]:
    """The addition to a generator's name; empty for order 0."""
    return (f"order {order}",) if order else ()


def _part(rows: int, part: int, parts: int) -> tuple[int, int]:
    """Offset and length of one of `parts` parts of a shard's rows; pairs are not separated."""
    pairs = (rows + 1) // 2
    first, last = (min(2 * (pairs * cut // parts), rows) for cut in (part, part + 1))
    return first, last - first
