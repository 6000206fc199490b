"""`limbeck cache build --on ray`: the units of a teacher job, given out to whatever a Ray cluster has."""

from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import ray

from teacher_cache.cache.layout import Layout, Unit
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.cache.teacher_score import TeacherScore
from teacher_cache.console import count_of, log_line, progress
from teacher_cache.distributed.ray_cluster import get_result, nodes, require_capacity
from teacher_cache.errors import ClusterError
from teacher_cache.labeling.actor_pool import ActorPool, UnitDone
from teacher_cache.labeling.prepare import load_teachers, log_scores, log_state, open_caches, wanted_units
from teacher_cache.labeling.ray_actor import BuildActor, evaluate_all
from teacher_cache.recipe import CacheRecipe

WAIT_SECONDS = 1.0
MAX_DEATHS_PER_UNIT = 5
"""Actors that may die with one unit in their hands, on nodes that live on, before the unit is blamed."""


def build_on_ray(
    recipes: list[CacheRecipe], *, actors: int | None = None, extend: bool = False, check: bool = True
) -> list[TargetCache]:
    """As `build_all`, by actors of the Ray cluster that this process has joined.

    actors: at most so many; None for as many as the nodes hold, those that join later too. A unit whose actor
    died is given out again. Raises ClusterError where the cluster has too little for one actor, or for `actors`.
    """
    job = recipes[0].job
    resources = require_capacity("job", job.device, job.workers, actors or 1, "--actors")
    index, teachers = load_teachers(recipes)
    device = "cuda" if resources.gpus else job.device.replace("auto", "cpu")
    start_args = (str(Path.cwd()), *map(ray.put, (recipes, teachers, index)), device)
    pairs = list(zip(recipes, teachers, strict=True))
    scores: list[TeacherScore | None] = [None for _ in recipes]
    if any(recipe.teacher.min_accuracy for recipe in recipes):
        evaluate = ray.remote(evaluate_all).options(num_cpus=resources.cpus, num_gpus=resources.gpus)
        scores = get_result(evaluate.remote(*start_args))
        log_scores(scores, teachers)
    caches = open_caches(pairs, index, scores, extend)
    missing = _missing_units(caches, list(caches[0].layout.units()), check)
    units_per_actor = max(1, job.workers) + 1
    with closing(ActorPool(BuildActor, start_args, resources, actors, units_per_actor)) as pool:
        while missing:
            missing = _missing_units(caches, _run(pool, caches[0].layout, missing), check=True)
    for cache in caches:
        log_state(cache)
    return caches


def _missing_units(caches: list[TargetCache], units: list[Unit], check: bool) -> dict[Unit, list[str]]:
    """Of these units those that are not there, or not whole, and in which caches."""
    incomplete = [set(wanted_units(cache, units, check)) for cache in caches]
    missing = {
        unit: [c.where for c, found in zip(caches, incomplete, strict=True) if unit in found] for unit in units
    }
    return {unit: places for unit, places in missing.items() if places}


def _run(pool: ActorPool, layout: Layout, missing: dict[Unit, list[str]]) -> list[Unit]:
    """Have these units written; each is given out again until it is, at the end to two at a time.

    Returns those to be looked at again: somebody was killed, or died, at them after another had written them.
    """
    views = {unit: len(layout.seeds(unit)) * layout.rows[unit.shard] for unit in layout.units()}
    done_views = sum(count for unit, count in views.items() if unit not in missing)
    queue, unwritten, recheck, any_lost = deque(missing), dict(missing), set[Unit](), False
    deaths = defaultdict[Unit, list[str]](list)  # the nodes, once for each actor that died with the unit
    with progress("cache", sum(views.values()), "views", start=done_views) as bar:
        while unwritten:
            pool.scale_up(
                len(unwritten) + any_lost
            )  # where actors die, who has the last unit may stand still for ever
            while queue and pool.assign(queue[0], missing[queue[0]]):
                queue.popleft()
            if not queue:
                pool.speculate(unwritten)
            labeled = 0
            for event in pool.wait(WAIT_SECONDS):
                if isinstance(event, UnitDone):
                    labeled += views[event.unit] if unwritten.pop(event.unit, None) else 0
                    continue
                any_lost = True
                for unit in event.units:
                    deaths[unit].append(event.node)
                recheck.update(unit for unit in event.units if unit not in unwritten)
                requeued = [unit for unit in event.units if unit in unwritten and unit not in pool.units]
                queue.extendleft(reversed(requeued))
                log_line(
                    f"an actor was lost: {event.reason}; {count_of(len(requeued), 'unit')} of it given out again"
                )
                _stop_if_unit_kills(deaths, layout.marker_name, event.reason)
            bar.advance(
                labeled,
                f"{layout.unit_count - len(unwritten):,} of {count_of(layout.unit_count, 'unit')}, "
                f"{pool.describe()}",
            )
    return sorted(recheck | pool.cancel_stragglers())


def _stop_if_unit_kills(deaths: dict[Unit, list[str]], name: Callable[[Unit], str], reason: str) -> None:
    """Raises ClusterError where actors die of a unit; those whose node is gone by now died of that.

    Asked for all of them each time: an actor is heard to be lost before Ray knows that its node is.
    """
    alive = {node.id for node in nodes()}
    for unit, places in deaths.items():
        count = sum(place in alive for place in places)
        if count >= MAX_DEATHS_PER_UNIT:
            raise ClusterError(
                f"unit {name(unit)} was lost with {count} actors, the last because: {reason}; "
                "if memory ran out, lower job.batch, job.workers or job.decoded_gib"
            )
