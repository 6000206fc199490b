"""`limbeck cache verify`: every object against its marker, and some views drawn, rendered and judged again."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from teacher_cache.cache.encoding import Encoding
from teacher_cache.cache.layout import Unit
from teacher_cache.cache.manifest import require_match
from teacher_cache.cache.target_cache import TargetCache, Targets
from teacher_cache.config import parse_recipe
from teacher_cache.console import count_of, log_line, progress
from teacher_cache.data.index import ShardIndex, load_index, shard_set
from teacher_cache.data.view_reader import ViewBatch, ViewReader, judge
from teacher_cache.errors import CacheError
from teacher_cache.models.teacher import Teacher, load_teacher
from teacher_cache.recipe import CacheRecipe
from teacher_cache.rng import generator

THREADS = 8
TOLERANCE = {"float32": 0.01, "bfloat16": 0.05}
"""By how much a probability may differ when a teacher of this dtype judges the same view on another machine."""
ROUNDING = {"float16": 0.002, "uint8": 0.03}
"""By how much it may differ because of how logits are stored."""


@dataclass(frozen=True)
class Draw:
    """One target to replay."""

    seed: int
    shard: int
    row: int


def verify(where: str, *, replay: int, teacher: bool, shards: str | None, choice: int) -> None:
    """Check a whole cache; raises CacheError, after a line for each thing found, where anything is wrong.

    replay: how many random targets (drawn from `choice`) to render anew. teacher: judge them again, too.
    """
    cache = TargetCache.open(where)
    present = sorted(cache.present())
    wrong, strange = cache.damaged_metadata() + _damaged(cache, present), []
    if replay and present:
        index = open_shards(cache, shards)
        judged = _teacher_of(cache, index) if teacher else None
        strange = _replayed(cache, index, judged, _draws(cache, present, replay, choice))
    for line in wrong + strange:
        log_line(line)
    told = f"{len(present):,} of {count_of(cache.layout.count, 'unit')}" + (
        f" and {count_of(replay, 'view')}" if replay else ""
    )
    if wrong or strange:
        advice = ["limbeck cache build RECIPE builds damaged units again"] if wrong else []
        advice += (
            ["restore the libraries, shards and teacher it was built with, or build a new cache"]
            if strange
            else []
        )
        count = count_of(len(wrong) + len(strange), "thing is", "things are")
        raise CacheError(f"cache '{where}': {count} wrong in {told}; {'; '.join(advice)}")
    log_line(f"cache '{where}': {told} checked, nothing is wrong")
    if missing := cache.layout.count - len(present):
        log_line(
            f"{count_of(missing, 'unit is', 'units are')} missing; limbeck cache build RECIPE completes the cache"
        )


def open_shards(cache: TargetCache, shards: str | None) -> ShardIndex:
    """The shards a cache was built from; raises CacheError where those found are others."""
    index = load_index(shards or _recipe(cache).data.train)
    require_match(cache.manifest, shard_set(index), cache.where, "name the right ones with --shards")
    return index


def _teacher_of(cache: TargetCache, index: ShardIndex) -> Teacher:
    """The cache's own teacher; raises CacheError where what lies in its place now is another."""
    size = cache.manifest.policy.size
    teacher = load_teacher(_recipe(cache).teacher, index.classes, size)
    identity = teacher.identity() | {"size": size}
    require_match(cache.manifest, {"teacher": identity}, cache.where, "restore its teacher")
    return teacher


def _recipe(cache: TargetCache) -> CacheRecipe:
    return parse_recipe(cache.manifest.recipe, CacheRecipe, f"cache '{cache.where}': its recipe")


def _damaged(cache: TargetCache, units: list[Unit]) -> list[str]:
    wrong = []
    with progress("verify", len(units), "units") as bar, ThreadPoolExecutor(THREADS) as threads:
        for unit, found in zip(units, threads.map(cache.damage, units), strict=True):
            wrong += [f"unit {cache.layout.marker_name(unit)}: {line}" for line in found]
            bar.advance(1)
    return wrong


def _draws(cache: TargetCache, present: list[Unit], count: int, choice: int) -> list[Draw]:
    rng = generator("verify", choice)
    filled = [unit for unit in present if cache.rows[unit.shard]]
    draws = []
    for _ in range(count if filled else 0):
        unit = filled[rng.integers(len(filled))]
        seed, row = rng.choice(cache.layout.seeds(unit)), rng.integers(cache.rows[unit.shard])
        draws.append(Draw(int(seed), unit.shard, int(row)))
    return sorted(draws, key=lambda draw: (draw.shard, draw.seed, draw.row))


def _replayed(cache: TargetCache, index: ShardIndex, teacher: Teacher | None, draws: list[Draw]) -> list[str]:
    """What differs of some targets when they are made anew."""
    reader = ViewReader(index, cache.manifest.policy)
    wrong, largest = [], 0.0
    allowed = TOLERANCE[teacher.dtype] + ROUNDING[cache.encoding.values] if teacher else 0.0
    with progress("replay", len(draws), "views") as bar:
        for draw in draws:
            bar.advance(1)
            examples = reader.read(draw.shard, [draw.row], [draw.seed])[0]
            try:
                targets = cache.read(draw.seed, draw.shard)
            except CacheError as error:
                wrong.append(str(error))
                continue
            strangers = targets.mismatches(examples.rows, examples.digest)
            if len(strangers):  # the drawn view, or the one that is mixed into it
                cause = cache.manifest.likely_cause()
                wrong.append(f"{_told(examples, strangers[0])} is not the one the teacher judged; {cause}")
            elif teacher:
                logits = judge(teacher, examples, torch.device("cpu")).numpy()
                apart = _apart(cache.encoding, targets, draw.row, logits)
                largest = max(largest, apart)
                if apart > allowed:
                    where = _told(examples, 0)
                    wrong.append(f"{where}: the teacher gives a probability that differs by {apart:.2g}")
    if teacher:
        what = "probabilities differ"
        if cache.encoding.kind == "hard":
            what = "favourite leads the kept label, in probability,"
        log_line(f"the teacher's {what} by at most {largest:.2g}; {allowed:.2g} is allowed")
    return list(dict.fromkeys(wrong))  # a view may be drawn twice


def _told(examples: ViewBatch, place: int) -> str:
    key, row = examples.keys[place], examples.rows[place]
    return f"the view of '{key}' under seed {examples.seed} (shard {examples.shard}, row {row})"


def _apart(encoding: Encoding, targets: Targets, row: int, logits: NDArray[np.float32]) -> float:
    """The largest difference in probability between a kept target and the teacher's new logits (1, C).

    Of a hard label: how much more the teacher now believes in its favourite than in that label.
    """
    now = torch.from_numpy(logits[0]).double().softmax(dim=0).numpy()
    if encoding.kind == "hard":
        return float(now.max() - now[int(targets.hard[row])])
    kept = encoding.rows(targets.columns, np.array([row]))
    classes = kept["index"][:, 0].astype(np.int64) if encoding.kind == "topk" else np.arange(encoding.classes)
    return float(np.abs(encoding.expand(kept, 1.0)[0, classes] - now[classes]).max())
