"""A real Ray cluster on this machine: its build equals the local build, whichever process is killed."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pytest
from facts import assert_facts
from toml_text import to_toml
from wait import until

from teacher_cache.cache.layout import MARKERS
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.config import resolved
from teacher_cache.distributed.ray_cluster import ray_session
from teacher_cache.errors import CacheError, ClusterError, ShardError
from teacher_cache.labeling.job import build
from teacher_cache.recipe import CacheRecipe

Change = Callable[..., CacheRecipe]
Same = Callable[[TargetCache, TargetCache], None]
Whole = Callable[[Path], None]


def build_on_ray(recipes: list[CacheRecipe], actors: int | None = None) -> None:
    from teacher_cache.labeling import on_ray  # Ray takes seconds to import, which other tests need not wait

    on_ray.build_on_ray(recipes, actors=actors)


SEEDS = {"seeds": 40, "seeds_per_unit": 4}
UNITS = 30


@pytest.fixture(scope="module")
def recipe(cache_recipe: CacheRecipe, changed: Change, tmp_path_factory: pytest.TempPathFactory) -> CacheRecipe:
    """A recipe with enough units for several seconds of work."""
    return changed(cache_recipe, tmp_path_factory.mktemp("whole") / "cache.zarr", cache=SEEDS)


@pytest.fixture(scope="module")
def whole(recipe: CacheRecipe) -> TargetCache:
    """The cache of `recipe`, built locally."""
    return build(recipe)


@pytest.fixture
def two_nodes(ray_cluster: Any) -> Any:
    """The cluster with a second node, of one CPU."""
    if not ray_cluster.worker_nodes:
        ray_cluster.add_node(num_cpus=1)
    return ray_cluster


def written(path: Path) -> int:
    """Number of units with a marker."""
    return len(list(path.glob(f"{MARKERS}/[0-9]*")))


def actors() -> list[psutil.Process]:
    """Actor processes of a build in this test's cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::BuildActor"):
                found.append(process)
        except psutil.Error:
            continue
    return found


class BackgroundBuild(threading.Thread):
    """A build by this process, in a thread."""

    def __init__(self, *recipes: CacheRecipe, actors: int | None = None) -> None:
        super().__init__(daemon=True)
        self._words, self._error = (list(recipes), actors), None
        self.start()

    def run(self) -> None:
        try:
            build_on_ray(*self._words)
        except BaseException as error:
            self._error = error

    def wait_for(self, condition: Callable[[], Any]) -> Any:
        """Wait until `condition` is true during the build; returns its value."""

        def look() -> Any:
            if not (found := condition()) and not self.is_alive():
                self.end()
                raise AssertionError("the build finished before the condition was true")
            return found

        return until(look)

    def wait_for_actors(self, count: int) -> list[psutil.Process]:
        """Wait until there are `count` actors."""
        return list(self.wait_for(lambda: (found := actors()) and len(found) == count and found))

    def end(self) -> None:
        self.join(150)
        assert not self.is_alive()
        if self._error:
            raise self._error


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Actors lost by builds of this process, as `UnitsLost` events."""
    from teacher_cache.labeling.actor_pool import ActorPool, UnitsLost

    seen, wait = [], ActorPool.wait

    def watched(pool: ActorPool, seconds: float) -> Iterator[Any]:
        for event in wait(pool, seconds):
            seen.extend([event] if isinstance(event, UnitsLost) else [])
            yield event

    monkeypatch.setattr(ActorPool, "wait", watched)
    return seen


@pytest.fixture
def assert_whole(whole: TargetCache, assert_same: Same) -> Whole:
    """Assert that a cache holds every unit, undamaged, and equals the local build."""

    def check(path: Path) -> None:
        built = TargetCache.open(path)
        assert built.missing() == []
        assert all(built.damage(unit) == [] for unit in built.present())
        assert_same(built, whole)

    return check


def test_build_with_a_killed_actor_equals_the_local_build(
    two_nodes: Any,
    recipe: CacheRecipe,
    whole: TargetCache,
    assert_whole: Whole,
    changed: Change,
    tmp_path: Path,
    lost: list[Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two caches built in one pass; the actor is killed while it works on a unit."""
    path = tmp_path / "one.zarr"
    dense = changed(recipe, tmp_path / "dense.zarr", cache=SEEDS | {"encoding": "dense"})
    with ray_session(two_nodes.address):
        job = BackgroundBuild(changed(recipe, path), dense, actors=2)
        first, other = job.wait_for_actors(2)
        assert first.ppid() != other.ppid()  # one on each node
        job.wait_for(lambda: written(path))
        first.kill()
        assert written(path) < UNITS
        job.end()
    assert_whole(path)
    second = TargetCache.open(dense.cache.path)
    assert second.missing() == []
    for seed, shard in ((0, 0), (7, 1), (19, 2)):
        assert (second.read(seed, shard).hard == whole.read(seed, shard).hard).all()
    (loss,) = lost
    assert_facts(capsys.readouterr().err, loss.reason)


