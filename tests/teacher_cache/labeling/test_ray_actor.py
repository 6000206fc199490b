"""The Ray actor of the teacher job, called directly, without Ray."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from facts import assert_facts
from fault_proxy import FaultProxy

from teacher_cache.cache.layout import Unit
from teacher_cache.errors import LoaderLostError
from teacher_cache.labeling.prepare import load_teachers, open_caches
from teacher_cache.labeling.ray_actor import BuildActor
from teacher_cache.labeling.unit_dataset import UnitBatch
from teacher_cache.recipe import CacheRecipe

WAIT_SECONDS = 60


@pytest.fixture
def orphaned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After the test, actors exit, as they do when their parent process exits."""
    before = set(threading.enumerate())
    yield
    monkeypatch.setattr(os, "getppid", lambda: 0)
    for thread in set(threading.enumerate()) - before:
        if thread.name.endswith("(_work)"):
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive()


@pytest.mark.usefixtures("orphaned")
def test_the_next_units_shard_is_fetched_while_one_is_worked_on(
    proxy: FaultProxy,
    cache_recipe: CacheRecipe,
    changed: Callable[..., CacheRecipe],
    shards_in_bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places = {"data": {"train": shards_in_bucket}, "job": {"shard_cache": str(tmp_path / "kept"), "workers": 0}}
    recipe = changed(cache_recipe, tmp_path / "cache.zarr", **places)
    index, teachers = load_teachers([recipe])
    (cache,) = open_caches([(recipe, teachers[0])], index, [None], False)
    submit, downloads = BuildActor._submit, list[int]()

    def when_both_were_asked_for(actor: BuildActor, unit_batch: UnitBatch) -> None:
        end = time.monotonic() + WAIT_SECONDS
        while not proxy.asked("000001.tar") and time.monotonic() < end:
            time.sleep(0.01)
        downloads.append(len(proxy.asked("000001.tar")))
        submit(actor, unit_batch)

    monkeypatch.setattr(BuildActor, "_submit", when_both_were_asked_for)
    actor = BuildActor()
    actor.start(str(Path.cwd()), [recipe], teachers, index, "cpu")
    units = [Unit(0, 0), Unit(0, 1)]
    calls = [threading.Thread(target=actor.label, args=(unit, [cache.where]), daemon=True) for unit in units]
    for call in calls:
        call.start()
        time.sleep(0.05)  # in this order
    for call in calls:
        call.join(2 * WAIT_SECONDS)
    assert cache.present() == set(units)
    assert downloads[0] == 1 and len(proxy.asked(".tar")) == 2


@pytest.mark.usefixtures("orphaned")
def test_a_killed_worker_ends_the_calls_of_its_actor(
    cache_recipe: CacheRecipe, changed: Callable[..., CacheRecipe], tmp_path: Path
) -> None:
    recipe = changed(cache_recipe, tmp_path / "cache.zarr", job={"workers": 1})
    index, teachers = load_teachers([recipe])
    (cache,) = open_caches([(recipe, teachers[0])], index, [None], False)
    before, actor = {*psutil.Process().children()}, BuildActor()
    actor.start(str(Path.cwd()), [recipe], teachers, index, "cpu")
    actor.label(Unit(0, 0), [cache.where])
    (worker,) = {*psutil.Process().children()} - before
    worker.kill()
    for unit in (Unit(0, 1), Unit(0, 2)):
        with ThreadPoolExecutor(1) as thread:
            error = thread.submit(actor.label, unit, [cache.where]).exception(WAIT_SECONDS)
        assert isinstance(error, LoaderLostError)
        assert_facts(error, f"pid {worker.pid}", "SIGKILL")
