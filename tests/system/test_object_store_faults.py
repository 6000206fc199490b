"""Whole builds with faults of the network, and with shards that are missing or truncated in a bucket."""

from collections.abc import Callable
from pathlib import Path

import pytest
from facts import assert_facts
from fault_proxy import FAULTS, FaultProxy

from teacher_cache.cache.layout import Unit
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.data.index import ShardIndex
from teacher_cache.distributed.world import World
from teacher_cache.errors import ShardError
from teacher_cache.labeling.job import build
from teacher_cache.recipe import CacheRecipe
from teacher_cache.storage.store import open_store

Change = Callable[..., CacheRecipe]
Same = Callable[[TargetCache, TargetCache], None]


def test_a_build_through_a_network_that_fails_equals_the_local_one(
    proxy: FaultProxy,
    cache: TargetCache,
    cache_recipe: CacheRecipe,
    changed: Change,
    shards_in_bucket: str,
    new_bucket: Callable[[], str],
    assert_same: Same,
    limbeck: Callable[..., str],
) -> None:
    """Every fourth request fails, with each fault in turn: for shards, targets and markers."""
    recipe = changed(cache_recipe, f"{new_bucket()}/a.zarr", data={"train": shards_in_bucket})
    with proxy.breaking(*FAULTS, every=4):
        built = build(recipe)
        assert built.missing() == []
        assert_same(built, cache)
        limbeck("cache", "verify", built.where)
    assert proxy.faults() == set(FAULTS)


@pytest.mark.parametrize(
    "spoil",
    [lambda data: None, lambda data: data[: len(data) // 2], lambda data: data[:-9] + b"?" + data[-8:]],
)
def test_missing_or_truncated_shard_stops_the_job_and_is_named(
    cache_recipe: CacheRecipe,
    changed: Change,
    shards: ShardIndex,
    new_bucket: Callable[[], str],
    spoil: Callable[[bytes], bytes | None],
    tmp_path: Path,
) -> None:
    url = new_bucket()
    store = open_store(url)
    facts: list[object] = [f"shard '{url}/000002.tar'"]
    for path in Path(shards.folder).iterdir():
        whole = path.read_bytes()
        data = spoil(whole) if path.name == "000002.tar" else whole
        if data is not None:
            store.put(path.name, data)
            facts += [len(data), len(whole)] if len(data) < len(whole) else []
    job = {"shard_cache": str(tmp_path / "kept")}
    recipe = changed(cache_recipe, tmp_path / "a.zarr", data={"train": url}, job=job)
    with pytest.raises(ShardError) as caught:
        build(recipe, World())
    assert_facts(caught.value, *facts)
    assert {Unit(0, 0)} <= TargetCache.open(recipe.cache.path).present() <= {Unit(0, 0), Unit(0, 1)}
    assert len(list((tmp_path / "kept").glob("*.tar"))) == 2
