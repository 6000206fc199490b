"""Where more workers stop helping: the teacher job of ImageNet under 300 seeds, on 1 to 1,000 machines, simulated.

    python benchmarks/scale.py [--figures deploy/imagenet_v100.toml] [--in-hand 9] [--png scale.png]

Workers are taken away (once an hour each, on average), and another comes a minute later, without the units
that were in hand; one in twenty is three times as slow as the others; a unit's time varies by a fifth; the bucket
serves 3,500 PUTs and 5,500 GETs and LISTs a second, all in one prefix. Every worker lists the markers when it
begins, reads a shard and asks for the marker before a unit, and puts the unit's objects and its marker; it does
not wait for them. "shared": units are dealt out beforehand (--rank and --world), and a worker that begins again
compares its finished units with their checksums. "given out": the next unit goes to whoever is free (--on ray).
A worker has as many units in hand as the recipe's job.workers and one more: those of its
processes go on side by side and share the teacher, so that each takes as much longer, and one waits.
tests/benchmarks/test_scale.py holds the simulation to known cases.
"""

import argparse
import heapq
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from teacher_cache.dice import dice
from teacher_cache.hardware import Hardware
from teacher_cache.recipe import CacheRecipe, load_recipe

HOUR = 3600.0
FIGURES = Path(__file__).parents[1] / "deploy" / "imagenet_v100.toml"
RECIPE = Path(__file__).parents[1] / "teacher_cache" / "recipes" / "imagenet_224.toml"
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
SEEDS, PER_UNIT = 300, 6
SIZES = (1, 3, 6, 12, 25, 50, 100, 300)
SIZED = (64, 1000)
COLUMNS = 2
"""Objects of a unit beside its marker: hard labels and digests."""
LISTED = 1000
"""Keys in one answer to LIST."""
DECODE_SECONDS = 1.65e-3
"""Of one image on one core; it is done once for all seeds of a unit (benchmarks/RESULTS.md, Views)."""


@dataclass(frozen=True)
class Cluster:
    """Times in seconds. mtbf: mean between a worker's losses. back: until another comes, start: until it works.

    slow: the share of workers that take `slower` times as long. in_hand: units of a worker, of which the
    last waits (one alone does not).
    """

    workers: int
    given_out: bool = False
    start: float = 60.0
    mtbf: float = HOUR
    back: float = 60.0
    slow: float = 0.05
    slower: float = 3.0
    jitter: float = 0.2
    puts: float = 3500.0
    gets: float = 5500.0
    seed: int = 0
    in_hand: int = 1


@dataclass(frozen=True)
class Job:
    """units of so many seconds each; objects: of one unit, its marker among them."""

    units: int
    unit_seconds: float
    objects: int = COLUMNS + 1


@dataclass(frozen=True)
class Outcome:
    """finish: seconds. wasted: seconds of work that was lost or spent coming back, of all workers together."""

    finish: float
    wasted: float
    losses: int
    requests: int
    peak: float

    def efficiency(self, job: Job, workers: int) -> float:
        """The share of all workers' time, until the last has finished, that went into units."""
        return job.units * job.unit_seconds / self.finish / workers


class _Requests:
    """A bucket's door: so many requests a second, first come first served."""

    def __init__(self, a_second: float) -> None:
        self._a_second, self._free, self.count = a_second, 0.0, 0
        self.seconds: dict[int, int] = {}

    def ask(self, now: float, count: int) -> float:
        """When the last of some requests that are made now is answered."""
        self._free = max(self._free, now) + count / self._a_second
        self.count += count
        self.seconds[int(now)] = self.seconds.get(int(now), 0) + count
        return self._free


@dataclass(eq=False)
class _Unit:
    """In a worker's hands. Seconds of the teacher's time, were it at nothing else."""

    number: int
    seconds: float
    left: float


def simulate(job: Job, cluster: Cluster) -> Outcome:
    """Run the job to its end, event by event: workers come, take units, finish or lose them, and store them."""
    rng = dice("scale", cluster.seed)
    slowness = np.where(rng.random(cluster.workers) < cluster.slow, cluster.slower, 1.0).tolist()
    lost_at = [_next_loss(rng, cluster) for _ in range(cluster.workers)]
    spread = cluster.jitter * rng.standard_normal(4096) - cluster.jitter**2 / 2
    varied = cycle((job.unit_seconds * np.exp(spread)).tolist())
    shared = deque(range(job.units))
    own = [shared if cluster.given_out else dealt(job, cluster, rank) for rank in range(cluster.workers)]
    most = min(cluster.in_hand, math.ceil(job.units / cluster.workers))  # who has the fewest is given the next
    hands: list[list[_Unit]] = [[] for _ in range(cluster.workers)]
    done, losses, wasted, finish = [0] * cluster.workers, 0, 0.0, 0.0
    puts, gets = _Requests(cluster.puts), _Requests(cluster.gets)
    lists = math.ceil(job.units / LISTED)
    events = [(0.0, rank, "come") for rank in range(cluster.workers)]
    while events:  # in order of time, as the bucket answers in the order of asking
        now, rank, what = heapq.heappop(events)
        if what == "come":
            checks = 0 if cluster.given_out else done[rank] * job.objects
            heapq.heappush(events, (gets.ask(now, lists + checks) + cluster.start, rank, "take"))
        elif what == "store":
            finish = max(finish, puts.ask(now, job.objects))
            done[rank] += 1
            heapq.heappush(events, (now, rank, "take"))
        elif own[rank] or hands[rank]:
            ready = now
            while own[rank] and len(hands[rank]) < most:
                seconds, ready = next(varied), gets.ask(now, 2)
                hands[rank].append(_Unit(own[rank].popleft(), seconds, seconds))
            at_work = hands[rank][: max(1, cluster.in_hand - 1)]
            first = min(at_work, key=lambda unit: unit.left)
            took = first.left
            ended = ready + took * len(at_work) * slowness[rank]
            if ended <= lost_at[rank]:
                for unit in at_work:
                    unit.left -= took
                hands[rank].remove(first)
                heapq.heappush(events, (ended, rank, "store"))
                continue
            again = max(lost_at[rank], now) + cluster.back
            wasted += sum(unit.seconds - unit.left for unit in at_work) * slowness[rank]  # before now
            losses, wasted = losses + 1, wasted + again + cluster.start - now
            own[rank].extendleft(unit.number for unit in reversed(hands[rank]))
            hands[rank].clear()
            lost_at[rank] = again + _next_loss(rng, cluster)
            heapq.heappush(events, (again, rank, "come"))
    peak = max(max(door.seconds.values(), default=0) for door in (puts, gets))
    return Outcome(finish, wasted, losses, puts.count + gets.count, peak)


