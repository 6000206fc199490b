"""Speed-up of two actors of a Ray cluster over one, and the overhead of assigning a unit.

    python benchmarks/ray_build.py PHOTOS.tar.gz [--teacher resnet10t] [--size 160] [--rounds 2]

The cluster on this machine has two nodes with one CPU each, and a head without CPUs. In turn, one actor and two
actors build the same cache from the same shards. The time is measured from the end of the first unit to the end
of the last, so that the start of the actors does not count. The overhead is measured with units that already
exist: the way from the driver to the actor and back, and the check whether the unit exists.
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
from build import CLASSES, make_recipe, pack_photos
from ray.cluster_utils import Cluster

from teacher_cache.cache.layout import MARKERS
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.distributed.ray_cluster import Resources, ray_session
from teacher_cache.labeling.actor_pool import ActorPool
from teacher_cache.labeling.on_ray import build_on_ray
from teacher_cache.labeling.prepare import load_teachers
from teacher_cache.labeling.ray_actor import BuildActor
from teacher_cache.recipe import CacheRecipe

SPEEDUP_GOAL, ASSIGN_GOAL = 1.8, 0.01


@contextmanager
def two_nodes() -> Iterator[str]:
    """Start a Ray cluster with one CPU on each of two nodes; yields its address."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    with ray_session(cluster.address):
        yield cluster.address
    cluster.shutdown()


def with_path(recipe: CacheRecipe, path: Path) -> CacheRecipe:
    """The recipe with this cache path, one seed per unit and no loader workers."""
    cache = recipe.cache.model_copy(update={"path": str(path), "seeds_per_unit": 1})
    job = recipe.job.model_copy(update={"workers": 0, "device": "cpu"})
    return recipe.model_copy(update={"cache": cache, "job": job})


def seconds_per_unit(recipe: CacheRecipe, actors: int) -> float:
    """Mean seconds per unit of a build, from the marker files' times, without the first unit of each actor."""
    build_on_ray([recipe], actors=actors)
    cache = TargetCache.open(recipe.cache.path)
    units = {cache.layout.marker_name(unit) for unit in cache.present()}
    times = sorted((Path(recipe.cache.path) / MARKERS / name).stat().st_mtime for name in units)
    return (times[-1] - times[actors - 1]) / (len(times) - actors)


def assign_seconds(recipe: CacheRecipe, calls: int = 200) -> float:
    """Mean seconds to assign a unit that already exists to an actor and receive its reply."""
    index, teachers = load_teachers([recipe])
    unit = next(iter(TargetCache.open(recipe.cache.path).layout.units()))
    start = (str(Path.cwd()), *map(ray.put, ([recipe], teachers, index)), "cpu")
    with closing(ActorPool(BuildActor, start, Resources(1, 0), 1, 1)) as pool:
        while not pool.assign(unit, [recipe.cache.path]):
            pool.scale_up(1)
            list(pool.wait(0.1))
        started = time.perf_counter()
        for _ in range(calls):
            while not list(pool.wait(1)):
                pass
            pool.assign(unit, [recipe.cache.path])
        return (time.perf_counter() - started) / calls


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--teacher", default="resnet10t")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    speedups = []
    with tempfile.TemporaryDirectory() as name, two_nodes():
        folder = Path(name)
        weights, index = folder / "weights.pth", pack_photos(options.photos, folder / "shards")
        torch.save(timm.create_model(options.teacher, num_classes=CLASSES).state_dict(), weights)
        recipe = make_recipe(index, options.teacher, weights, options.size, 0, options.batch)
        for number in range(options.rounds):
            one = seconds_per_unit(with_path(recipe, folder / f"one{number}.zarr"), 1)
            two = seconds_per_unit(with_path(recipe, folder / f"two{number}.zarr"), 2)
            speedups.append(one / two)
            print(
                f"per unit: {one:.2f} s with one actor, {two:.2f} s with two, speed-up {speedups[-1]:.2f}",
                flush=True,
            )
        assign = assign_seconds(with_path(recipe, folder / "one0.zarr"))
    print(f"median {statistics.median(speedups):.2f} (goal: {SPEEDUP_GOAL})")
    print(f"assigning a unit: {1000 * assign:.1f} ms, {assign / one:.2%} of its time (goal: {ASSIGN_GOAL:.0%})")


if __name__ == "__main__":
    main()
