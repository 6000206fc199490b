"""The actors of a job in a Ray cluster: begun where nodes have room, given units, and let go when they die."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from teacher_cache.cache.layout import Unit
from teacher_cache.console import count_of, log_line
from teacher_cache.distributed.ray_cluster import Node, Resources, nodes
from teacher_cache.errors import ClusterError, LimbeckError, is_lost_worker

SCAN_SECONDS = 2.0
"""How often the cluster is asked for nodes that have come."""
MAX_FAILURES = 3
"""Actors in a row that may die on a node before they are at work; then it is left out."""
KILL_SECONDS = 10.0
"""How long one that is let go may take to be gone."""


@dataclass(eq=False)
class ActorHandle:
    """An actor as the driver knows it."""

    actor: Any
    node: Node
    ready: bool = False
    units: list[Unit] = field(default_factory=list)


@dataclass(frozen=True)
class UnitDone:
    """A unit is written; where two had it in hand, each says so."""

    unit: Unit


@dataclass(frozen=True)
class UnitsLost:
    """An actor died with these units in its hands. node: the id of where it was."""

    units: list[Unit]
    reason: str
    node: str


class ActorPool:
    """Actors of one class. Each gets `ahead` units at a time, so that it never waits for the next."""

    def __init__(
        self,
        actor_class: type,
        start: tuple[Any, ...],
        resources: Resources,
        most: int | None,
        units_per_actor: int,
    ) -> None:
        """start: the words of the call that makes an actor ready. most: actors; None for all that fit."""
        self._resources, self._max_actors, self._units_per_actor, self._start_args = (
            resources,
            most,
            units_per_actor,
            start,
        )
        self._actor_class = ray.remote(actor_class)
        self._options = {
            "num_cpus": resources.cpus,
            "num_gpus": resources.gpus,
            "max_concurrency": units_per_actor + 1,
            "max_restarts": 0,
        }
        self._handles: list[ActorHandle] = []
        self._calls: dict[Any, tuple[ActorHandle, Unit | None]] = {}
        self._excluded: dict[str, LimbeckError] = {}
        self._failures: Counter[str] = Counter()
        self._last_scan = 0.0

    @property
    def units(self) -> set[Unit]:
        """In somebody's hands."""
        return {unit for handle in self._handles for unit in handle.units}

    def describe(self) -> str:
        """Who is at work, in a phrase for a person."""
        available = [handle for handle in self._handles if handle.ready]
        if not available:
            return f"{count_of(len(self._handles), 'actor')} on the way" if self._handles else "waiting for room"
        used_nodes = {handle.node.id for handle in available}
        return f"{count_of(len(available), 'actor')} on {count_of(len(used_nodes), 'node')}"

    def scale_up(self, target: int) -> None:
        """Begin actors where there is room, up to so many; raises the first refusal where no node is left."""
        if time.monotonic() < self._last_scan + SCAN_SECONDS:
            return
        self._last_scan = time.monotonic()
        there = [node for node in nodes() if node.capacity(self._resources)]
        available = [node for node in there if node.id not in self._excluded]
        if there and not available and not self._handles:
            raise self._excluded[there[0].id]
        most = target if self._max_actors is None else min(target, self._max_actors)
        per_node = Counter(handle.node.id for handle in self._handles)
        for slot in range(max((node.capacity(self._resources) for node in available), default=0)):
            for node in available:
                if per_node[node.id] <= slot < node.capacity(self._resources) and len(self._handles) < most:
                    self._start_on(node)

    def assign(self, unit: Unit, places: list[str]) -> bool:
        """Give a unit to who has the fewest; False where nobody can take one."""
        available = [
            handle for handle in self._handles if handle.ready and len(handle.units) < self._units_per_actor
        ]
        if not available:
            return False
        self._assign_to(min(available, key=lambda handle: len(handle.units)), unit, places)
        return True

    def speculate(self, places: dict[Unit, list[str]]) -> None:
        """Give whoever is idle one of these units too, which another has in hand: who is first counts.

        Taken from who has most of them, the last that it was given, which it finds done when it comes to it.
        """
        for idle_handle in [handle for handle in self._handles if handle.ready and not handle.units]:
            assigned = Counter(unit for handle in self._handles for unit in handle.units)
            sole = [
                [unit for unit in handle.units if assigned[unit] == 1 and unit in places]
                for handle in self._handles
            ]
            if most := max(sole, key=len, default=[]):
                self._assign_to(idle_handle, most[-1], places[most[-1]])

    def cancel_stragglers(self) -> set[Unit]:
        """Let those go that are at units still; returns these units, when nobody that can be heard is at them."""
        busy, units = [handle for handle in self._handles if handle.units], self.units
        calls = [call for call, (handle, _) in self._calls.items() if handle in busy]
        for handle in busy:
            self._kill(handle)
        if calls and ray.wait(calls, num_returns=len(calls), timeout=KILL_SECONDS)[1]:
            log_line(
                "an actor that was let go is not heard to end; limbeck cache verify, later, finds what it spoilt"
            )
        return units

    def wait(self, seconds: float) -> Iterator[UnitDone | UnitsLost]:
        """What has happened, as soon as anything has; raises a LimbeckError that an actor met at its work."""
        if not self._calls:
            time.sleep(seconds)
            return
        ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=seconds)
        if ready:
            ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        for call in ready:
            if call not in self._calls:
                continue  # of an actor whose death another call told of
            handle, unit = self._calls.pop(call)
            try:
                ray.get(call)
            except RayTaskError as error:
                if is_lost_worker(error.cause):  # was killed, and the actor is of no use without it
                    yield self._on_death(handle, str(error.cause))
                elif unit is None and isinstance(error.cause, LimbeckError):
                    self._exclude_node(handle, error.cause)
                else:
                    raise error.cause if isinstance(error.cause, LimbeckError | OSError) else error from None
            except RayError as error:
                yield self._on_death(handle, last_line(error))
            else:
                handle.ready = True
                if unit is not None:
                    handle.units.remove(unit)
                    self._failures[handle.node.id] = 0
                    yield UnitDone(unit)

    def close(self) -> None:
        """Let all go."""
        for handle in self._handles:
            with suppress(RayError):
                ray.kill(handle.actor)

    def _assign_to(self, handle: ActorHandle, unit: Unit, places: list[str]) -> None:
        handle.units.append(unit)
        self._calls[handle.actor.label.remote(unit, places)] = handle, unit

    def _start_on(self, node: Node) -> None:
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        handle = ActorHandle(self._actor_class.options(**self._options, scheduling_strategy=there).remote(), node)
        self._handles.append(handle)
        self._calls[handle.actor.start.remote(*self._start_args)] = handle, None

    def _on_death(self, handle: ActorHandle, reason: str) -> UnitsLost:
        self._kill(handle)
        if not handle.ready and any(node.id == handle.node.id for node in nodes()):
            self._failures[handle.node.id] += 1
            if self._failures[handle.node.id] >= MAX_FAILURES:
                self._exclude_node(handle, ClusterError(f"actors die there before they begin ({reason})"))
        return UnitsLost(handle.units, reason, handle.node.id)

    def _exclude_node(self, handle: ActorHandle, error: LimbeckError) -> None:
        """Leave a node out, whose actors cannot do this work."""
        for other in [other for other in self._handles if other.node.id == handle.node.id and not other.ready]:
            self._kill(other)
        if handle.node.id in self._excluded:
            return
        self._excluded[handle.node.id] = type(error)(f"node {handle.node.address}: {error}")
        log_line(f"left out: {self._excluded[handle.node.id]}")

    def _kill(self, handle: ActorHandle) -> None:
        self._handles = [other for other in self._handles if other is not handle]
        self._calls = {call: entry for call, entry in self._calls.items() if entry[0] is not handle}
        self._last_scan = time.monotonic()  # its node may be gone, which takes Ray a moment to see
        with suppress(RayError):
            ray.kill(handle.actor)


def last_line(error: RayError) -> str:
    """Why an actor died, in a line; of Ray's own paragraphs and tracebacks the last sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