def test_units_of_a_stalled_actor_are_built_by_another(
    two_nodes: Any,
    recipe: CacheRecipe,
    assert_whole: Whole,
    changed: Change,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The actor is stopped while it owns units, one of them started, until the build has finished without it."""
    path = tmp_path / "cache.zarr"
    with ray_session(two_nodes.address):
        job = BackgroundBuild(changed(recipe, path), actors=2)
        still, _ = job.wait_for_actors(2)
        job.wait_for(lambda: written(path))
        still.suspend()
        assert written(path) < UNITS
        try:
            job.end()
        finally:
            still.resume() if still.is_running() else None
    assert_whole(path)
    errors = capsys.readouterr().err
    assert_facts(errors.partition("\n")[0], two_nodes.address)
    assert re.search(r"\b[12] actor", errors) and not re.search(r"\b0 actor", errors)


def test_killed_driver_resumes_after_rerun(
    ray_cluster: Any, recipe: CacheRecipe, assert_whole: Whole, changed: Change, tmp_path: Path
) -> None:
    """Through the command line, with a worker for each teacher."""
    path = tmp_path / "cache.zarr"
    chosen = changed(recipe, path, job={"workers": 1})
    (tmp_path / "recipe.toml").write_text(to_toml(resolved(chosen)), encoding="utf-8")
    command = [sys.executable, "-m", "server.cli", "cache", "build", tmp_path / "recipe.toml"]
    with subprocess.Popen(
        [*map(str, command), "--on", f"ray={ray_cluster.address}"], stderr=subprocess.PIPE
    ) as driver:
        until(lambda: written(path) or driver.poll() is not None)
        driver.kill()
        assert driver.stderr and driver.wait() == -signal.SIGKILL, driver.stderr.read()
    kept = written(path)
    assert 0 < kept < UNITS
    before = {marker.name: marker.stat().st_mtime_ns for marker in (path / MARKERS).glob("[0-9]*")}
    until(lambda: not actors())  # actors exit with their driver
    before |= {marker.name: marker.stat().st_mtime_ns for marker in (path / MARKERS).glob("[0-9]*")}
    with ray_session(ray_cluster.address):
        build_on_ray([chosen])
    assert {name: (path / MARKERS / name).stat().st_mtime_ns for name in before} == before
    assert_whole(path)


@pytest.mark.parametrize(
    ("job", "most", "facts"),
    [
        ({"device": "cuda"}, None, ["3 CPUs", "0 GPUs", "2 nodes", "1 CPU", "1 GPU", "job.device"]),
        ({"workers": 7}, None, ["3 CPUs", "job.device = 'cpu'", "job.workers = 7", "8 CPUs"]),
        ({}, 9, ["3 CPUs", "1 CPU", 9, "--actors"]),
    ],
)
def test_cluster_without_enough_resources_is_one_line_error(
    two_nodes: Any, recipe: CacheRecipe, changed: Change, tmp_path: Path, job: Any, most: Any, facts: Any
) -> None:
    with ray_session(two_nodes.address), pytest.raises(ClusterError) as caught:
        build_on_ray([changed(recipe, tmp_path / "cache.zarr", job=job)], actors=most)
    assert_facts(caught.value, *facts)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache.zarr").exists()


def test_error_in_an_actor_is_reported_as_in_a_local_job(
    ray_cluster: Any, recipe: CacheRecipe, changed: Change, tmp_path: Path
) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for file in Path(recipe.data.train).iterdir():
        if file.name != "000001.tar":
            (folder / file.name).symlink_to(file)
    chosen = changed(recipe, tmp_path / "cache.zarr", data={"train": str(folder)})
    with (
        ray_session(ray_cluster.address),
        pytest.raises(ShardError, match=r"'.*/000001\.tar'"),
    ):
        build_on_ray([chosen], actors=1)


def test_killed_node_loses_nothing_and_node_with_other_libraries_is_skipped(
    two_nodes: Any,
    recipe: CacheRecipe,
    assert_whole: Whole,
    changed: Change,
    tmp_path: Path,
    lost: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A third node has another version of xxhash in its metadata. This test runs last: it leaves one node."""
    path, other = tmp_path / "cache.zarr", tmp_path / "other" / "xxhash-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: xxhash\nVersion: 0.0.1\n")
    (second,) = two_nodes.worker_nodes
    monkeypatch.setenv("PYTHONPATH", str(other.parent), prepend=":")
    odd = two_nodes.add_node(num_cpus=3)
    facts = "127.0.0.1", "libraries.xxhash", f"'{version('xxhash')}'", "'0.0.1'"
    with ray_session(two_nodes.address):
        with pytest.raises(CacheError) as caught:
            build_on_ray([changed(recipe, tmp_path / "none.zarr", job={"workers": 2})])  # fits nowhere else
        assert_facts(caught.value, *facts)
        assert "\n" not in str(caught.value) and written(tmp_path / "none.zarr") == 0
        capsys.readouterr()

        first_raylet, second_raylet = (
            node.all_processes["raylet"][0].process.pid for node in (two_nodes.head_node, second)
        )
        job, stopped, printed = (
            BackgroundBuild(changed(recipe, path), actors=3),
            set[psutil.Process](),
            list[str](),
        )

        def stop_local_actors() -> bool:
            """Stop the first node's actors when they start, so that they do not finish the job too early."""
            for actor in {actor for actor in actors() if actor.ppid() == first_raylet} - stopped:
                actor.suspend()
                stopped.add(actor)
            return bool(stopped)

        def refused() -> int:
            """Number of messages so far that name the library that differs."""
            printed.append(capsys.readouterr().err)
            return "".join(printed).count("libraries.xxhash")

        job.wait_for(lambda: stop_local_actors() and written(path))
        (at_work,) = [actor for actor in actors() if actor.ppid() == second_raylet]
        at_work.suspend()
        assert written(path) < UNITS
        two_nodes.remove_node(second, allow_graceful=False)  # SIGKILL of its raylet
        at_work.kill()
        job.wait_for(lambda: stop_local_actors() and refused() and lost)
        assert written(path) < UNITS
        for actor in stopped:
            actor.resume()
        job.end()
    assert_whole(path)
    assert refused() == 1 and [len(loss.units) for loss in lost if loss.units] == [2]
    assert_facts("".join(printed), *facts, lost[0].reason)
    two_nodes.remove_node(odd)
