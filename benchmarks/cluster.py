"""A cluster that works on a job's units, simulated event by event: losses, stragglers, and the bucket's limits."""

import heapq
import math
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import cycle

import numpy as np

from teacher_cache.rng import generator

HOUR = 3600.0
COLUMNS = 2
"""Objects of a unit beside its marker: hard labels and digests."""
LISTED = 1000
"""Keys in one answer to LIST."""


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


@dataclass(eq=False)
class _Worker:
    """It takes `slowness` times as long; lost_at: when it will be taken away; ending: what it stores next."""

    slowness: float
    lost_at: float
    todo: deque[int]
    hands: list[_Unit] = field(default_factory=list)
    ending: _Unit | None = None
    stored: int = 0


def simulate(job: Job, cluster: Cluster) -> Outcome:
    """Run the job to its end."""
    return _Simulation(job, cluster).run()


def dealt(job: Job, cluster: Cluster, rank: int) -> deque[int]:
    """A worker's units, as --rank and --world deal them."""
    return deque(range(rank, job.units, cluster.workers))


class _Simulation:
    """Workers come, take units, store or lose them; each event makes those that follow from it."""

    def __init__(self, job: Job, cluster: Cluster) -> None:
        self._job, self._cluster, self._rng = job, cluster, generator("scale", cluster.seed)
        slow = self._rng.random(cluster.workers) < cluster.slow
        losses = [self._next_loss() for _ in slow]
        spread = cluster.jitter * self._rng.standard_normal(4096) - cluster.jitter**2 / 2
        self._varied = cycle((job.unit_seconds * np.exp(spread)).tolist())
        shared = deque(range(job.units))
        self._workers = [
            _Worker(
                cluster.slower if slow[rank] else 1.0,
                lost,
                shared if cluster.given_out else dealt(job, cluster, rank),
            )
            for rank, lost in enumerate(losses)
        ]
        self._most = min(cluster.in_hand, math.ceil(job.units / cluster.workers))  # the fewest are given the next
        self._puts, self._gets = _Requests(cluster.puts), _Requests(cluster.gets)
        self._listing = math.ceil(job.units / LISTED)
        if cluster.given_out:
            self._gets.ask(0.0, self._listing)  # the driver's, before any worker comes
        self._finished, self._idle = set[int](), list[int]()
        self._losses, self._wasted, self._finish = 0, 0.0, 0.0
        self._events = [(0.0, rank, "come") for rank in range(cluster.workers)]

    def run(self) -> Outcome:
        does = {"come": self._come, "take": self._take, "store": self._store, "lose": self._lose}
        # In order of time, as the bucket answers in the order of asking.
        while len(self._finished) < self._job.units:
            now, rank, what = heapq.heappop(self._events)
            does[what](now, rank, self._workers[rank])
        begun = sum((unit.seconds - unit.left) * one.slowness for one in self._workers for unit in one.hands)
        peak = max(max(door.seconds.values(), default=0) for door in (self._puts, self._gets))
        requests = self._puts.count + self._gets.count
        return Outcome(self._finish, self._wasted + begun, self._losses, requests, peak)

    def _then(self, when: float, rank: int, what: str) -> None:
        heapq.heappush(self._events, (when, rank, what))

    def _come(self, now: float, rank: int, worker: _Worker) -> None:
        """It reads the manifest, or where units were dealt out lists the markers and checks its own units."""
        dealt_out = self._listing + worker.stored * self._job.objects
        ready = self._gets.ask(now, 1 if self._cluster.given_out else dealt_out)
        self._then(ready + self._cluster.start, rank, "take")

    def _take(self, now: float, rank: int, worker: _Worker) -> None:
        """It fills its hands, and works until its first unit ends or it is lost."""
        ready = self._fill(now, worker)
        if not worker.hands:
            self._idle.append(rank)
            return
        at_work = worker.hands[: max(1, self._cluster.in_hand - 1)]
        first = min(at_work, key=lambda unit: unit.left)
        took = first.left
        ended = ready + took * len(at_work) * worker.slowness
        if ended <= worker.lost_at:
            for unit in at_work:
                unit.left -= took
            worker.hands.remove(first)
            worker.ending = first
            self._then(ended, rank, "store")
            return
        lost, back = max(worker.lost_at, now), self._cluster.back
        self._wasted += sum(unit.seconds - unit.left for unit in at_work) * worker.slowness  # before now
        self._wasted += lost + back + self._cluster.start - now
        worker.lost_at = lost + back + self._next_loss()
        self._losses += 1
        self._then(lost, rank, "lose")

    def _fill(self, now: float, worker: _Worker) -> float:
        """Give it units until its hands are full; when the last of their shards has been read."""
        ready = now
        worker.hands = [
            unit for unit in worker.hands if unit.left < unit.seconds or unit.number not in self._finished
        ]
        while worker.todo and len(worker.hands) < self._most:
            number = worker.todo.popleft()
            if number not in self._finished:
                ready = self._give(now, worker, number)
        if not worker.hands and self._cluster.given_out and (number := self._to_relieve()) is not None:
            ready = self._give(now, worker, number)
        return ready

    def _give(self, now: float, worker: _Worker, number: int) -> float:
        seconds = next(self._varied)
        worker.hands.append(_Unit(number, seconds, seconds))
        return self._gets.ask(now, 2)  # the marker and the shard

    def _to_relieve(self) -> int | None:
        """The unit that an idle worker is given too: the last of whoever has most that nobody else has."""
        held = Counter(unit.number for worker in self._workers for unit in worker.hands)
        alone = [
            [unit.number for unit in worker.hands if held[unit.number] == 1 and unit.number not in self._finished]
            for worker in self._workers
        ]
        most = max(alone, key=len)
        return most[-1] if most else None

    def _store(self, now: float, rank: int, worker: _Worker) -> None:
        """It puts the unit that ended, and does not wait for it."""
        unit, worker.stored = worker.ending, worker.stored + 1
        assert unit
        stored = self._puts.ask(now, self._job.objects)
        if unit.number in self._finished:
            self._wasted += unit.seconds * worker.slowness
        else:
            self._finished.add(unit.number)
            self._finish = max(self._finish, stored)
        self._then(now, rank, "take")

    def _lose(self, now: float, rank: int, worker: _Worker) -> None:
        """What was in its hands goes to the front of the queue, and those that idle come for it."""
        again = [unit.number for unit in worker.hands if unit.number not in self._finished]
        worker.todo.extendleft(reversed(again))
        worker.hands.clear()
        self._then(now + self._cluster.back, rank, "come")
        for other in self._idle[: len(again)]:
            self._then(now, other, "take")
        del self._idle[: len(again)]

    def _next_loss(self) -> float:
        mean = self._cluster.mtbf
        return float(self._rng.exponential(mean)) if math.isfinite(mean) else math.inf
