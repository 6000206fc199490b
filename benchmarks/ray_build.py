"""What two actors of a Ray cluster gain over one, and what giving a unit out costs, beside the unit itself.

    python benchmarks/ray_build.py PHOTOS.tar.gz [--teacher resnet10t] [--size 160] [--rounds 2]

A cluster of two nodes of one CPU each on this machine (a head without CPUs drives it). By turns in one run, one
actor and two build the same cache of the same shards; the time counts from the first unit's end to the last's,
so that it leaves out what an actor takes to begin. Then one actor is given units that are there already: what
that takes is the way from the driver to the actor and back, and the look whether the unit is there.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

os.environ |= {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "disabled",
    "OMP_NUM_THREADS": "1",
    "RAY_worker_niceness": "0",
}

import ray
import timm
import torch
from build import CLASSES, recipe_of, shards_of
from ray.cluster_utils import Cluster

from teacher_cache.cache.layout import MARKERS
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.distributed.ray_cluster import Resources, ray_session
from teacher_cache.labeling.actor_pool import ActorPool
from teacher_cache.labeling.on_ray import build_on_ray
from teacher_cache.labeling.prepare import load_teachers
from teacher_cache.labeling.ray_actor import BuildActor
from teacher_cache.recipe import CacheRecipe

WANTED, WANTED_SHARE = 1.8, 0.01


@contextmanager
def two_nodes() -> Iterator[str]:
    """The address of a cluster that has a CPU on each of two nodes."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    with ray_session(cluster.address):
        yield cluster.address
    cluster.shutdown()


def at(recipe: CacheRecipe, path: Path) -> CacheRecipe:
    """The recipe of one-process actors, for a cache at this path, of units of one seed."""
    cache = recipe.cache.model_copy(update={"path": str(path), "seeds_per_unit": 1})
    job = recipe.job.model_copy(update={"workers": 0, "device": "cpu"})
    return recipe.model_copy(update={"cache": cache, "job": job})


def seconds_a_unit(recipe: CacheRecipe, actors: int) -> float:
    """Of a whole build, by the times of the markers: from one round of units to the last."""
    build_on_ray([recipe], actors=actors)
    cache = TargetCache.open(recipe.cache.path)
    units = {cache.layout.marker_name(unit) for unit in cache.present()}
    times = sorted((Path(recipe.cache.path) / MARKERS / name).stat().st_mtime for name in units)
    return (times[-1] - times[actors - 1]) / (len(times) - actors)


def seconds_to_give(recipe: CacheRecipe, calls: int = 200) -> float:
    """One unit that is there already, given to one actor and answered."""
    index, teachers = load_teachers([recipe])
    unit = next(iter(TargetCache.open(recipe.cache.path).layout.units()))
    start = (str(Path.cwd()), *map(ray.put, ([recipe], teachers, index)), "cpu")
    with closing(ActorPool(BuildActor, start, Resources(1, 0), 1, 1)) as pool:
        while not pool.assign(unit, [recipe.cache.path]):
            pool.scale_up(1)
            list(pool.wait(0.1))
        began = time.perf_counter()
        for _ in range(calls):
            while not list(pool.wait(1)):
                pass
            pool.assign(unit, [recipe.cache.path])
        return (time.perf_counter() - began) / calls


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--teacher", default="resnet10t")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=2)
    chosen = parser.parse_args()
    gains = []
    with tempfile.TemporaryDirectory() as name, two_nodes():
        folder = Path(name)
        weights, index = folder / "weights.pth", shards_of(chosen.photos, folder / "shards")
        torch.save(timm.create_model(chosen.teacher, num_classes=CLASSES).state_dict(), weights)
        recipe = recipe_of(index, chosen.teacher, weights, chosen.size, 0, chosen.batch)
        for number in range(chosen.rounds):
            one = seconds_a_unit(at(recipe, folder / f"one{number}.zarr"), 1)
            two = seconds_a_unit(at(recipe, folder / f"two{number}.zarr"), 2)
            gains.append(one / two)
            print(f"a unit each {one:.2f} s by one actor, {two:.2f} s by two: {gains[-1]:.2f} times", flush=True)
        give = seconds_to_give(at(recipe, folder / "one0.zarr"))
    print(f"median {statistics.median(gains):.2f} (wanted: {WANTED})")
    print(
        f"giving a unit out: {1000 * give:.1f} ms, {give / one:.2%} of a unit's time (wanted: {WANTED_SHARE:.0%})"
    )


if __name__ == "__main__":
    main()
