"""The dataset of a labeling job: units cut into batches of rendered views."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

from teacher_cache.cache.layout import Layout, Unit
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.console import count_of, log_line
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.loader import load
from teacher_cache.data.plan import pair_order
from teacher_cache.data.prefetch import prefetch
from teacher_cache.data.view_batch import ViewBatch, batch_arrays
from teacher_cache.data.view_reader import DrawnViews, ShardViews, ViewIdentity, ViewReader
from teacher_cache.distributed.machine import memory_bytes
from teacher_cache.distributed.ring_memory import check_ring_memory
from teacher_cache.loading.pace import Pace
from teacher_cache.loading.ring import SLOTS, ArraySpec, SharedRing, ring_bytes
from teacher_cache.recipe import CacheRecipe, JobSpec

EXTRAS = 2
"""Partners of a batch that are not its samples, at most: those of its first and its last row."""


@dataclass(frozen=True)
class UnitBatch:
    """Views of some rows of a unit under one of its seeds; None in place of them if another job has written it.

    The pixels are valid until the next two batches are requested.
    """

    unit: Unit
    views: ShardViews | None


@dataclass(frozen=True)
class _SentBatch:
    """What a worker sends of a UnitBatch; the rest is in its slot of the ring. number: counted by worker."""

    unit: Unit
    identity: ViewIdentity | None
    worker: int
    number: int


class UnitDataset:
    """Each of n workers reads every n-th unit. The views in a batch do not depend on the number of workers.

    wanted: the units, each with the paths of the caches in which it is missing.
    """

    def __init__(
        self, layout: Layout, wanted: dict[Unit, list[str]], index: ShardIndex, job: JobSpec, workers: int
    ) -> None:
        self._layout, self._wanted, self._index, self._job = layout, wanted, index, job
        self.workers = workers
        self.paths = {*index.urls, *(path for paths in wanted.values() for path in paths)}
        arrays = _batch_arrays(job, layout.rows, layout.manifest.policy.size)
        self.memory = SharedRing(arrays, max(workers, 1))

    def items(self, worker: int, workers: int) -> Iterator[_SentBatch]:
        policy = self._layout.manifest.policy
        reader = ViewReader(self._index, policy, decoded_cache_bytes=decoded_bytes(self._job, workers))
        caches, numbers = dict[str, TargetCache](), count()
        for unit, paths in self.units(worker, workers):
            caches |= {path: TargetCache.open(path) for path in paths if path not in caches}
            if all(caches[path].has(unit) for path in paths):
                yield _SentBatch(unit, None, worker, next(numbers))
                continue
            for seed in self._layout.seeds(unit):
                order = pair_order(policy, seed, unit.shard, self._layout.rows[unit.shard])
                for start in range(0, len(order), self._job.batch):
                    (drawn,) = reader.draw(unit.shard, order[start : start + self._job.batch].tolist(), [seed])
                    number = next(numbers)
                    yield _SentBatch(unit, self._write(drawn, worker, number), worker, number)

    def _write(self, drawn: DrawnViews, worker: int, number: int) -> ViewIdentity:
        arrays, samples = self.memory.slot(number, worker), drawn.samples
        for name, values in drawn.fields.items():
            arrays[name][:samples] = values
        return drawn.render(arrays["pixels"][:samples], arrays["pixels"][samples : samples + drawn.extras])

    def received(self, sent: _SentBatch) -> UnitBatch:
        """The batch of which a worker has sent the description."""
        if (identity := sent.identity) is None:
            return UnitBatch(sent.unit, None)
        tensors = self.memory.tensors(sent.number, sent.worker)
        fields = {name: tensor[: identity.samples] for name, tensor in tensors.items()}
        batch = ViewBatch(**fields | {"pixels": tensors["pixels"][: len(identity.rows)]})
        return UnitBatch(sent.unit, ShardViews(**vars(identity), batch=batch))

    def units(self, worker: int, workers: int) -> Iterator[tuple[Unit, list[str]]]:
        """Yield the units of one worker, each with the paths of the caches in which it is missing."""
        own = islice(self._wanted.items(), worker, None, workers)
        return prefetch(own, self._index, lambda wanted: wanted[0].shard)


def _batch_arrays(job: JobSpec, rows: Sequence[int], size: int) -> dict[str, ArraySpec]:
    """The arrays of a batch. rows: of each shard."""
    return batch_arrays(min(job.batch, max(rows, default=0)), EXTRAS, size)


def check_memory(recipe: CacheRecipe, index: ShardIndex, workers: int) -> None:
    """Log the memory of the batches, if notable, and of decoded images, if job.decoded_gib does not fit.

    Raises RecipeError if the machine has less memory than the batches need.
    """
    job, size, workers = recipe.job, recipe.views.size, max(workers, 1)
    arrays = _batch_arrays(job, [shard.rows for shard in index.shards], size)
    batches = f"{count_of(SLOTS * workers, 'batch', 'batches')} of job.batch = {job.batch:,} views of {size} px"
    advice = f"lower job.batch or job.workers = {workers}"
    check_ring_memory(ring_bytes(arrays, workers), batches, advice)
    log_decoded_bytes(job, workers)


def decoded_bytes(job: JobSpec, workers: int) -> int:
    """Memory of each worker for decoded images in bytes: job.decoded_gib.

    If that is more than this machine's memory for all workers together, they share half of the memory.
    """
    wanted, memory, workers = int(job.decoded_gib * 2**30), memory_bytes(), max(workers, 1)
    return wanted if wanted * workers <= memory else memory // 2 // workers


def log_decoded_bytes(job: JobSpec, workers: int) -> None:
    """Log one line if job.decoded_gib does not fit into the memory of this machine."""
    used = decoded_bytes(job, workers) / 2**30
    if round(used, 3) < round(job.decoded_gib, 3):
        log_line(
            f"job.decoded_gib = {job.decoded_gib:g} for job.workers = {workers} exceeds the "
            f"{memory_bytes() / 2**30:.2f} GiB of memory of this process; using {used:.2f} GiB per worker"
        )


def unit_loader(dataset: UnitDataset, in_order: bool = True, pace: Pace | None = None) -> Iterator[UnitBatch]:
    """Load the batches of a dataset in its worker processes, or in this process if it has none.

    in_order: take the workers' batches in turn, instead of as they become ready. pace: gets the
    pace of the workers.
    """
    pace = pace or Pace()
    sent_batches = load(
        dataset, dataset.workers, *dataset.paths, ring=dataset.memory, in_order=in_order, pace=pace
    )
    for sent in sent_batches:
        pace.views += sent.identity.samples if sent.identity else 0
        yield dataset.received(sent)
