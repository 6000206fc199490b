"""Simulation of the labeling job of ImageNet under 300 seeds on 1 to 1,000 machines.

    python benchmarks/scale.py [--figures deploy/imagenet_v100.toml] [--units-per-worker 9] [--png scale.png]

Assumptions:

- Each worker is lost once per hour on average, with its unfinished units. A new one comes a minute later.
- One worker in twenty is three times as slow as the others. The time of a unit varies by a fifth.
- The bucket serves 3,500 PUTs and 5,500 GETs and LISTs per second, all in one prefix.
- For each unit, a worker reads the shard and the marker, and writes the objects and the marker without waiting.
- "fixed shares" (--rank and --world): a starting worker lists the markers and verifies its own units.
- "assigned" (--on ray): the driver lists the markers, a starting worker reads the manifest, and the next unit
  goes to an idle worker. When no units are left, idle workers duplicate units that are pending on other workers.
- The time of a unit follows from views_per_second in the figures file (the paper's rate of a V100). A worker
  starts in start_seconds. Neither was measured on a cluster.
- A worker has eight units (job.workers) in progress, which share the teacher, and one waiting.

tests/benchmarks/test_cluster.py checks the simulation against results calculated by hand.
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

FIGURES = Path(__file__).parents[1] / "deploy" / "imagenet_v100.toml"
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
SEEDS, SEEDS_PER_UNIT = 300, 6
UNIT_SEEDS = (1, 3, 6, 12, 25, 50, 100, 300)
SIZE_WORKERS = (64, 1000)
DECODE_SECONDS = 1.65e-3
"""Time to decode one image on one core, once for all seeds of a unit (benchmarks/RESULTS.md, "Views")."""


def make_job(machine: Hardware, seeds_per_unit: int) -> Job:
    """ImageNet's job on these machines, in units of one shard and `seeds_per_unit` seeds."""
    assert machine.data, "the figures file must have a [data] table"
    shards, blocks = machine.data.shards, math.ceil(SEEDS / seeds_per_unit)
    views = machine.data.images * SEEDS / (shards * blocks)
    return Job(shards * blocks, views / machine.teacher.views_per_second)


def by_workers(machine: Hardware, units_per_worker: int) -> tuple[Table, dict[str, list[tuple[int, Outcome]]]]:
    """Table by number of workers, with fixed shares and with assigned units of SEEDS_PER_UNIT seeds."""
    job = make_job(machine, SEEDS_PER_UNIT)
    table = Table(title=f"{job.units:,} units of {job.unit_seconds:.0f} s on a {machine.machine.name}; hours")
    for name in (
        "workers",
        "ideal",
        "fixed shares",
        "assigned",
        "efficiency",
        "wasted",
        "losses",
        "requests/s",
        "peak requests/s",
    ):
        table.add_column(name, justify="right")
    outcomes: dict[str, list[tuple[int, Outcome]]] = {"fixed shares": [], "assigned": []}
    for workers in WORKERS:
        cluster = Cluster(workers, start_seconds=machine.teacher.start_seconds, units_per_worker=units_per_worker)
        for name, dynamic in (("fixed shares", False), ("assigned", True)):
            outcomes[name].append((workers, simulate(job, replace(cluster, given_out=dynamic))))
        static, assigned = outcomes["fixed shares"][-1][1], outcomes["assigned"][-1][1]
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
    """Table by unit size, from one seed to all seeds, with assigned units."""
    table = Table(title="assigned units, by size; hours")
    names = ("seeds per unit", "seconds per unit", "objects", "decoding, core hours")
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
    """Plot the hours by number of workers and by unit size."""
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
    right.set(xlabel="minutes per unit", ylabel="hours", title="assigned units, by size")
    for axis in (left, right):
        axis.legend()
    figure.savefig(path)


def main() -> None:
    """Run the simulation and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", type=Path, default=FIGURES)
    parser.add_argument("--units-per-worker", type=int, default=9)
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
