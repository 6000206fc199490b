"""Several jobs on one cache: with ranks each builds its share; without ranks little work is repeated."""

import multiprocessing
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from facts import assert_facts
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_cache.cache.layout import Unit
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.distributed.world import World, find_world
from teacher_cache.errors import CacheError, RecipeError
from teacher_cache.labeling.job import build
from teacher_cache.labeling.labeler import Labeler
from teacher_cache.labeling.unit_dataset import UnitBatch
from teacher_cache.packing.pack import pack
from teacher_cache.recipe import CacheRecipe
from teacher_cache.storage.local import LocalStore

Change = Callable[..., CacheRecipe]
Same = Callable[[TargetCache, TargetCache], None]
ARRAY = {"SLURM_ARRAY_TASK_COUNT": "8", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}
"""Set by sbatch besides the task number; the script is one process, however many tasks srun starts."""
processes = multiprocessing.get_context("fork")


@pytest.mark.parametrize(
    ("environment", "world"),
    [
        ({}, None),
        ({"WORLD_SIZE": "4"}, None),
        ({"RANK": "3", "WORLD_SIZE": "4"}, World(3, 4)),
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "9"}, World(1, 2)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "9"}, None),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "9"}, World(5, 9)),
        (  # srun with three tasks in the third of eight
            ARRAY | {"SLURM_ARRAY_TASK_ID": "2", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "3"},
            World(7, 24),
        ),
        ({"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "8"}, World(2, 8)),
        (ARRAY | {"SLURM_ARRAY_TASK_ID": "8", "SLURM_ARRAY_TASK_MIN": "1"}, World(7, 8)),
        (  # --array=3-17:2
            ARRAY | {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_STEP": "2"},
            World(2, 8),
        ),
        ({"JOB_COMPLETION_INDEX": "0", "WORLD_SIZE": "3"}, World(0, 3)),
    ],
)
def test_rank_and_size_come_from_the_launcher(environment: dict[str, str], world: World | None) -> None:
    assert find_world(None, None, environment) == world
    assert find_world(1, 5, environment) == World(1, 5)  # the flags take precedence


@pytest.mark.parametrize(
    ("environment", "facts"),
    [
        ({"RANK": "3"}, ["RANK", "WORLD_SIZE", "--rank", "--world"]),
        ({"JOB_COMPLETION_INDEX": "3"}, ["JOB_COMPLETION_INDEX", "WORLD_SIZE", "--rank", "--world"]),
        ({"SLURM_STEP_NUM_TASKS": "3"}, ["SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "--rank", "--world"]),
        ({"SLURM_ARRAY_TASK_ID": "3"}, ["SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "--rank", "--world"]),
        ({"RANK": "one", "WORLD_SIZE": "2"}, ["RANK = 'one'", "WORLD_SIZE = '2'", "--rank", "--world"]),
        ({"RANK": "2", "WORLD_SIZE": "2"}, ["rank 2", "2", "0", "1"]),
        (
            {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "x"},
            ["SLURM_ARRAY_TASK_ID = '1'", "SLURM_ARRAY_TASK_COUNT = '2'", "--rank", "--world"],
        ),
        (
            {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1"},
            ["rank 8", "4", "0", "3"],
        ),
    ],
)
def test_incomplete_launcher_environment_is_reported(environment: dict[str, str], facts: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        find_world(None, None, environment)
    assert_facts(caught.value, *facts)


@pytest.mark.parametrize(("rank", "size"), [(1, None), (None, 2), (2, 2), (-1, 2), (0, 0)])
def test_rank_and_world_flags_need_each_other(rank: int | None, size: int | None) -> None:
    with pytest.raises(RecipeError) as caught:
        find_world(rank, size, {"RANK": "0", "WORLD_SIZE": "1"})
    half = rank is None or size is None
    assert_facts(caught.value, *(["--rank", "--world"] if half else [f"rank {rank}", size]))


@pytest.fixture(scope="module")
def small(
    cache_recipe: CacheRecipe, photos: Path, changed: Change, tmp_path_factory: pytest.TempPathFactory
) -> CacheRecipe:
    """Six photos in three shards under four seeds: six units."""
    root = tmp_path_factory.mktemp("small")
    pack(photos, root / "shards", shard_rows=2, limit=6)
    return changed(cache_recipe, root / "whole.zarr", data={"train": str(root / "shards")})


@pytest.fixture(scope="module")
def whole(small: CacheRecipe) -> TargetCache:
    return build(small)


@settings(max_examples=8)
@given(size=st.integers(1, 7), data=st.data())
def test_each_rank_builds_only_its_share(
    small: CacheRecipe,
    whole: TargetCache,
    changed: Change,
    assert_same: Same,
    tmp_path_factory: pytest.TempPathFactory,
    size: int,
    data: st.DataObject,
) -> None:
    recipe = changed(small, tmp_path_factory.mktemp("ranks") / "a.zarr")
    units, done = list(whole.layout.units()), set[Unit]()
    for rank in data.draw(st.permutations(range(size))):
        now = build(recipe, World(rank, size)).present()
        assert now - done == set(units[rank::size]) and done <= now
        done = now
    assert done == set(units)
    assert_same(TargetCache.open(recipe.cache.path), whole)


def _build(recipe: CacheRecipe, journal: Path, barrier: Any) -> None:
    """Build, and write a line for every batch that the teacher labels."""
    submit = Labeler.submit

    def counted(labeler: Labeler, batch: UnitBatch) -> None:
        if batch.views and labeler.expects(batch.unit):
            with journal.open("a", encoding="utf-8") as lines:
                lines.write(f"{batch.views.seed} {batch.views.shard}\n")
        submit(labeler, batch)

    Labeler.submit = counted
    barrier.wait()
    build(recipe)


def test_two_jobs_without_ranks_share_the_work(
    cache: TargetCache, cache_recipe: CacheRecipe, changed: Change, assert_same: Same, tmp_path: Path
) -> None:
    # Several batches per unit, as in a real job: then at most one unit waits to be written.
    spec: dict[str, Any] = {"cache": {"seeds": 32, "seeds_per_unit": 1}, "job": {"batch": 2}}
    alone = build(changed(cache_recipe, tmp_path / "alone.zarr", **spec))
    recipe, barrier = changed(cache_recipe, tmp_path / "both.zarr", **spec), processes.Barrier(2)
    journals = [tmp_path / f"{number}.txt" for number in range(2)]
    jobs = [processes.Process(target=_build, args=(recipe, journal, barrier)) for journal in journals]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
        assert job.exitcode == 0
    both = TargetCache.open(recipe.cache.path)
    assert both.missing() == [] and not both.damaged_metadata()
    assert_same(both, alone)
    each = [Counter(journal.read_text().splitlines()) for journal in journals]
    batch_count = sum(both.rows) // 2 * 32
    assert len(each[0] + each[1]) == 96 and min(part.total() for part in each) >= batch_count / 6
    assert batch_count <= (each[0] + each[1]).total() <= batch_count * 1.3


class Turns:
    """Lets two writers continue one call at a time, in a given order; a single writer is not limited."""

    def __init__(self, order: list[int]) -> None:
        self._order, self._left, self._change = order, {0, 1}, threading.Condition()

    def take(self, number: int) -> None:
        with self._change:
            self._change.wait_for(lambda: not self._order or len(self._left) < 2 or self._order[0] == number)
            if self._order:
                self._order.pop(0)
            self._change.notify_all()

    def leave(self, number: int) -> None:
        with self._change:
            self._left.discard(number)
            self._change.notify_all()


class InTurn(LocalStore):
    """A folder store whose calls wait for their turn."""

    def __init__(self, path: Path, turns: Turns, number: int) -> None:
        super().__init__(path)
        self._turns, self._number = turns, number

    def get(self, name: str) -> bytes:
        self._turns.take(self._number)
        return super().get(name)

    def put(self, name: str, data: bytes) -> None:
        self._turns.take(self._number)
        super().put(name, data)

    def create(self, name: str, data: bytes) -> bool:
        self._turns.take(self._number)
        return super().create(name, data)

    def remove(self, name: str) -> None:
        self._turns.take(self._number)
        super().remove(name)


@settings(max_examples=60)
@given(order=st.lists(st.integers(0, 1), max_size=40))
def test_two_jobs_with_different_bits_leave_a_matching_marker_or_none(
    made_up: Any, tmp_path_factory: pytest.TempPathFactory, order: list[int]
) -> None:
    """Two processes write different bytes, like two kinds of GPU. A marker, if written, matches the objects."""
    cache, unit = (
        TargetCache.create(tmp_path_factory.mktemp("two") / "a.zarr", made_up.make_manifest("hard")),
        Unit(0, 1),
    )
    turns, failures = Turns(order), []

    def write(number: int) -> None:
        own = TargetCache(InTurn(Path(cache.where), turns, number), cache.manifest)
        try:
            own.write(unit, made_up.columns(cache, unit, "ab"[number]))
        except CacheError as error:
            failures.append(str(error))
        finally:
            turns.leave(number)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    if cache.has(unit):
        assert cache.damage(unit) == []
        assert not made_up.differ(cache, unit, "a") or not made_up.differ(cache, unit, "b")
    else:
        assert len(failures) == 2
    for message in failures:
        assert_facts(message, f"'{cache.where}'", unit)


def test_a_unit_whose_objects_are_another_jobs_is_built_again(
    small: CacheRecipe, whole: TargetCache, changed: Change, assert_same: Same, tmp_path: Path
) -> None:
    """A job with other bits overwrote an object of a complete unit, then was killed."""
    path = Path(shutil.copytree(whole.where, tmp_path / "a.zarr"))
    cache = TargetCache.open(path)
    name, other = (cache.layout.object_key("value", unit) for unit in (Unit(0, 1), Unit(1, 1)))
    cache.store.put(name, cache.store.get(other))
    (found,) = cache.damage(Unit(0, 1))
    assert_facts(found, f"'{name}'")
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*.1.1*")}
    assert_same(build(changed(small, path)), whole)
    assert cache.damage(Unit(0, 1)) == []
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*.1.1*")} == before  # the others are left alone
