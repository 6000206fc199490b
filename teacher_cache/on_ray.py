"""`limbeck cache build --on ray`: the units of a teacher job, given out to whatever a Ray cluster has."""

from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import ray

from teacher_cache.actor import BuildActor, examine_all
from teacher_cache.build import load_teachers, open_caches, say_exams, say_state, wanted_units
from teacher_cache.cache import TargetCache
from teacher_cache.cluster import answer, nodes, require_room
from teacher_cache.crew import Crew, Done
from teacher_cache.errors import ClusterError
from teacher_cache.exam import Exam
from teacher_cache.journal import progress, say, some
from teacher_cache.layout import Unit
from teacher_cache.recipe import CacheRecipe

WAIT_SECONDS = 1.0
LIVES = 5
"""Actors that may die with one unit in their hands, on nodes that live on, before the unit is blamed."""


def build_on_ray(
    recipes: list[CacheRecipe], *, actors: int | None = None, extend: bool = False, check: bool = True
) -> list[TargetCache]:
    """As `build_all`, by actors of the Ray cluster that this process has joined.

    actors: at most so many; None for as many as the nodes hold, those that join later too. A unit whose actor
    died is given out again. Raises ClusterError where the cluster has too little for one actor, or for `actors`.
    """
    job = recipes[0].job
    need = require_room("job", job.device, job.workers, actors or 1, "--actors")
    index, teachers = load_teachers(recipes)
    device = "cuda" if need.gpus else job.device.replace("auto", "cpu")
    start = (str(Path.cwd()), *map(ray.put, (recipes, teachers, index)), device)
    pairs = list(zip(recipes, teachers, strict=True))
    exams: list[Exam | None] = [None for _ in recipes]
    if any(recipe.teacher.min_accuracy for recipe in recipes):
        examine = ray.remote(examine_all).options(num_cpus=need.cpus, num_gpus=need.gpus)
        exams = answer(examine.remote(*start))
        say_exams(exams, teachers)
    caches = open_caches(pairs, index, exams, extend)
    every = list(caches[0].layout.units())
    wanted = [set(wanted_units(cache, every, check)) for cache in caches]
    lacking = {unit: [c.where for c, units in zip(caches, wanted, strict=True) if unit in units] for unit in every}
    lacking = {unit: places for unit, places in lacking.items() if places}
    if lacking:
        ahead = max(1, job.workers) + 1
        with closing(Crew(BuildActor, start, need, actors, ahead)) as crew:
            _run(crew, caches[0], lacking)
    for cache in caches:
        say_state(cache)
    return caches


def _run(crew: Crew, cache: TargetCache, lacking: dict[Unit, list[str]]) -> None:
    """Have these units written; each is given out again until it is."""
    layout = cache.layout
    views = {unit: len(layout.seeds(unit)) * layout.rows[unit.shard] for unit in layout.units()}
    there = sum(count for unit, count in views.items() if unit not in lacking)
    todo, done = deque(lacking), layout.count - len(lacking)
    died_on = defaultdict[Unit, list[str]](list)  # the nodes, once for each actor that died with the unit
    with progress("cache", sum(views.values()), "views", start=there) as bar:
        while todo or crew.units:
            crew.begin(len(todo) + crew.units)
            while todo and crew.give(todo[0], lacking[todo[0]]):
                todo.popleft()
            judged = 0
            for event in crew.wait(WAIT_SECONDS):
                if isinstance(event, Done):
                    judged, done = judged + views[event.unit], done + 1
                    continue
                todo.extendleft(reversed(event.units))
                for unit in event.units:
                    died_on[unit].append(event.node)
                say(f"an actor was lost: {event.reason}; {some(len(event.units), 'unit')} of it given out again")
                _stop_if_blamed(died_on, layout.marker_name, event.reason)
            bar.advance(judged, f"{done:,} of {some(layout.count, 'unit')}, {crew.told()}")


def _stop_if_blamed(died_on: dict[Unit, list[str]], name: Callable[[Unit], str], reason: str) -> None:
    """Raises ClusterError where actors die of a unit; those whose node is gone by now died of that.

    Asked for all of them each time: an actor is heard to be lost before Ray knows that its node is.
    """
    living = {node.id for node in nodes()}
    for unit, places in died_on.items():
        count = sum(place in living for place in places)
        if count >= LIVES:
            raise ClusterError(
                f"unit {name(unit)} was lost with {count} actors, the last because: {reason}; "
                "if memory ran out, lower job.batch, job.workers or job.decoded_gib"
            )
