"""Shards and caches in Azure Blob Storage equal local ones."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from azure.storage.blob import ContainerClient
from azurite import KEY

from teacher_cache.cache.layout import Unit
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.data.index import ShardIndex, load_index
from teacher_cache.data.shards import read_shard
from teacher_cache.distributed.world import World
from teacher_cache.errors import EXIT_USER_ERROR, CacheError, StoreError
from teacher_cache.labeling.job import build
from teacher_cache.recipe import CacheRecipe
from teacher_cache.storage import object_store as bucket
from teacher_cache.storage.store import open_store

Change = Callable[..., CacheRecipe]
Same = Callable[[TargetCache, TargetCache], None]
LARGE = 6 * 2**20
"""Bytes; an object of this size is uploaded in two parts."""


def container_client(url: str) -> ContainerClient:
    """Azure's client for the container of an az:// URL."""
    name = url.removeprefix("az://").partition("/")[0]
    return ContainerClient(os.environ["AZURE_STORAGE_ENDPOINT"], name, credential=KEY)


@pytest.fixture(scope="module")
def remote(
    shards: ShardIndex, cache_recipe: CacheRecipe, changed: Change, new_container: Callable[[], str]
) -> CacheRecipe:
    """The cache recipe of the tests, with shards and cache in the Azure server."""
    url = new_container()
    with container_client(url) as client:
        for file in Path(shards.folder).iterdir():
            client.upload_blob(f"data/shards/{file.name}", file.read_bytes())
    return changed(cache_recipe, f"{url}/a/cache.zarr", data={"train": f"{url}/data/shards"})


def test_shards_are_read_from_a_container(shards: ShardIndex, remote: CacheRecipe) -> None:
    index = load_index(remote.data.train)
    assert index.contents() == shards.contents()
    assert [read_shard(index, number) for number in range(3)] == [read_shard(shards, n) for n in range(3)]


def test_a_cache_in_a_container_equals_the_local_one(
    cache: TargetCache, remote: CacheRecipe, changed: Change, assert_same: Same, limbeck: Callable[..., str]
) -> None:
    """One job builds half of the units; a spawned loader worker of another job helps with the rest."""
    units = list(cache.layout.units())
    assert build(remote, World(0, 2)).missing() == units[1::2]
    built = build(changed(remote, remote.cache.path, job={"workers": 1}))
    assert built.missing() == [] and built.where.startswith("az://")
    assert_same(built, cache)
    with container_client(built.where) as client:
        found = {blob.name: blob.size for blob in client.list_blobs(name_starts_with="a/cache.zarr/")}
    local = Path(cache.where)
    files = {f"a/cache.zarr/{file.relative_to(local)}" for file in local.rglob("*") if file.is_file()}
    assert found.keys() == files and min(found.values()) > 0
    limbeck("cache", "verify", built.where, "--replay", 6, "--teacher")


def test_lost_object_in_a_container_is_built_again(
    cache: TargetCache, remote: CacheRecipe, assert_same: Same
) -> None:
    built, unit = build(remote), Unit(1, 2)
    name = built.layout.object_key("hard", unit)
    with container_client(built.where) as client:
        client.delete_blob(f"a/cache.zarr/{name}")
    with pytest.raises(CacheError, match="seed 2, shard 2"):
        built.read(2, 2)
    assert any(name in damage for damage in built.damage(unit))
    assert_same(build(remote), cache)


def test_large_object_in_several_parts_is_complete(new_container: Callable[[], str]) -> None:
    url, data = new_container(), os.urandom(LARGE)
    store = open_store(f"{url}/a")
    store.put("large", data)
    assert store.get("large") == data and store.sizes("") == {"large": LARGE}
    with container_client(url) as client:
        assert client.download_blob("a/large").readall() == data
        assert len(client.get_blob_client("a/large").get_block_list()[0]) == 2


def test_missing_container_exits_with_2_and_is_named(new_container: Callable[[], str]) -> None:
    url = f"{new_container()}-not"
    for act in (lambda: open_store(url).put("a", b""), lambda: load_index(url)):
        with pytest.raises(StoreError, match=f"{url}.*ContainerNotFound") as caught:
            act()
        assert caught.value.status == EXIT_USER_ERROR


@pytest.mark.parametrize(
    ("scheme", "variable"),
    [("s3", "AWS_SECRET_ACCESS_KEY"), ("gs", "GOOGLE_SERVICE_ACCOUNT"), ("az", "AZURE_STORAGE_ACCOUNT_KEY")],
)
def test_error_for_missing_keys_names_the_variable(
    scheme: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine has no role that grants access either."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "limbeck")
    monkeypatch.setattr(bucket, "RETRY", bucket.RETRY | {"max_retries": 0})
    monkeypatch.setitem(bucket.TIMEOUTS, "connect_timeout", "1 second")
    with pytest.raises(StoreError, match=variable) as caught:
        open_store(f"{scheme}://limbeck/a").put("b", b"")
    assert caught.value.status == EXIT_USER_ERROR
