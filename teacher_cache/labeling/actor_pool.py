"""The actors of a labeling job in a Ray cluster: start them on free nodes, assign units, replace lost actors."""

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
from teacher_cache.errors import ClusterError, LimbeckError, LoaderLostError

SCAN_SECONDS = 2.0
"""Interval between scans of the cluster for new nodes."""
MAX_FAILURES = 3
"""Number of consecutive actors that may be lost on a node before they are ready; then the node is excluded."""
KILL_SECONDS = 10.0
"""Maximum time to wait for the end of killed actors."""


@dataclass(eq=False)
class ActorHandle:
    """An actor in the driver's process. ready: whether its `start` has returned. units: assigned to it."""

    actor: Any
    node: Node
    ready: bool = False
    units: list[Unit] = field(default_factory=list)


@dataclass(frozen=True)
class UnitDone:
    """A unit is written. A unit assigned to two actors gives two of these events."""

    unit: Unit


@dataclass(frozen=True)
class UnitsLost:
    """An actor was lost with these units assigned to it. node: the id of its node."""

    units: list[Unit]
    reason: str
    node: str


class ActorPool:
    """Actors of one class. Each has up to `units_per_actor` units, so that it need not wait for the next."""

    def __init__(
        self,
        actor_class: type,
        start_args: tuple[Any, ...],
        resources: Resources,
        max_actors: int | None,
        units_per_actor: int,
    ) -> None:
        """start_args: arguments of each actor's `start`. max_actors: None starts as many as fit."""
        self._start_args, self._resources = start_args, resources
        self._max_actors, self._units_per_actor = max_actors, units_per_actor
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
        """The units assigned to an actor."""
        return {unit for handle in self._handles for unit in handle.units}

    def describe(self) -> str:
        """The number of ready actors and their nodes, for the progress line."""
        ready = [handle for handle in self._handles if handle.ready]
        if ready:
            node_count = len({handle.node.id for handle in ready})
            return f"{count_of(len(ready), 'actor')} on {count_of(node_count, 'node')}"
        return f"{count_of(len(self._handles), 'actor')} starting" if self._handles else "waiting for resources"

    def scale_up(self, target: int) -> None:
        """Start actors on nodes with capacity, until there are `target` or `max_actors`.

        Raises the error of the first excluded node if all nodes with capacity are excluded.
        """
        if time.monotonic() < self._last_scan + SCAN_SECONDS:
            return
        self._last_scan = time.monotonic()
        with_capacity = [node for node in nodes() if node.capacity(self._resources)]
        usable = [node for node in with_capacity if node.id not in self._excluded]
        if with_capacity and not usable and not self._handles:
            raise self._excluded[with_capacity[0].id]
        limit = target if self._max_actors is None else min(target, self._max_actors)
        per_node = Counter(handle.node.id for handle in self._handles)
        for slot in range(max((node.capacity(self._resources) for node in usable), default=0)):
            for node in usable:
                if per_node[node.id] <= slot < node.capacity(self._resources) and len(self._handles) < limit:
                    self._start_on(node)

    def assign(self, unit: Unit, paths: list[str]) -> bool:
        """Assign a unit to the ready actor with the fewest units; False if no actor can take one.

        paths: the caches in which the unit is missing.
        """
        available = [
            handle for handle in self._handles if handle.ready and len(handle.units) < self._units_per_actor
        ]
        if not available:
            return False
        self._assign_to(min(available, key=lambda handle: len(handle.units)), unit, paths)
        return True

    def speculate(self, paths: dict[Unit, list[str]]) -> None:
        """Assign to each idle actor a unit that another actor has too; the first result counts.

        The unit is the last one of the actor with the most units; that actor skips it if it is already written.
        paths: the units that are still needed, with their caches.
        """
        for idle in [handle for handle in self._handles if handle.ready and not handle.units]:
            assigned = Counter(unit for handle in self._handles for unit in handle.units)
            candidates = [
                [unit for unit in handle.units if assigned[unit] == 1 and unit in paths]
                for handle in self._handles
            ]
            if longest := max(candidates, key=len, default=[]):
                self._assign_to(idle, longest[-1], paths[longest[-1]])

    def cancel_stragglers(self) -> set[Unit]:
        """Kill the actors that still have units, wait until they have ended, and return their units."""
        busy, units = [handle for handle in self._handles if handle.units], self.units
        calls = [call for call, (handle, _) in self._calls.items() if handle in busy]
        for handle in busy:
            self._kill(handle)
        if calls and ray.wait(calls, num_returns=len(calls), timeout=KILL_SECONDS)[1]:
            log_line(
                f"a killed actor has not ended after {KILL_SECONDS:.0f} s and may still write; "
                "run limbeck cache verify later"
            )
        return units

    def wait(self, seconds: float) -> Iterator[UnitDone | UnitsLost]:
        """Wait up to `seconds` for events, and yield them. Raises LimbeckError and OSError of an actor."""
        if not self._calls:
            time.sleep(seconds)
            return
        ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=seconds)
        if ready:
            ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        for call in ready:
            if call not in self._calls:
                continue  # another call of this actor has reported its loss
            handle, unit = self._calls.pop(call)
            try:
                ray.get(call)
            except RayTaskError as error:
                if isinstance(
                    error.cause, LoaderLostError
                ):  # the actor cannot work without its loader's processes
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
        """Kill all actors."""
        for handle in self._handles:
            with suppress(RayError):
                ray.kill(handle.actor)

    def _assign_to(self, handle: ActorHandle, unit: Unit, paths: list[str]) -> None:
        handle.units.append(unit)
        self._calls[handle.actor.label.remote(unit, paths)] = handle, unit

    def _start_on(self, node: Node) -> None:
        strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
        actor = self._actor_class.options(**self._options, scheduling_strategy=strategy).remote()
        handle = ActorHandle(actor, node)
        self._handles.append(handle)
        self._calls[actor.start.remote(*self._start_args)] = handle, None

    def _on_death(self, handle: ActorHandle, reason: str) -> UnitsLost:
        self._kill(handle)
        if not handle.ready and any(node.id == handle.node.id for node in nodes()):
            self._failures[handle.node.id] += 1
            if self._failures[handle.node.id] >= MAX_FAILURES:
                self._exclude_node(
                    handle, ClusterError(f"{MAX_FAILURES} actors were lost while starting ({reason})")
                )
        return UnitsLost(handle.units, reason, handle.node.id)

    def _exclude_node(self, handle: ActorHandle, error: LimbeckError) -> None:
        """Start no more actors on the node of this actor."""
        for other in [other for other in self._handles if other.node.id == handle.node.id and not other.ready]:
            self._kill(other)
        if handle.node.id in self._excluded:
            return
        self._excluded[handle.node.id] = type(error)(f"node {handle.node.address}: {error}")
        log_line(f"excluded: {self._excluded[handle.node.id]}")

    def _kill(self, handle: ActorHandle) -> None:
        self._handles = [other for other in self._handles if other is not handle]
        self._calls = {call: entry for call, entry in self._calls.items() if entry[0] is not handle}
        self._last_scan = time.monotonic()  # if its node is lost, Ray needs a moment to notice
        with suppress(RayError):
            ray.kill(handle.actor)


def last_line(error: RayError) -> str:
    """The last line of a Ray error, at most 300 characters; the lines before it are a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
