"""Event simulation of a cluster that runs the labeling job: lost workers, slow workers, request limits."""

import heapq
import math
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import cycle

import numpy as np

from teacher_cache.rng import generator

HOUR = 3600.0
COLUMN_OBJECTS = 2
"""Objects per unit without its marker: hard labels and digests."""
KEYS_PER_LIST = 1000
"""Keys in one LIST response."""


@dataclass(frozen=True)
class Cluster:
    """The simulated machines. All times are in seconds.

    dynamic: a driver assigns units on demand; otherwise every worker has a static share.
    mtbf: mean time between losses of a worker. replace_seconds: from the loss to the new worker.
    start_seconds: from a new worker to its first unit. slow_share: fraction of workers that take slow_factor times
    as long. jitter: relative standard deviation of a unit's time. puts_per_second, gets_per_second: limits of the
    bucket. units_per_worker: units assigned to a worker at once; if more than one, the last of them waits.
    """

    workers: int
    dynamic: bool = False
    start_seconds: float = 60.0
    mtbf: float = HOUR
    replace_seconds: float = 60.0
    slow_share: float = 0.05
    slow_factor: float = 3.0
    jitter: float = 0.2
    puts_per_second: float = 3500.0
    gets_per_second: float = 5500.0
    seed: int = 0
    units_per_worker: int = 1


@dataclass(frozen=True)
class Job:
    """The work. unit_seconds: time of one unit. objects: per unit, including its marker."""

    units: int
    unit_seconds: float
    objects: int = COLUMN_OBJECTS + 1


@dataclass(frozen=True)
class Outcome:
    """finish: seconds. wasted: seconds of all workers for lost work, duplicates and restarts.

    peak_requests: per second.
    """

    finish: float
    wasted: float
    losses: int
    requests: int
    peak_requests: float

    def efficiency(self, job: Job, workers: int) -> float:
        """Fraction of all workers' time that was spent on finished units."""
        return job.units * job.unit_seconds / self.finish / workers


class _RequestQueue:
    """A bucket that serves `per_second` requests per second, in order of arrival."""

    def __init__(self, per_second: float) -> None:
        self._per_second, self._free_at, self.count = per_second, 0.0, 0
        self.count_by_second: dict[int, int] = {}

    def send(self, now: float, count: int) -> float:
        """Send `count` requests now; returns the time of the last response."""
        self._free_at = max(self._free_at, now) + count / self._per_second
        self.count += count
        self.count_by_second[int(now)] = self.count_by_second.get(int(now), 0) + count
        return self._free_at


@dataclass(eq=False)
class _Unit:
    """A unit assigned to a worker. Times are in seconds of a teacher that runs only this unit."""

    number: int
    seconds: float
    remaining: float


@dataclass(eq=False)
class _Worker:
    """slowness: factor on the worker's times. lost_at: its next loss. finishing: next unit to store."""

    slowness: float
    lost_at: float
    queue: deque[int]
    units: list[_Unit] = field(default_factory=list)
    finishing: _Unit | None = None
    stored: int = 0


def simulate(job: Job, cluster: Cluster) -> Outcome:
    """Simulate a job until all units are stored."""
    return _Simulation(job, cluster).run()


def static_share(job: Job, cluster: Cluster, rank: int) -> deque[int]:
    """The units of one worker with --rank and --world."""
    return deque(range(rank, job.units, cluster.workers))


