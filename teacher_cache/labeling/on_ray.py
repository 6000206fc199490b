"""`limbeck cache build --on ray`: the units of a labeling job are assigned to the actors of a Ray cluster."""

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
"""Number of actors that may be lost with the same unit, on nodes that remain, before the build fails."""


def build_on_ray(
    recipes: list[CacheRecipe], *, actors: int | None = None, extend: bool = False, check: bool = True
) -> list[TargetCache]:
    """Build several caches, as `build_all` does, with actors of the Ray cluster that this process has joined.

    actors: maximum number of actors; None starts as many as fit, on nodes that join later too. A unit of a lost
    actor is assigned again. Raises ClusterError if the cluster is too small for one actor, or for `actors`.
    """
    job = recipes[0].job
    resources = require_capacity("job", job.device, job.workers, actors or 1, "--actors")
    index, teachers = load_teachers(recipes)
    device = "cuda" if resources.gpus else job.device.replace("auto", "cpu")
    placed = [_with_workers(recipe, resources.workers) for recipe in recipes]
    start_args = (str(Path.cwd()), *map(ray.put, (placed, teachers, index)), device)
    pairs = list(zip(recipes, teachers, strict=True))
    scores: list[TeacherScore | None] = [None for _ in recipes]
    if any(recipe.teacher.min_accuracy for recipe in recipes):
        evaluate = ray.remote(evaluate_all).options(num_cpus=resources.cpus, num_gpus=resources.gpus)
        scores = get_result(evaluate.remote(*start_args))
        log_scores(scores, teachers)
    caches = open_caches(pairs, index, scores, extend)
    missing = _missing_units(caches, list(caches[0].layout.units()), check)
    units_per_actor = max(1, resources.workers) + 1
    with closing(ActorPool(BuildActor, start_args, resources, actors, units_per_actor)) as pool:
        while missing:
            missing = _missing_units(caches, _run(pool, caches[0].layout, missing), check=True)
    for cache in caches:
        log_state(cache)
    return caches


def _with_workers(recipe: CacheRecipe, workers: int) -> CacheRecipe:
    return recipe.model_copy(update={"job": recipe.job.model_copy(update={"workers": workers})})


def _missing_units(caches: list[TargetCache], units: list[Unit], check: bool) -> dict[Unit, list[str]]:
    """Find the missing and damaged ones among these units, each with the paths of the caches that need it."""
    incomplete = [set(wanted_units(cache, units, check)) for cache in caches]
    missing = {
        unit: [c.where for c, found in zip(caches, incomplete, strict=True) if unit in found] for unit in units
    }
    return {unit: paths for unit, paths in missing.items() if paths}


def _run(pool: ActorPool, layout: Layout, missing: dict[Unit, list[str]]) -> list[Unit]:
    """Assign these units until all are written. When none is unassigned, idle actors get second copies of units.

    Returns the units to check again: an actor that had the unit was killed or lost after another had written it.
    """
    views = {unit: len(layout.seeds(unit)) * layout.rows[unit.shard] for unit in layout.units()}
    done_views = sum(count for unit, count in views.items() if unit not in missing)
    queue, unwritten, recheck, any_lost = deque(missing), dict(missing), set[Unit](), False
    deaths = defaultdict[Unit, list[str]](list)  # the node of each actor lost with the unit
    with progress("cache", sum(views.values()), "views", start=done_views) as bar:
        while unwritten:
            pool.scale_up(len(unwritten) + any_lost)  # a spare actor, in case that of the last unit hangs
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
                    f"an actor was lost: {event.reason}; {count_of(len(requeued), 'unit')} of it assigned again"
                )
                _stop_if_unit_kills(deaths, layout.marker_name, event.reason)
            units_done = f"{layout.unit_count - len(unwritten):,} of {count_of(layout.unit_count, 'unit')}"
            bar.advance(labeled, f"{units_done}, {pool.describe()}")
    return sorted(recheck | pool.cancel_stragglers())


def _stop_if_unit_kills(deaths: dict[Unit, list[str]], name: Callable[[Unit], str], reason: str) -> None:
    """Raise ClusterError if a unit was lost with too many actors, not counting actors on lost nodes.

    All units are checked each time, since Ray reports a lost actor before it reports the lost node.
    """
    alive = {node.id for node in nodes()}
    for unit, node_ids in deaths.items():
        count = sum(node_id in alive for node_id in node_ids)
        if count >= MAX_DEATHS_PER_UNIT:
            raise ClusterError(
                f"unit {name(unit)} was lost with {count} actors, the last time: {reason}; "
                "if memory ran out, lower job.batch, job.workers or job.decoded_gib"
            )
