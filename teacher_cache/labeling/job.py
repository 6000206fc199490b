"""The labeling job: run teachers over the units that are missing in their caches."""

import os
import socket
import time
from contextlib import ExitStack

from teacher_cache.cache.layout import Unit
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.console import count_of, log_line, progress
from teacher_cache.data.index import ShardIndex
from teacher_cache.distributed.bottleneck import Bottleneck
from teacher_cache.distributed.device import pick_device
from teacher_cache.distributed.machine import loader_workers
from teacher_cache.distributed.world import World
from teacher_cache.errors import LoaderError
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
from teacher_cache.labeling.unit_dataset import UnitDataset, check_memory, unit_loader
from teacher_cache.loading.pace import Pace
from teacher_cache.recipe import CacheRecipe
from teacher_cache.rng import generator
from teacher_cache.timing import Stopwatch


def build(
    recipe: CacheRecipe, world: World | None = None, *, extend: bool = False, check: bool = True
) -> TargetCache:
    """Create a recipe's cache, or write its missing units.

    world: this process writes the units rank, rank + size, ...; without it, all missing ones. Several processes
    without a world may work on one cache: each skips the units that another has written. extend: add seeds to a
    cache that has fewer than the recipe. check: compare existing units with their markers, and write damaged ones
    again. Raises CacheError, naming each field that differs, if the cache has another recipe.
    """
    return build_all([recipe], world, extend=extend, check=check)[0]


def build_all(
    recipes: list[CacheRecipe], world: World | None = None, *, extend: bool = False, check: bool = True
) -> list[TargetCache]:
    """Build several caches of the same views, as `build` does; each image is decoded once for all of them."""
    index, teachers = load_teachers(recipes)
    first, pairs = recipes[0], list(zip(recipes, teachers, strict=True))
    device = pick_device(first.job.device)
    workers = loader_workers(first.job.workers, device.type)
    check_memory(first, index, workers)
    scores = [evaluate_teacher(recipe, teacher, index.classes, device) for recipe, teacher in pairs]
    log_scores(scores, teachers)
    caches = open_caches(pairs, index, scores, extend)
    all_units = list(caches[0].layout.units())
    share = all_units[world.rank :: world.size] if world else all_units
    if world and world.size > 1:
        log_line(
            f"this job is rank {world.rank} of {world.size}: {len(share):,} of {count_of(len(all_units), 'unit')}"
        )
    wanted = [wanted_units(cache, share, check) for cache in caches]
    with ExitStack() as stack:
        labelers = [
            stack.enter_context(Labeler(place_on_device(teacher, recipe, device), cache, set(units), device))
            for (recipe, teacher), cache, units in zip(pairs, caches, wanted, strict=True)
        ]
        _label_units(labelers, _in_order(wanted, world), share, index, first, workers)
    for cache in caches:
        log_state(cache)
    return caches


def _in_order(wanted: list[list[Unit]], world: World | None) -> list[Unit]:
    """The units that at least one cache needs: in order with a world, else in a random order of this process.

    Processes without a world that used the same order would do the same units at the same time.
    """
    units = sorted({unit for units in wanted for unit in units})
    if world:
        return units
    order = generator("order", socket.gethostname(), os.getpid()).permutation(len(units))
    return [units[index] for index in order]


def _label_units(
    labelers: list[Labeler],
    units: list[Unit],
    share: list[Unit],
    index: ShardIndex,
    recipe: CacheRecipe,
    workers: int,
) -> None:
    """Label the views of these units; a unit is written when all its views are labeled."""
    layout = labelers[0].cache.layout
    views = {unit: len(layout.seeds(unit)) * layout.rows[unit.shard] for unit in share}
    for unit in (unit for unit in units if views[unit] == 0):
        for labeler in labelers:
            labeler.commit_empty(unit)
    missing = {
        unit: [labeler.cache.where for labeler in labelers if labeler.expects(unit)]
        for unit in units
        if views[unit]
    }
    pace = Pace()
    bottleneck = Bottleneck(pace, "job", "cache.seeds_per_unit")
    loader = unit_loader(UnitDataset(layout, missing, index, recipe.job, min(workers, len(missing))), pace=pace)
    done_views, total = sum(views[unit] for unit in share if unit not in missing), sum(views.values())
    views_left, stopwatch, started = dict(views), Stopwatch(), time.monotonic()
    done_units = len(share) - len(missing)
    with progress("cache", total, "views", start=done_views) as bar:
        for unit_batch in stopwatch.time_each(loader):
            unit, views_of_batch = unit_batch.unit, unit_batch.views
            count = views_left[unit] if views_of_batch is None else len(views_of_batch.batch.label)
            for labeler in labelers:
                labeler.submit(unit_batch)
            views_left[unit] -= count
            done_units += views_left[unit] == 0
            seconds = max(time.monotonic() - started, 1e-9)
            units_done, waited = f"{done_units:,} of {count_of(len(share), 'unit')}", stopwatch.seconds / seconds
            bar.advance(count, f"{units_done}, {waited:.0%} of the time waiting for views")
            if hint := bottleneck.describe(seconds, stopwatch.seconds):
                log_line(hint)
    if done_units != len(share):
        raise LoaderError(
            f"cache '{labelers[0].cache.where}': views were received for {done_units:,} of "
            f"{count_of(len(share), 'unit')}; rerun"
        )
