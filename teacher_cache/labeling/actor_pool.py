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

LOOK_SECONDS = 2.0
"""How often the cluster is asked for nodes that have come."""
MAX_FAILURES = 3
"""Actors in a row that may die on a node before they are at work; then it is left out."""
DEATH_SECONDS = 10.0
"""How long one that is let go may take to be gone."""


@dataclass(eq=False)
class ActorHandle:
    """An actor as the driver knows it."""

    actor: Any
    node: Node
    at_work: bool = False
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

    def __init__(self, kind: type, start: tuple[Any, ...], need: Resources, most: int | None, ahead: int) -> None:
        """start: the words of the call that makes an actor ready. most: actors; None for all that fit."""
        self._need, self._most, self._ahead, self._start = need, most, ahead, start
        self._kind = ray.remote(kind)
        self._options = {
            "num_cpus": need.cpus,
            "num_gpus": need.gpus,
            "max_concurrency": ahead + 1,
            "max_restarts": 0,
        }
        self._members: list[ActorHandle] = []
        self._calls: dict[Any, tuple[ActorHandle, Unit | None]] = {}
        self._refused: dict[str, LimbeckError] = {}
        self._strikes: Counter[str] = Counter()
        self._looked = 0.0

    @property
    def units(self) -> set[Unit]:
        """In somebody's hands."""
        return {unit for member in self._members for unit in member.units}

    def told(self) -> str:
        """Who is at work, in a phrase for a person."""
        able = [member for member in self._members if member.at_work]
        if not able:
            return f"{count_of(len(self._members), 'actor')} on the way" if self._members else "waiting for room"
        return f"{count_of(len(able), 'actor')} on {count_of(len({member.node.id for member in able}), 'node')}"

    def scale_up(self, wanted: int) -> None:
        """Begin actors where there is room, up to so many; raises the first refusal where no node is left."""
        if time.monotonic() < self._looked + LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        there = [node for node in nodes() if node.capacity(self._need)]
        able = [node for node in there if node.id not in self._refused]
        if there and not able and not self._members:
            raise self._refused[there[0].id]
        most = wanted if self._most is None else min(wanted, self._most)
        taken = Counter(member.node.id for member in self._members)
        for place in range(max((node.capacity(self._need) for node in able), default=0)):
            for node in able:
                if taken[node.id] <= place < node.capacity(self._need) and len(self._members) < most:
                    self._start_on(node)

    def assign(self, unit: Unit, places: list[str]) -> bool:
        """Give a unit to who has the fewest; False where nobody can take one."""
        able = [member for member in self._members if member.at_work and len(member.units) < self._ahead]
        if not able:
            return False
        self._assign_to(min(able, key=lambda member: len(member.units)), unit, places)
        return True

    def speculate(self, places: dict[Unit, list[str]]) -> None:
        """Give whoever is idle one of these units too, which another has in hand: who is first counts.

        Taken from who has most of them, the last that it was given, which it finds done when it comes to it.
        """
        for idle in [member for member in self._members if member.at_work and not member.units]:
            held = Counter(unit for member in self._members for unit in member.units)
            alone = [
                [unit for unit in member.units if held[unit] == 1 and unit in places] for member in self._members
            ]
            if most := max(alone, key=len, default=[]):
                self._assign_to(idle, most[-1], places[most[-1]])

    def cancel_stragglers(self) -> set[Unit]:
        """Let those go that are at units still; returns these units, when nobody that can be heard is at them."""
        late, units = [member for member in self._members if member.units], self.units
        calls = [call for call, (member, _) in self._calls.items() if member in late]
        for member in late:
            self._drop(member)
        if calls and ray.wait(calls, num_returns=len(calls), timeout=DEATH_SECONDS)[1]:
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
            member, unit = self._calls.pop(call)
            try:
                ray.get(call)
            except RayTaskError as error:
                if is_lost_worker(error.cause):  # was killed, and the actor is of no use without it
                    yield self._on_death(member, str(error.cause))
                elif unit is None and isinstance(error.cause, LimbeckError):
                    self._refuse(member, error.cause)
                else:
                    raise error.cause if isinstance(error.cause, LimbeckError | OSError) else error from None
            except RayError as error:
                yield self._on_death(member, brief(error))
            else:
                member.at_work = True
                if unit is not None:
                    member.units.remove(unit)
                    self._strikes[member.node.id] = 0
                    yield UnitDone(unit)

    def close(self) -> None:
        """Let all go."""
        for member in self._members:
            with suppress(RayError):
                ray.kill(member.actor)

    def _assign_to(self, member: ActorHandle, unit: Unit, places: list[str]) -> None:
        member.units.append(unit)
        self._calls[member.actor.label.remote(unit, places)] = member, unit

    def _start_on(self, node: Node) -> None:
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        member = ActorHandle(self._kind.options(**self._options, scheduling_strategy=there).remote(), node)
        self._members.append(member)
        self._calls[member.actor.start.remote(*self._start)] = member, None

    def _on_death(self, member: ActorHandle, reason: str) -> UnitsLost:
        self._drop(member)
        if not member.at_work and any(node.id == member.node.id for node in nodes()):
            self._strikes[member.node.id] += 1
            if self._strikes[member.node.id] >= MAX_FAILURES:
                self._refuse(member, ClusterError(f"actors die there before they begin ({reason})"))
        return UnitsLost(member.units, reason, member.node.id)

    def _refuse(self, member: ActorHandle, error: LimbeckError) -> None:
        """Leave a node out, whose actors cannot do this work."""
        for other in [other for other in self._members if other.node.id == member.node.id and not other.at_work]:
            self._drop(other)
        if member.node.id in self._refused:
            return
        self._refused[member.node.id] = type(error)(f"node {member.node.address}: {error}")
        log_line(f"left out: {self._refused[member.node.id]}")

    def _drop(self, member: ActorHandle) -> None:
        self._members = [other for other in self._members if other is not member]
        self._calls = {call: owned for call, owned in self._calls.items() if owned[0] is not member}
        self._looked = time.monotonic()  # its node may be gone, which takes Ray a moment to see
        with suppress(RayError):
            ray.kill(member.actor)


def brief(error: RayError) -> str:
    """Why an actor died, in a line; of Ray's own paragraphs and tracebacks the last sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
