"""Where more workers stop helping: the teacher job of ImageNet under 300 seeds, on 1 to 1,000 machines, simulated.

    python benchmarks/scale.py [--figures deploy/imagenet_v100.toml] [--units-per-worker 9] [--png scale.png]

Workers are taken away (once an hour each, on average), and another comes a minute later, without the units
that were in hand; one in twenty is three times as slow as the others; a unit's time varies by a fifth; the bucket
serves 3,500 PUTs and 5,500 GETs and LISTs a second, all in one prefix. Every worker reads a shard and asks for
the marker before a unit, and puts the unit's objects and its marker; it does not wait for them. "shared": units
are dealt out beforehand (--rank and --world), and a worker that begins lists the markers and compares its finished
units with their checksums. "given out": the driver lists the markers, a worker that begins reads the manifest, the
next unit goes to whoever is free (--on ray), and when none are left, whoever is idle does one over that waits at
another. A unit's time is its views by the figures' views_per_second (the paper's rate of a V100), and a worker
takes their start_seconds to begin; neither was measured on a cluster. A worker has as many units in hand
as the recipe's job.workers and one more: those of its processes go on side by side and share the teacher, so that
each takes as much longer, and one waits.
tests/benchmarks/test_cluster.py holds the simulation to known cases.
"""

import argparse
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from cluster import HOUR, Cluster, Job, Outcome, simulate
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from student.estimate.machine import Hardware
from teacher_cache.config import load_recipe
from teacher_cache.recipe import CacheRecipe

FIGURES = Path(__file__).parents[1] / "deploy" / "imagenet_v100.toml"
RECIPE = Path(__file__).parents[1] / "teacher_cache" / "recipes" / "imagenet_224.toml"
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
SEEDS, SEEDS_PER_UNIT = 300, 6
UNIT_SEEDS = (1, 3, 6, 12, 25, 50, 100, 300)
SIZE_WORKERS = (64, 1000)
DECODE_SECONDS = 1.65e-3
"""Of one image on one core; it is done once for all seeds of a unit (benchmarks/RESULTS.md, Views)."""


def make_job(machine: Hardware, seeds_per_unit: int) -> Job:
    """ImageNet's job on such machines, in units of one shard under `per_unit` seeds."""
    assert machine.data, "the figures name the data set"
    shards, blocks = machine.data.shards, math.ceil(SEEDS / seeds_per_unit)
    views = machine.data.images * SEEDS / (shards * blocks)
    return Job(shards * blocks, views / machine.teacher.views_per_second)


def by_workers(machine: Hardware, units_per_worker: int) -> tuple[Table, dict[str, list[tuple[int, Outcome]]]]:
    """Units of six seeds, by more and more workers, dealt out beforehand or given out."""
    job = make_job(machine, SEEDS_PER_UNIT)
    table = Table(title=f"{job.units:,} units of {job.unit_seconds:.0f} s on a {machine.machine.name}; hours")
    for name in (
        "workers",
        "ideal",
        "shared",
        "given out",
        "efficiency",
        "wasted",
        "losses",
        "requests/s",
        "asked at once",
    ):
        table.add_column(name, justify="right")
    outcomes: dict[str, list[tuple[int, Outcome]]] = {"shared": [], "given out": []}
    for workers in WORKERS:
        cluster = Cluster(workers, start_seconds=machine.teacher.start_seconds, units_per_worker=units_per_worker)
        for name, dynamic in (("shared", False), ("given out", True)):
            outcomes[name].append((workers, simulate(job, replace(cluster, given_out=dynamic))))
        static, assigned = outcomes["shared"][-1][1], outcomes["given out"][-1][1]
        table.add_row(
            f"{workers:,}",
            f"{job.units * job.unit_seconds / workers / HOUR:,.2f}",
            f"{static.finish / HOUR:,.2f}",
            f"{assigned.finish / HOUR:,.2f}",
            f"{assigned.efficiency(job, workers):.0%}",
            f"{assigned.wasted / assigned.finish / workers:.1%}",
            f"{assigned.losses:,}",
            f"{assigned.requests / assigned.finish:,.1f}",
            f"{assigned.peak_requests:,.0f}",
        )
    return table, outcomes


def by_size(machine: Hardware, units_per_worker: int) -> tuple[Table, dict[int, list[tuple[float, float]]]]:
    """Units of one seed to all of them, given out."""
    table = Table(title="by the unit's size, given out: hours to the end")
    names = ("seeds a unit", "unit, seconds", "objects", "decoding, core hours")
    for name in (*names, *(f"{workers:,} workers" for workers in SIZE_WORKERS), "wasted"):
        table.add_column(name, justify="right")
    hours: dict[int, list[tuple[float, float]]] = {workers: [] for workers in SIZE_WORKERS}
    for size in UNIT_SEEDS:
        job = make_job(machine, size)
        assert machine.data
        cluster = Cluster(
            1, dynamic=True, start_seconds=machine.teacher.start_seconds, units_per_worker=units_per_worker
        )
        outcomes = [simulate(job, replace(cluster, workers=workers)) for workers in SIZE_WORKERS]
        for workers, outcome in zip(SIZE_WORKERS, outcomes, strict=True):
            hours[workers].append((job.unit_seconds / 60, outcome.finish / HOUR))
        decoding = machine.data.images * math.ceil(SEEDS / size) * DECODE_SECONDS / HOUR
        table.add_row(
            str(size),
            f"{job.unit_seconds:,.0f}",
            f"{job.units * job.objects:,}",
            f"{decoding:,.0f}",
            *(f"{outcome.finish / HOUR:,.2f}" for outcome in outcomes),
            f"{outcomes[0].wasted / outcomes[0].finish / SIZE_WORKERS[0]:.1%}",
        )
    return table, hours


def draw(
    machine: Hardware,
    workers: dict[str, list[tuple[int, Outcome]]],
    sizes: dict[int, Iterable[tuple[float, float]]],
    path: Path,
) -> None:
    """Hours by workers, and by the unit's size."""
    job = make_job(machine, SEEDS_PER_UNIT)
    figure = Figure(figsize=(12, 4.5), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.loglog(WORKERS, [job.units * job.unit_seconds / one / HOUR for one in WORKERS], "k:", label="ideal")
    for name, outcomes in workers.items():
        left.loglog(
            [one for one, _ in outcomes], [outcome.finish / HOUR for _, outcome in outcomes], "o-", label=name
        )
    left.set(xlabel="workers", ylabel="hours", title=f"{job.units:,} units of {job.unit_seconds:.0f} s")
    for count, points in sizes.items():
        pairs = list(points)
        right.loglog([x for x, _ in pairs], [y for _, y in pairs], "o-", label=f"{count:,} workers")
    right.set(xlabel="minutes a unit takes", ylabel="hours", title="by the unit's size, given out")
    for axis in (left, right):
        axis.legend()
    figure.savefig(path)


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", type=Path, default=FIGURES)
    parser.add_argument("--units-per-worker", type=int, default=load_recipe(RECIPE, CacheRecipe).job.workers + 1)
    parser.add_argument("--png", type=Path)
    options = parser.parse_args()
    machine = load_recipe(options.figures, Hardware)
    workers_table, workers = by_workers(machine, options.units_per_worker)
    Console().print(workers_table)
    sizes_table, sizes = by_size(machine, options.units_per_worker)
    Console().print(sizes_table)
    if options.png:
        draw(machine, workers, sizes, options.png)


if __name__ == "__main__":
    main()