def dealt(job: Job, cluster: Cluster, rank: int) -> deque[int]:
    """A worker's units, as --rank and --world deal them."""
    return deque(range(rank, job.units, cluster.workers))


def _next_loss(rng: np.random.Generator, cluster: Cluster) -> float:
    return float(rng.exponential(cluster.mtbf)) if math.isfinite(cluster.mtbf) else math.inf


def job_of(machine: Hardware, per_unit: int) -> Job:
    """ImageNet's job on such machines, in units of one shard under `per_unit` seeds."""
    assert machine.data, "the figures name the data set"
    shards, blocks = machine.data.shards, math.ceil(SEEDS / per_unit)
    views = machine.data.images * SEEDS / (shards * blocks)
    return Job(shards * blocks, views / machine.teacher.views_per_second)


def by_workers(machine: Hardware, in_hand: int) -> tuple[Table, dict[str, list[tuple[int, Outcome]]]]:
    """Units of six seeds, by more and more workers, dealt out beforehand or given out."""
    job = job_of(machine, PER_UNIT)
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
    found: dict[str, list[tuple[int, Outcome]]] = {"shared": [], "given out": []}
    for workers in WORKERS:
        cluster = Cluster(workers, start=machine.teacher.start_seconds, in_hand=in_hand)
        for name, given_out in (("shared", False), ("given out", True)):
            found[name].append((workers, simulate(job, replace(cluster, given_out=given_out))))
        dealt, given = found["shared"][-1][1], found["given out"][-1][1]
        table.add_row(
            f"{workers:,}",
            f"{job.units * job.unit_seconds / workers / HOUR:,.2f}",
            f"{dealt.finish / HOUR:,.2f}",
            f"{given.finish / HOUR:,.2f}",
            f"{given.efficiency(job, workers):.0%}",
            f"{given.wasted / given.finish / workers:.1%}",
            f"{given.losses:,}",
            f"{given.requests / given.finish:,.1f}",
            f"{given.peak:,.0f}",
        )
    return table, found


def by_size(machine: Hardware, in_hand: int) -> tuple[Table, dict[int, list[tuple[float, float]]]]:
    """Units of one seed to all of them, given out."""
    table = Table(title="by the unit's size, given out: hours to the end")
    names = ("seeds a unit", "unit, seconds", "objects", "decoding, core hours")
    for name in (*names, *(f"{workers:,} workers" for workers in SIZED), "wasted"):
        table.add_column(name, justify="right")
    found: dict[int, list[tuple[float, float]]] = {workers: [] for workers in SIZED}
    for size in SIZES:
        job = job_of(machine, size)
        assert machine.data
        cluster = Cluster(1, given_out=True, start=machine.teacher.start_seconds, in_hand=in_hand)
        outcomes = [simulate(job, replace(cluster, workers=workers)) for workers in SIZED]
        for workers, outcome in zip(SIZED, outcomes, strict=True):
            found[workers].append((job.unit_seconds / 60, outcome.finish / HOUR))
        decoding = machine.data.images * math.ceil(SEEDS / size) * DECODE_SECONDS / HOUR
        table.add_row(
            str(size),
            f"{job.unit_seconds:,.0f}",
            f"{job.units * job.objects:,}",
            f"{decoding:,.0f}",
            *(f"{outcome.finish / HOUR:,.2f}" for outcome in outcomes),
            f"{outcomes[0].wasted / outcomes[0].finish / SIZED[0]:.1%}",
        )
    return table, found


def draw(
    machine: Hardware,
    workers: dict[str, list[tuple[int, Outcome]]],
    sizes: dict[int, Iterable[tuple[float, float]]],
    path: Path,
) -> None:
    """Hours by workers, and by the unit's size."""
    job = job_of(machine, PER_UNIT)
    figure = Figure(figsize=(12, 4.5), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.loglog(WORKERS, [job.units * job.unit_seconds / one / HOUR for one in WORKERS], "k:", label="ideal")
    for name, found in workers.items():
        left.loglog([one for one, _ in found], [outcome.finish / HOUR for _, outcome in found], "o-", label=name)
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
    parser.add_argument("--in-hand", type=int, default=load_recipe(RECIPE, CacheRecipe).job.workers + 1)
    parser.add_argument("--png", type=Path)
    chosen = parser.parse_args()
    machine = load_recipe(chosen.figures, Hardware)
    workers_table, workers = by_workers(machine, chosen.in_hand)
    Console().print(workers_table)
    sizes_table, sizes = by_size(machine, chosen.in_hand)
    Console().print(sizes_table)
    if chosen.png:
        draw(machine, workers, sizes, chosen.png)


if __name__ == "__main__":
    main()