class _Simulation:
    """The event loop. Workers start, work on units, store them or are lost. Events schedule the next ones."""

    def __init__(self, job: Job, cluster: Cluster) -> None:
        self._job, self._cluster, self._rng = job, cluster, generator("scale", cluster.seed)
        slow = self._rng.random(cluster.workers) < cluster.slow_share
        losses = [self._next_loss() for _ in slow]
        spread = cluster.jitter * self._rng.standard_normal(4096) - cluster.jitter**2 / 2
        self._unit_seconds = cycle((job.unit_seconds * np.exp(spread)).tolist())
        shared = deque(range(job.units))
        self._workers = [
            _Worker(
                cluster.slow_factor if slow[rank] else 1.0,
                lost,
                shared if cluster.dynamic else static_share(job, cluster, rank),
            )
            for rank, lost in enumerate(losses)
        ]
        self._max_units = min(
            cluster.units_per_worker, math.ceil(job.units / cluster.workers)
        )  # the next unit goes to the worker with the fewest
        self._puts, self._gets = _RequestQueue(cluster.puts_per_second), _RequestQueue(cluster.gets_per_second)
        self._listing = math.ceil(job.units / KEYS_PER_LIST)
        if cluster.dynamic:
            self._gets.send(0.0, self._listing)  # the driver lists the markers before any worker starts
        self._finished, self._idle = set[int](), list[int]()
        self._losses, self._wasted, self._finish = 0, 0.0, 0.0
        self._events = [(0.0, rank, "start") for rank in range(cluster.workers)]

    def run(self) -> Outcome:
        handlers = {"start": self._start, "work": self._work, "store": self._store, "lose": self._lose}
        # Events must be in order of time, since the bucket serves requests in order of arrival.
        while len(self._finished) < self._job.units:
            now, rank, event = heapq.heappop(self._events)
            handlers[event](now, rank, self._workers[rank])
        unfinished = sum(
            (unit.seconds - unit.remaining) * one.slowness for one in self._workers for unit in one.units
        )
        peak = max(max(queue.count_by_second.values(), default=0) for queue in (self._puts, self._gets))
        requests = self._puts.count + self._gets.count
        return Outcome(self._finish, self._wasted + unfinished, self._losses, requests, peak)

    def _schedule(self, when: float, rank: int, event: str) -> None:
        heapq.heappush(self._events, (when, rank, event))

    def _start(self, now: float, rank: int, worker: _Worker) -> None:
        """Read the manifest; with a static share also list the markers and verify the worker's own units."""
        requests = self._listing + worker.stored * self._job.objects
        ready = self._gets.send(now, 1 if self._cluster.dynamic else requests)
        self._schedule(ready + self._cluster.start_seconds, rank, "work")

    def _work(self, now: float, rank: int, worker: _Worker) -> None:
        """Take units and work until the first of them ends or the worker is lost."""
        ready = self._refill(now, worker)
        if not worker.units:
            self._idle.append(rank)
            return
        running = worker.units[: max(1, self._cluster.units_per_worker - 1)]
        first = min(running, key=lambda unit: unit.remaining)
        took = first.remaining
        ended = ready + took * len(running) * worker.slowness
        if ended <= worker.lost_at:
            for unit in running:
                unit.remaining -= took
            worker.units.remove(first)
            worker.finishing = first
            self._schedule(ended, rank, "store")
            return
        lost, replace = max(worker.lost_at, now), self._cluster.replace_seconds
        self._wasted += (
            sum(unit.seconds - unit.remaining for unit in running) * worker.slowness
        )  # work done before now
        self._wasted += lost + replace + self._cluster.start_seconds - now
        worker.lost_at = lost + replace + self._next_loss()
        self._losses += 1
        self._schedule(lost, rank, "lose")

    def _refill(self, now: float, worker: _Worker) -> float:
        """Assign units up to the maximum; returns the time when the last of their shards has been read."""
        ready = now
        worker.units = [
            unit for unit in worker.units if unit.remaining < unit.seconds or unit.number not in self._finished
        ]
        while worker.queue and len(worker.units) < self._max_units:
            number = worker.queue.popleft()
            if number not in self._finished:
                ready = self._assign(now, worker, number)
        if not worker.units and self._cluster.dynamic and (number := self._unit_to_duplicate()) is not None:
            ready = self._assign(now, worker, number)
        return ready

    def _assign(self, now: float, worker: _Worker, number: int) -> float:
        seconds = next(self._unit_seconds)
        worker.units.append(_Unit(number, seconds, seconds))
        return self._gets.send(now, 2)  # the marker and the shard

    def _unit_to_duplicate(self) -> int | None:
        """A unit for an idle worker to duplicate: the last one of the worker with the most unduplicated units."""
        copies = Counter(unit.number for worker in self._workers for unit in worker.units)
        single = [
            [
                unit.number
                for unit in worker.units
                if copies[unit.number] == 1 and unit.number not in self._finished
            ]
            for worker in self._workers
        ]
        most = max(single, key=len)
        return most[-1] if most else None

    def _store(self, now: float, rank: int, worker: _Worker) -> None:
        """Send the PUTs of the finished unit without waiting for them."""
        unit, worker.stored = worker.finishing, worker.stored + 1
        assert unit
        stored = self._puts.send(now, self._job.objects)
        if unit.number in self._finished:
            self._wasted += unit.seconds * worker.slowness
        else:
            self._finished.add(unit.number)
            self._finish = max(self._finish, stored)
        self._schedule(now, rank, "work")

    def _lose(self, now: float, rank: int, worker: _Worker) -> None:
        """Return the worker's units to the front of the queue, and wake idle workers for them."""
        unfinished = [unit.number for unit in worker.units if unit.number not in self._finished]
        worker.queue.extendleft(reversed(unfinished))
        worker.units.clear()
        self._schedule(now + self._cluster.replace_seconds, rank, "start")
        for other in self._idle[: len(unfinished)]:
            self._schedule(now, other, "work")
        del self._idle[: len(unfinished)]

    def _next_loss(self) -> float:
        mean = self._cluster.mtbf
        return float(self._rng.exponential(mean)) if math.isfinite(mean) else math.inf
