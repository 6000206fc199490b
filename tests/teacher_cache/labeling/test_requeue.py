"""Units given out to actors that die with them, or while they write over what another has written."""

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
    """As a crew whose actors die with the first unit so many times, each time on another node."""

    def __init__(self, deaths: int) -> None:
        self._nodes, self._held = deque(f"node {number}" for number in range(deaths)), list[Unit]()

    @property
    def units(self) -> set[Unit]:
        return set(self._held)

    def scale_up(self, wanted: int) -> None:
        """They are there."""

    def speculate(self, places: dict[Unit, list[str]]) -> None:
        """There is but one."""

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
def test_a_unit_is_blamed_for_deaths_on_nodes_that_live_on_and_not_for_nodes_that_are_taken_away(
    cache: TargetCache, monkeypatch: pytest.MonkeyPatch, deaths: int, living: int, blamed: bool
) -> None:
    nodes = [Node(f"node {number}", "127.0.0.1", 1, 0) for number in range(living)]
    monkeypatch.setattr(on_ray, "nodes", lambda: nodes)
    missing = {unit: [cache.where] for unit in cache.layout.units()}
    pool: Any = DyingPool(deaths)
    describe = "unit .* was lost with 5 actors, the last because: it is gone"
    with pytest.raises(ClusterError, match=describe) if blamed else nullcontext():
        on_ray._run(pool, cache.layout, missing)


class OverwritingPool(DyingPool):
    """As a crew of whom one ends a unit, and another dies while it writes it over."""

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


def test_a_unit_that_was_being_written_over_when_its_actor_died_is_looked_at_again(
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
    """As a crew of whom one stands still with the last unit, and another has died without any."""

    def __init__(self) -> None:
        super().__init__(0)
        self._actors, self._last = 0, False

    def scale_up(self, wanted: int) -> None:
        self._actors = wanted

    def wait(self, seconds: float) -> Iterator[Any]:
        if self._last:
            assert self._actors > 1, "nobody is begun who could do it too"
            yield UnitDone(self._held.pop())
        elif self._actors == 1:
            self._last = True
            yield UnitsLost([], "it is gone", "a node")
        else:
            yield UnitDone(self._held.pop())


def test_the_last_unit_is_not_left_to_an_actor_that_stands_still_when_another_has_died(
    cache: TargetCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "nodes", list)
    pool: Any = StalledPool()
    assert on_ray._run(pool, cache.layout, {unit: [cache.where] for unit in cache.layout.units()}) == []
