"""Shards and cache in an S3 bucket: all operations of a folder, with the same bits."""

import re
import threading
from collections.abc import Callable
from dataclasses import replace

import boto3
import pytest
from facts import assert_facts

from teacher_cache.cache.layout import Unit
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.data.index import ShardIndex, load_index
from teacher_cache.data.shards import read_shard
from teacher_cache.distributed.world import World
from teacher_cache.errors import CacheError
from teacher_cache.labeling.job import build
from teacher_cache.recipe import CacheRecipe
from teacher_cache.storage.store import open_store

Change = Callable[..., CacheRecipe]
Same = Callable[[TargetCache, TargetCache], None]


@pytest.fixture(scope="module")
def remote(
    cache_recipe: CacheRecipe, changed: Change, shards_in_bucket: str, new_bucket: Callable[[], str]
) -> CacheRecipe:
    """The tests' recipe with shards and cache in the S3 server."""
    return changed(cache_recipe, f"{new_bucket()}/a/cache.zarr", data={"train": shards_in_bucket})


@pytest.fixture(scope="module")
def built(remote: CacheRecipe) -> TargetCache:
    """The cache of `remote`; a test that damages it repairs it."""
    return build(remote)


def test_shards_are_read_from_a_bucket(shards: ShardIndex, shards_in_bucket: str) -> None:
    index = load_index(shards_in_bucket)
    assert index.contents() == shards.contents() and index.url(0) == f"{shards_in_bucket}/000000.tar"
    assert [read_shard(index, number) for number in range(3)] == [
        read_shard(shards, number) for number in range(3)
    ]


def test_a_cache_in_a_bucket_equals_the_local_one(
    cache: TargetCache, built: TargetCache, assert_same: Same
) -> None:
    assert built.missing() == [] and built.where.startswith("s3://")
    assert_same(built, cache)
    assert built.bytes_by_column() == cache.bytes_by_column()
    for unit in cache.layout.units():
        for name in (
            cache.layout.marker_key(unit),
            *(cache.layout.object_key(column, unit) for column in cache.layout.columns),
        ):
            assert built.store.get(name) == cache.store.get(name)


def test_second_job_completes_a_started_cache(
    cache: TargetCache, remote: CacheRecipe, changed: Change, assert_same: Same, new_bucket: Callable[[], str]
) -> None:
    """The worker process is spawned: the threads of an object store do not survive a fork."""
    recipe = changed(remote, f"{new_bucket()}/b.zarr", data={"train": remote.data.train})
    units = list(cache.layout.units())
    assert build(recipe, World(0, 2)).missing() == units[1::2]
    done = build(changed(recipe, recipe.cache.path, job={"workers": 1}))
    assert done.missing() == []
    assert_same(done, cache)


def test_status_verify_and_replay_read_from_a_bucket(built: TargetCache, limbeck: Callable[..., str]) -> None:
    assert re.search(r"\bunits\W+6\D+6\b", limbeck("cache", "status", built.where))
    assert re.search(r"\b6\D+6\D+6\b", limbeck("cache", "verify", built.where, "--replay", 6, "--teacher"))


def test_an_object_damaged_in_the_bucket_is_named_and_built_again(
    cache: TargetCache, built: TargetCache, remote: CacheRecipe, limbeck: Callable[..., str], assert_same: Same
) -> None:
    _, _, bucket, prefix = built.where.split("/", 3)
    client, unit = boto3.client("s3"), Unit(1, 2)
    names = [built.layout.object_key(column, unit) for column in ("value", "hard")]
    body = client.get_object(Bucket=bucket, Key=f"{prefix}/{names[0]}")["Body"].read()
    client.put_object(Bucket=bucket, Key=f"{prefix}/{names[0]}", Body=body[:9] + b"?" + body[10:])
    client.delete_object(Bucket=bucket, Key=f"{prefix}/{names[1]}")
    for found, name in zip(built.damage(unit), names[::-1], strict=True):
        assert_facts(found, f"'{name}'")
    with pytest.raises(CacheError, match=r"\b2\D+6\D+6\b.*limbeck cache build"):
        limbeck("cache", "verify", built.where)
    with pytest.raises(CacheError, match=r"seed 2.*shard 2.*limbeck cache verify"):
        built.read(2, 2)
    again = build(remote)
    assert client.get_object(Bucket=bucket, Key=f"{prefix}/{names[0]}")["Body"].read() == body
    assert_same(again, cache)
    limbeck("cache", "verify", built.where)


def test_two_creators_in_a_bucket_open_the_same_cache(cache: TargetCache, new_bucket: Callable[[], str]) -> None:
    for attempt in range(5):
        url, barrier, opened = f"{new_bucket()}/{attempt}.zarr", threading.Barrier(2), []

        def make(seeds: int, url: str, barrier: threading.Barrier, opened: list[TargetCache]) -> None:
            barrier.wait()
            opened.append(TargetCache.create(url, replace(cache.manifest, seeds=seeds)))

        creators = [threading.Thread(target=make, args=(seeds, url, barrier, opened)) for seeds in (2, 4)]
        for creator in creators:
            creator.start()
        for creator in creators:
            creator.join()
        made = TargetCache.open(url)
        assert [one.manifest for one in opened] == [made.manifest] * 2
        assert made.manifest.seeds in (2, 4) and not made.damaged_metadata()


def test_a_cache_beside_another_in_a_bucket_is_not_seen(built: TargetCache, limbeck: Callable[..., str]) -> None:
    near = built.where.removesuffix("he.zarr")  # a prefix of its name, but no folder
    assert open_store(near).is_empty()
    with pytest.raises(CacheError) as caught:
        limbeck("cache", "status", near)
    assert_facts(caught.value, f"'{near}'", "limbeck cache build")
