"""Units assigned to actors that exit before or while writing them."""

import shutil
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from teacher_cache.cache.layout import Unit
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.distributed.ray_cluster import Node
from teacher_cache.errors import ClusterError

pytest.importorskip("ray")

from teacher_cache.labeling import on_ray
from teacher_cache.labeling.actor_pool import UnitDone, UnitsLost


class DyingPool:
    """A pool whose actors exit with the first unit N times, each time on another node."""

    def __init__(self, deaths: int) -> None:
        self._nodes, self._held = deque(f"node {number}" for number in range(deaths)), list[Unit]()

    @property
    def units(self) -> set[Unit]:
        return set(self._held)

    def scale_up(self, wanted: int) -> None:
        """Do nothing: the actor exists."""

    def speculate(self, places: dict[Unit, list[str]]) -> None:
        """Do nothing: there is only one actor."""

    def cancel_stragglers(self) -> set[Unit]:
        return set()

    def describe(self) -> str:
        return "one"

    def assign(self, unit: Unit, places: list[str]) -> bool:
        if not self._held:
            self._held.append(unit)
            return True
        return False

    def wait(self, seconds: float) -> Iterator[Any]:
        unit = self._held.pop()
        yield UnitsLost([unit], "it is gone", self._nodes.popleft()) if self._nodes else UnitDone(unit)


@pytest.mark.parametrize(
    ("deaths", "living", "blamed"), [(30, 0, False), (30, 4, False), (30, 5, True), (4, 4, False)]
)
def test_unit_fails_after_deaths_on_running_nodes_but_not_after_lost_nodes(
    cache: TargetCache, monkeypatch: pytest.MonkeyPatch, deaths: int, living: int, blamed: bool
) -> None:
    nodes = [Node(f"node {number}", "127.0.0.1", 1, 0) for number in range(living)]
    monkeypatch.setattr(on_ray, "nodes", lambda: nodes)
    missing = {unit: [cache.where] for unit in cache.layout.units()}
    pool: Any = DyingPool(deaths)
    facts = r"(?=.*\b5\b)(?=.*it is gone)(?=.*job\.batch)"  # actors, the last reason, the key to lower
    with pytest.raises(ClusterError, match=facts) if blamed else nullcontext():
        on_ray._run(pool, cache.layout, missing)


class OverwritingPool(DyingPool):
    """A pool in which one actor finishes a unit and another exits while overwriting it."""

    def __init__(self, cache: TargetCache) -> None:
        super().__init__(0)
        self._cache, self._deaths = cache, 1

    def wait(self, seconds: float) -> Iterator[Any]:
        unit = self._held.pop()
        yield UnitDone(unit)
        if self._deaths:
            self._deaths = 0
            self._cache.drop(unit)
            yield UnitsLost([unit], "it is gone", "a node")


def test_unit_overwritten_by_a_dying_actor_is_checked_again(
    cache: TargetCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = TargetCache.open(shutil.copytree(cache.where, tmp_path / "cache.zarr"))
    monkeypatch.setattr(on_ray, "nodes", list)
    missing = {unit: [own.where] for unit in own.layout.units()}
    pool: Any = OverwritingPool(own)
    recheck = on_ray._run(pool, own.layout, missing)
    assert (
        recheck == own.missing() == list(on_ray._missing_units([own], recheck, check=True)) and len(recheck) == 1
    )


class StalledPool(DyingPool):
    """A pool in which one actor stalls on the last unit and another has exited without a unit."""

    def __init__(self) -> None:
        super().__init__(0)
        self._actors, self._last = 0, False

    def scale_up(self, wanted: int) -> None:
        self._actors = wanted

    def wait(self, seconds: float) -> Iterator[Any]:
        if self._last:
            assert self._actors > 1, "no second actor was started"
            yield UnitDone(self._held.pop())
        elif self._actors == 1:
            self._last = True
            yield UnitsLost([], "it is gone", "a node")
        else:
            yield UnitDone(self._held.pop())


def test_last_unit_of_a_stalled_actor_is_reassigned_after_another_death(
    cache: TargetCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "nodes", list)
    pool: Any = StalledPool()
    assert on_ray._run(pool, cache.layout, {unit: [cache.where] for unit in cache.layout.units()}) == []
