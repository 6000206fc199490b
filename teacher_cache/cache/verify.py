"""`limbeck cache verify`: check every object's hash; draw, render and label some views again."""

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
from teacher_cache.data.index import ShardIndex, load_index
from teacher_cache.data.view_reader import ShardViews, ViewReader
from teacher_cache.errors import CacheError
from teacher_cache.models.teacher import Teacher, load_teacher
from teacher_cache.recipe import CacheRecipe
from teacher_cache.rng import generator

THREADS = 8
TOLERANCE = {"float32": 0.01, "tf32": 0.01, "bfloat16": 0.05}
"""Teacher's dtype -> allowed difference in probability between machines, for the same view."""
ROUNDING = {"float16": 0.002, "uint8": 0.03}
"""Encoding's values -> additional allowed difference, due to the rounding of stored logits."""


@dataclass(frozen=True)
class Sample:
    """One target to replay."""

    seed: int
    shard: int
    row: int


def verify(where: str, *, replay: int, teacher: bool, shards: str | None, seed: int) -> None:
    """Check a whole cache; logs one line for each problem, then raises CacheError if there were any.

    replay: number of random targets, drawn with `seed`, to render again. teacher: also label them again.
    shards: location of the shards; None: the location in the cache's recipe.
    """
    cache = TargetCache.open(where)
    present = sorted(cache.present())
    damaged, mismatched = cache.damaged_metadata() + _find_damage(cache, present), []
    if replay and present:
        index = open_shards(cache, shards)
        loaded_teacher = _load_cache_teacher(cache, index) if teacher else None
        mismatched = _replay(cache, index, loaded_teacher, _draw_samples(cache, present, replay, seed))
    for line in damaged + mismatched:
        log_line(line)
    checked = f"{len(present):,} of {count_of(cache.layout.unit_count, 'unit')}" + (
        f" and {count_of(replay, 'view')}" if replay else ""
    )
    if damaged or mismatched:
        advice = ["rebuild damaged units with: limbeck cache build RECIPE"] if damaged else []
        advice += (
            ["restore the libraries, shards and teacher that it was built with, or build a new cache"]
            if mismatched
            else []
        )
        count = count_of(len(damaged) + len(mismatched), "problem")
        raise CacheError(f"cache '{where}': {count} found in {checked}; {'; '.join(advice)}")
    log_line(f"cache '{where}': {checked} checked, no problems")
    if missing := cache.layout.unit_count - len(present):
        log_line(
            f"{count_of(missing, 'unit is', 'units are')} missing; "
            "complete the cache with: limbeck cache build RECIPE"
        )


def open_shards(cache: TargetCache, shards: str | None) -> ShardIndex:
    """Open the shards of a cache; raises CacheError if they differ from those it was built from."""
    index = load_index(shards or _recipe(cache).data.train)
    require_match(cache.manifest, {"shards": index.contents()}, cache.where, "give their location with --shards")
    return index


def _load_cache_teacher(cache: TargetCache, index: ShardIndex) -> Teacher:
    """Load the cache's teacher; raises CacheError if it differs from the one that built the cache."""
    size = cache.manifest.policy.size
    teacher = load_teacher(_recipe(cache).teacher, index.classes, size)
    identity = teacher.identity(size)
    require_match(cache.manifest, {"teacher": identity}, cache.where, "restore its teacher")
    return teacher


def _recipe(cache: TargetCache) -> CacheRecipe:
    return parse_recipe(cache.manifest.recipe, CacheRecipe, f"cache '{cache.where}': its recipe")


def _find_damage(cache: TargetCache, units: list[Unit]) -> list[str]:
    problems = []
    with progress("verify", len(units), "units") as bar, ThreadPoolExecutor(THREADS) as threads:
        for unit, damage in zip(units, threads.map(cache.damage, units), strict=True):
            problems += [f"unit {cache.layout.marker_name(unit)}: {line}" for line in damage]
            bar.advance(1)
    return problems


def _draw_samples(cache: TargetCache, present: list[Unit], count: int, replay_seed: int) -> list[Sample]:
    rng = generator("verify", replay_seed)
    filled = [unit for unit in present if cache.rows[unit.shard]]
    samples = []
    for _ in range(count if filled else 0):
        unit = filled[rng.integers(len(filled))]
        seed, row = rng.choice(cache.layout.seeds(unit)), rng.integers(cache.rows[unit.shard])
        samples.append(Sample(int(seed), unit.shard, int(row)))
    return sorted(samples, key=lambda sample: (sample.shard, sample.seed, sample.row))


def _replay(cache: TargetCache, index: ShardIndex, teacher: Teacher | None, samples: list[Sample]) -> list[str]:
    """Render the samples again and, with a teacher, label them; returns one line for each difference."""
    reader = ViewReader(index, cache.manifest.policy)
    problems, largest = [], 0.0
    allowed = TOLERANCE[teacher.dtype] + ROUNDING[cache.encoding.values] if teacher else 0.0
    with progress("replay", len(samples), "views") as bar:
        for sample in samples:
            bar.advance(1)
            views = reader.read(sample.shard, [sample.row], [sample.seed])[0]
            try:
                targets = cache.read(sample.seed, sample.shard)
            except CacheError as error:
                problems.append(str(error))
                continue
            mismatches = targets.mismatches(views.rows, views.digest)
            if len(mismatches):  # of the sample, or of its mixing partner
                cause = cache.manifest.likely_cause()
                problems.append(
                    f"{_describe_view(views, mismatches[0])} differs from the one the teacher labeled; {cause}"
                )
            elif teacher:
                logits = teacher(views.batch.mixed(torch.device("cpu"))).numpy()
                difference = _probability_difference(cache.encoding, targets, sample.row, logits)
                largest = max(largest, difference)
                if difference > allowed:
                    view = _describe_view(views, 0)
                    problems.append(
                        f"{view}: the teacher's probability differs by {difference:.2g}, allowed is {allowed:.2g}"
                    )
    if teacher:
        what = "probability of its top class exceeds that of the stored label"
        if cache.encoding.kind != "hard":
            what = "probabilities differ from the stored ones"
        log_line(f"the teacher's {what} by at most {largest:.2g}; allowed is {allowed:.2g}")
    return list(dict.fromkeys(problems))  # a sample may be drawn twice


def _describe_view(views: ShardViews, index: int) -> str:
    key, row = views.keys[index], views.rows[index]
    return f"the view of '{key}' under seed {views.seed} (shard {views.shard}, row {row})"


def _probability_difference(encoding: Encoding, targets: Targets, row: int, logits: NDArray[np.float32]) -> float:
    """The largest difference in probability between a stored target and the teacher's new logits (1, C).

    hard: the probability of the teacher's top class minus that of the stored label.
    """
    new = torch.from_numpy(logits[0]).double().softmax(dim=0).numpy()
    if encoding.kind == "hard":
        return float(new.max() - new[int(targets.hard[row])])
    stored = encoding.select_rows(targets.columns, np.array([row]))
    classes = stored["index"][:, 0].astype(np.int64) if encoding.kind == "topk" else np.arange(encoding.classes)
    return float(np.abs(encoding.expand(stored, 1.0)[0, classes] - new[classes]).max())
