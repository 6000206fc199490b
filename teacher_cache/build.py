"""The teacher job: run the convnet over the units a cache is missing."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from teacher_cache.cache import TargetCache, Unit
from teacher_cache.encoding import Array
from teacher_cache.errors import RecipeError, RunError
from teacher_cache.journal import progress, say
from teacher_cache.manifest import Manifest, require
from teacher_cache.mix import blend
from teacher_cache.plan import pair_order
from teacher_cache.recipe import CacheRecipe, ViewPolicy, resolved
from teacher_cache.shards import ShardIndex, load_index
from teacher_cache.stream import Examples, ShardReader
from teacher_cache.teacher import Teacher, load_teacher
from teacher_cache.world import pick_device

KEEP_BYTES = 2**31
"""Of decoded images, in each worker; what is over is decoded again for each seed."""
LARGEST_LOGIT = float(np.finfo(np.float16).max) / 2  # so that differences fit too


@dataclass(frozen=True)
class Piece:
    """Some rows of one unit under one of its seeds."""

    unit: Unit
    examples: Examples


def build(recipe: CacheRecipe) -> TargetCache:
    """Bring a recipe's cache into being, or complete it: the units with a marker are left alone.

    Raises CacheError naming each differing field where the cache was built from another recipe.
    """
    index = load_index(recipe.data.train)
    teacher = load_teacher(recipe.teacher, index.classes, recipe.views.size)
    manifest = promise(recipe, index, teacher)
    if "://" in recipe.cache.path:
        raise RecipeError(f"cache.path '{recipe.cache.path}' is a URL; a cache lies in a local folder for now")
    path = Path(recipe.cache.path)
    is_there = (path / "zarr.json").exists()
    cache = TargetCache.open(path) if is_there else TargetCache.create(path, manifest)
    wanted = {name: value for name, value in manifest.plain().items() if name != "recipe"}
    require(cache.manifest, wanted, str(path), "choose another cache.path or restore the recipe")
    missing = cache.missing()
    run(cache, missing, index, recipe, teacher)
    done = len(list(cache.units()))
    say(f"cache '{path}' is complete: {done:,} units, {sum(cache.bytes_by_column().values()):,} bytes")
    return cache


def promise(recipe: CacheRecipe, index: ShardIndex, teacher: Teacher) -> Manifest:
    """The manifest of the cache that a recipe asks for."""
    spec = recipe.cache
    return Manifest(
        views=recipe.views.model_dump(mode="json"),
        teacher=teacher.identity() | {"size": recipe.views.size},
        encoding={
            "kind": spec.encoding,
            "k": min(spec.k, len(index.classes)) if spec.encoding == "topk" else 0,
            "digest_bits": spec.digest_bits,
        },
        shards=index.contents(),
        seeds=spec.seeds,
        seeds_per_unit=spec.seeds_per_unit,
        recipe=resolved(recipe),
    )


def run(cache: TargetCache, units: list[Unit], index: ShardIndex, recipe: CacheRecipe, teacher: Teacher) -> None:
    """Judge the views of these units and write them, one by one as they become whole."""
    policy = recipe.views
    device = pick_device(recipe.job.device)
    teacher.to(device)
    views = {unit: len(cache.seeds(unit)) * cache.rows[unit.shard] for unit in units}
    everything = sum(len(cache.seeds(unit)) * cache.rows[unit.shard] for unit in cache.units())
    pieces = _Pieces(cache, units, index, policy, recipe.job.batch)
    loader = DataLoader(pieces, batch_size=None, num_workers=min(recipe.job.workers, len(units)))
    unfinished: dict[Unit, _Unfinished] = {}
    with progress("cache", everything, "views", start=everything - sum(views.values())) as bar:
        for unit in units:
            if cache.rows[unit.shard] == 0:  # of which no piece will tell
                cache.write(unit, _Unfinished(cache, unit).columns())
        for piece in loader:
            unit, examples = piece.unit, piece.examples
            part = unfinished.setdefault(unit, _Unfinished(cache, unit))
            part.put(examples, judge(teacher, examples, device))
            bar.advance(len(examples.label), f"unit {unit.block}.{unit.shard}")
            if part.left == 0:
                cache.write(unit, unfinished.pop(unit).columns())


def judge(teacher: Teacher, examples: Examples, device: torch.device) -> Tensor:
    """The teacher's logits (N, C) for the mixed views of some examples.

    Raises RunError where they are no numbers, or none that float16 can hold.
    """
    mixed = blend(
        examples.pixels.to(device),
        examples.partner.to(device),
        examples.lam.to(device),
        examples.cutmix.to(device),
        examples.box.to(device),
    )
    logits: Tensor = teacher(mixed)
    sound = (logits.abs() <= LARGEST_LOGIT).all(dim=1)  # false for NaN too
    if not sound.all():
        key = examples.keys[int(sound.int().argmin())]
        raise RunError(
            f"teacher '{teacher.name}' answers the view of '{key}' under seed {examples.seed} with a logit "
            f"that is NaN or beyond {LARGEST_LOGIT:,.0f}; its training diverged, choose another"
        )
    return logits


class _Unfinished:
    """A unit in the making: logits and digests of the rows judged so far."""

    def __init__(self, cache: TargetCache, unit: Unit) -> None:
        self._encoding, self._seeds = cache.encoding, cache.seeds(unit)
        rows = cache.rows[unit.shard]
        self.left = len(self._seeds) * rows
        self._logits = np.empty((len(self._seeds), rows, self._encoding.classes), dtype=np.float32)
        self._digest: NDArray[np.uint64] = np.empty((len(self._seeds), rows), dtype=np.uint64)

    def put(self, examples: Examples, logits: Tensor) -> None:
        place, rows = examples.seed - self._seeds.start, examples.rows[: len(logits)]
        self._logits[place, rows] = logits.cpu().numpy()
        self._digest[place, rows] = examples.digest[: len(logits)]
        self.left -= len(rows)

    def columns(self) -> dict[str, Array]:
        encoded = [self._encoding.encode(*rows) for rows in zip(self._logits, self._digest, strict=True)]
        return {name: np.stack([columns[name] for columns in encoded]) for name in encoded[0]}


class _Pieces(IterableDataset[Piece]):
    """Every worker takes every n-th unit; which views lie in one batch does not depend on the workers."""

    def __init__(
        self, cache: TargetCache, units: list[Unit], index: ShardIndex, policy: ViewPolicy, batch: int
    ) -> None:
        self._work = [(unit, cache.seeds(unit)) for unit in units]
        self._rows, self._index, self._policy, self._batch = cache.rows, index, policy, batch

    def __iter__(self) -> Iterator[Piece]:
        worker = get_worker_info()
        mine = self._work[worker.id :: worker.num_workers] if worker else self._work
        reader = ShardReader(self._index, self._policy, keep_bytes=KEEP_BYTES)
        for unit, seeds in mine:
            for seed in seeds:
                order = pair_order(self._policy, seed, unit.shard, self._rows[unit.shard])
                for start in range(0, len(order), self._batch):
                    rows = order[start : start + self._batch].tolist()
                    for examples in reader.examples(unit.shard, rows, [seed]):
                        yield Piece(unit, examples)
