"""The teacher job: run convnets over the units their caches are missing."""

import os
import socket
import time
from contextlib import ExitStack

from teacher_cache.cache.layout import Unit
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.console import count_of, log_line, progress
from teacher_cache.data.index import ShardIndex
from teacher_cache.distributed.device import pick_device
from teacher_cache.distributed.world import World
from teacher_cache.labeling.labeler import Labeler
from teacher_cache.labeling.prepare import (
    load_teachers,
    log_scores,
    log_state,
    open_caches,
    place_on_device,
    wanted_units,
)
from teacher_cache.labeling.teacher_eval import evaluate_teacher
from teacher_cache.labeling.unit_dataset import UnitDataset, unit_loader
from teacher_cache.recipe import CacheRecipe
from teacher_cache.rng import generator
from teacher_cache.timing import Stopwatch


def build(
    recipe: CacheRecipe, world: World | None = None, *, extend: bool = False, check: bool = True
) -> TargetCache:
    """Bring a recipe's cache into being, or complete it.

    world: this process does every size-th unit, from rank on. Without one it does all that are missing, and other
    processes may do so beside it: none does what another has done. extend: the cache may have fewer seeds than the
    recipe, and grows. check: compare the units there with their markers; those that differ are built again.
    Raises CacheError naming each differing field where the cache was built from another recipe.
    """
    return build_all([recipe], world, extend=extend, check=check)[0]


def build_all(
    recipes: list[CacheRecipe], world: World | None = None, *, extend: bool = False, check: bool = True
) -> list[TargetCache]:
    """As `build`, for several caches of the same views (several teachers, several encodings), over one decode."""
    index, teachers = load_teachers(recipes)
    first, pairs = recipes[0], list(zip(recipes, teachers, strict=True))
    device = pick_device(first.job.device)
    exams = [evaluate_teacher(recipe, teacher, index.classes, device) for recipe, teacher in pairs]
    log_scores(exams, teachers)
    caches = open_caches(pairs, index, exams, extend)
    every = list(caches[0].layout.units())
    share = every[world.rank :: world.size] if world else every
    if world and world.size > 1:
        log_line(
            f"this job is rank {world.rank} of {world.size}: {len(share):,} of {count_of(len(every), 'unit')}"
        )
    wanted = [wanted_units(cache, share, check) for cache in caches]
    with ExitStack() as stack:
        judges = [
            stack.enter_context(Labeler(place_on_device(teacher, recipe, device), cache, set(units), device))
            for (recipe, teacher), cache, units in zip(pairs, caches, wanted, strict=True)
        ]
        _run(judges, _in_order(wanted, world), share, index, first)
    for cache in caches:
        log_state(cache)
    return caches


def _in_order(wanted: list[list[Unit]], world: World | None) -> list[Unit]:
    """Every unit that some cache wants. Jobs that know of no others go in different orders.

    Two that began at different places and went the same way would meet, and do the rest side by side, twice.
    """
    units = sorted({unit for units in wanted for unit in units})
    if world:
        return units
    order = generator("order", socket.gethostname(), os.getpid()).permutation(len(units))
    return [units[place] for place in order]


def _run(
    judges: list[Labeler], units: list[Unit], share: list[Unit], index: ShardIndex, recipe: CacheRecipe
) -> None:
    """Judge the views of these units; each is written as it becomes whole."""
    layout = judges[0].cache.layout
    views = {unit: len(layout.seeds(unit)) * layout.rows[unit.shard] for unit in share}
    for unit in (unit for unit in units if views[unit] == 0):
        for judge in judges:
            judge.commit_empty(unit)
    lacking = {
        unit: [judge.cache.where for judge in judges if judge.expects(unit)] for unit in units if views[unit]
    }
    loader = unit_loader(UnitDataset(layout, lacking, index, recipe.job), recipe.job.workers)
    before, everything = sum(views[unit] for unit in share if unit not in lacking), sum(views.values())
    left, done, waiting, began = dict(views), 0, Stopwatch(), time.monotonic()
    there = len(share) - len(lacking)
    with progress("cache", everything, "views", start=before) as bar:
        for piece in waiting.time_each(loader):
            count = left[piece.unit] if piece.examples is None else len(piece.examples.label)
            for judge in judges:
                judge.submit(piece)
            left[piece.unit] -= count
            done += left[piece.unit] == 0
            waited = waiting.seconds / max(time.monotonic() - began, 1e-9)
            bar.advance(
                count,
                f"{there + done:,} of {count_of(len(share), 'unit')}, {waited:.0%} of the time waiting for views",
            )
