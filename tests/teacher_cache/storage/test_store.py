"""Folder and bucket stores behave the same; an unreachable store is a one-line error within seconds."""

import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from facts import assert_facts

from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.data.index import load_index
from teacher_cache.errors import LimbeckError, StoreError
from teacher_cache.storage.download import read_url
from teacher_cache.storage.local import ABANDONED_SECONDS
from teacher_cache.storage.object_store import RETRY
from teacher_cache.storage.store import Store, open_store

RACERS = 6
PATIENCE_SECONDS = 20

RACER = """
import os, sys
from teacher_cache.storage.store import open_store
store = open_store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(store.create("marker", str(os.getpid()).encode()))
"""


@pytest.fixture(params=["folder", "bucket", "container"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty location: a local folder that does not exist yet, or a prefix in an S3 or Azure server."""
    if request.param == "folder":
        return str(tmp_path / "not" / "there")
    return f"{request.getfixturevalue(f'new_{request.param}')()}/some/prefix"


@pytest.fixture
def store(where: str) -> Store:
    return open_store(where)


def test_missing_object_raises_file_not_found(store: Store) -> None:
    for name in ("zarr.json", "hard/c.0.0.0"):
        with pytest.raises(FileNotFoundError) as caught:
            store.get(name)
        assert caught.value.filename == f"{store.where}/{name}" and "\n" not in str(caught.value)


def test_put_writes_and_replaces(store: Store) -> None:
    for data in (b"one", b"", bytes(range(256)) * 5000, b"last"):
        store.put("hard/c.0.0.0", data)
        assert store.get("hard/c.0.0.0") == data == open_store(store.where).get("hard/c.0.0.0")
    assert store.sizes("hard") == {"c.0.0.0": 4}


def test_create_creates_once_and_changes_nothing_after(store: Store) -> None:
    assert store.create("units/0-2.1", b"first")
    assert not store.create("units/0-2.1", b"second")
    assert store.get("units/0-2.1") == b"first" and store.sizes("units") == {"0-2.1": 5}
    store.remove("units/0-2.1")
    assert store.create("units/0-2.1", b"third") and store.get("units/0-2.1") == b"third"


def test_exactly_one_of_many_threads_creates_an_object(store: Store) -> None:
    for attempt in range(3):
        barrier, won = threading.Barrier(RACERS), []

        def race(number: int, name: str, barrier: threading.Barrier, won: list[int]) -> None:
            barrier.wait()
            if store.create(name, str(number).encode()):
                won.append(number)

        name = f"units/{attempt}"
        threads = [threading.Thread(target=race, args=(n, name, barrier, won)) for n in range(RACERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1 and store.get(name) == str(won[0]).encode()


def test_exactly_one_of_many_processes_creates_an_object(where: str) -> None:
    command = [sys.executable, "-c", RACER, where]
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8") for _ in "abc"
    ]
    for racer in racers:  # all have imported and wait
        assert racer.stdout and racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin
        racer.stdin.write("go\n")
        racer.stdin.flush()
    created = [(racer.pid, racer.communicate()[0].strip()) for racer in racers]
    (winner,) = (number for number, won in created if won == "True")
    assert open_store(where).get("marker") == str(winner).encode()


def test_sizes_are_of_one_folder_only(store: Store) -> None:
    assert store.sizes("hard") == {}
    for name in ("zarr.json", "hard/c.0.0.0", "hard/zarr.json", "hard/deep/c.1", "hardly/c.0.0.0", "units/0-2.0"):
        store.put(name, name.encode())
    assert store.sizes("hard") == {"c.0.0.0": 12, "zarr.json": 14}
    assert store.sizes("") == {"zarr.json": 9}
    assert store.sizes("deep") == {}


def test_remove_is_idempotent(store: Store) -> None:
    store.put("units/0-2.0", b"marker")
    for _ in range(2):
        store.remove("units/0-2.0")
        assert store.sizes("units") == {}


def test_a_place_is_empty_until_something_is_there(store: Store) -> None:
    assert store.is_empty() and store.is_empty()
    store.put("hard/c.0.0.0", b"")
    assert not store.is_empty()


def test_the_prefix_of_a_bucket_ends_at_a_slash(new_bucket: Callable[[], str]) -> None:
    bucket = new_bucket()
    open_store(f"{bucket}/run-10").put("zarr.json", b"")
    assert open_store(f"{bucket}/run-1").is_empty() and open_store(f"{bucket}/run-1").sizes("") == {}
    for same in (f"{bucket}/run-10/", f"{bucket}/run-10"):
        assert not open_store(same).is_empty() and open_store(same).get("zarr.json") == b""
    assert open_store(bucket).get("run-10/zarr.json") == b""


@pytest.mark.parametrize(
    "odd", ["data#train", "data?train", "a%20b", "a%2Fb", "a b", "a+b", "a:b@c=d&e", "ü~*'[]"]
)
def test_every_letter_of_a_buckets_url_means_itself(new_bucket: Callable[[], str], odd: str) -> None:
    bucket = new_bucket()
    store = open_store(f"{bucket}/{odd}")
    store.put(f"in {odd}/{odd}", b"data")
    assert store.where == f"{bucket}/{odd}" and store.names(f"in {odd}") == {odd}
    listed = boto3.client("s3").list_objects_v2(Bucket=bucket.removeprefix("s3://"))["Contents"]
    assert [found["Key"] for found in listed] == [f"{odd}/in {odd}/{odd}"]
    assert read_url(f"{bucket}/{odd}/in {odd}/{odd}") == store.get(f"in {odd}/{odd}") == b"data"
    assert open_store(f"{bucket}/{odd.partition('#')[0]}2").is_empty()
    with pytest.raises(StoreError) as caught:
        open_store(f"{bucket}#a").put("b", b"")
    assert_facts(caught.value, f"'{bucket}#a/b'", "NoSuchBucket")


@pytest.mark.parametrize("path", ["a/../b", "./b", "a/.", ".."])
def test_a_path_that_goes_up_or_nowhere_is_refused(new_bucket: Callable[[], str], path: str) -> None:
    url = f"{new_bucket()}/{path}"
    with pytest.raises(StoreError, match=rf"'{re.escape(url)}'.*'\.'.*'\.\.'"):
        open_store(url)


def test_slashes_that_are_doubled_or_last_count_once(
    new_bucket: Callable[[], str], photos: Path, limbeck: Callable[..., str]
) -> None:
    bucket = new_bucket()
    limbeck("pack", photos, f"{bucket}/data//photos//", "--shard-rows", 16)
    packed = load_index(f"{bucket}/data/photos")
    limbeck("index", f"{bucket}//data/photos//")
    for same in ("data/photos/", "/data/photos", "data//photos//"):
        assert load_index(f"{bucket}/{same}/index.json").shards == packed.shards
        assert load_index(f"{bucket}/{same}").shards == packed.shards
        assert open_store(f"{bucket}/{same}").where == f"{bucket}/data/photos"
    assert open_store(f"{bucket}//").where == bucket and open_store(f"{bucket}/data").sizes("") == {}


def test_leftovers_of_killed_writers_are_hidden_and_removed_when_old(tmp_path: Path) -> None:
    store, now = open_store(tmp_path / "a"), time.time()
    store.put("hard/c.0.0.0", b"whole")
    half = {"old": ABANDONED_SECONDS + 60, "new": ABANDONED_SECONDS - 60}
    for name, age in half.items():
        path = tmp_path / "a" / "hard" / f".c.0.0.0.{name}.tmp"
        path.write_bytes(b"half")
        os.utime(path, (now - age, now - age))
    os.utime(tmp_path / "a" / "hard" / "c.0.0.0", (0, 0))
    assert store.sizes("hard") == {"c.0.0.0": 5}
    for _ in range(2):
        store.sweep("hard")
        left = {path.name for path in (tmp_path / "a" / "hard").iterdir()}
        assert left == {"c.0.0.0", ".c.0.0.0.new.tmp"}
    store.sweep("nowhere")


def test_a_folder_with_half_a_root_is_empty(tmp_path: Path) -> None:
    (tmp_path / ".zarr.json.0123.tmp").write_bytes(b"half")
    assert open_store(tmp_path).is_empty()


def refusal(action: Callable[[], object]) -> str:
    began = time.monotonic()
    with pytest.raises(LimbeckError) as caught:
        action()
    assert time.monotonic() - began < PATIENCE_SECONDS
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400 and "<" not in message
    return message


def test_missing_bucket_is_one_line_error(new_bucket: Callable[[], str], limbeck: Callable[..., str]) -> None:
    new_bucket()
    url = "s3://no-such-bucket/x"
    store = open_store(url)
    for action in (
        lambda: limbeck("cache", "status", url),
        lambda: limbeck("cache", "verify", url),
        lambda: store.put("a", b""),
        lambda: store.create("a", b""),
        lambda: store.sizes("units"),
        store.is_empty,
    ):
        assert_facts(
            refusal(action), f"'{url}", "NoSuchBucket: The specified bucket does not exist"
        )  # text of the S3 server


def test_prefix_without_a_cache_is_one_line_error(
    new_bucket: Callable[[], str], limbeck: Callable[..., str]
) -> None:
    url = f"{new_bucket()}/a.zarr"
    assert_facts(refusal(lambda: limbeck("cache", "status", url)), f"'{url}'", "limbeck cache build")
    open_store(url).put("notes.txt", b"")
    occupied = refusal(lambda: limbeck("cache", "status", url))
    assert_facts(occupied, f"'{url}'")
    assert "limbeck cache build" not in occupied
    assert_facts(refusal(lambda: load_index(url)), f"'{url}/index.json'", "limbeck index")


def test_unreachable_endpoint_is_one_line_error_within_seconds(
    new_bucket: Callable[[], str], limbeck: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_bucket()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("teacher_cache.storage.retry.MAX_TOTAL_SECONDS", 0.5)
    monkeypatch.setitem(RETRY, "max_retries", 3)
    address = f"http://127.0.0.1:{port}"
    assert_facts(refusal(lambda: limbeck("cache", "status", f"{url}/a")), f"'{url}/a/zarr.json'", address)
    assert_facts(refusal(lambda: load_index(url)), f"'{url}/index.json'", address)


@pytest.mark.parametrize(
    ("url", "facts"),
    [
        ("s3:/bucket/a", ["'s3:/bucket/a'", "s3://"]),
        ("s4://bucket/a", ["'s4://bucket/a'", "Protocol not known: s4"]),  # text of fsspec
        ("http://127.0.0.1/a", ["'http://127.0.0.1/a'"]),
    ],
)
def test_unwritable_scheme_is_one_line_error(url: str, facts: list[str], limbeck: Callable[..., str]) -> None:
    for action in (lambda: TargetCache.open(url), lambda: limbeck("cache", "status", url)):
        assert_facts(refusal(action), *facts)


def test_fsspec_filesystem_stores_a_cache(made_up: Any) -> None:
    url = f"memory://{secrets.token_hex(4)}/cache.zarr"
    cache = made_up.fill(TargetCache.create(url, made_up.make_manifest()))
    again = TargetCache.create(url, made_up.make_manifest())
    assert again.missing() == [] and not any(made_up.differ(again, unit) for unit in again.layout.units())
    unit = next(again.layout.units())
    cache.store.put(again.layout.object_key("hard", unit), b"spoilt")
    assert again.damage(unit) and not cache.store.create(again.layout.marker_key(unit), b"second")
    again.drop(unit)
    assert again.missing() == [unit] and set(again.bytes_by_column()) == set(cache.encoding.columns(1))


def test_a_file_url_is_a_folder(tmp_path: Path, made_up: Any) -> None:
    made_up.fill(TargetCache.create(f"file://{tmp_path}/a.zarr", made_up.make_manifest()))
    assert TargetCache.open(tmp_path / "a.zarr").missing() == []


def test_invalid_address_is_one_line_error() -> None:
    with pytest.raises(StoreError, match=r"'s3://'"):
        open_store("s3://")


def test_a_marker_follows_the_durable_data(tmp_path: Path, made_up: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every object is synced before its rename, and its rename is synced before the marker's."""
    cache = TargetCache.create(tmp_path / "a.zarr", made_up.make_manifest())
    unit = next(cache.layout.units())
    steps: list[tuple[str, str]] = []
    sync, rename, link = os.fsync, os.replace, os.link

    def synced(handle: int) -> None:
        steps.append(("sync", str(Path(f"/proc/self/fd/{handle}").readlink())))
        sync(handle)

    def renamed(source: Any, target: Any) -> None:
        steps.append(("name", f"{source} {target}"))
        rename(source, target)

    def linked(source: Any, target: Any, **options: Any) -> None:
        steps.append(("name", f"{source} {target}"))
        link(source, target, **options)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    monkeypatch.setattr(os, "link", linked)
    cache.write(unit, made_up.columns(cache, unit))
    names = [cache.layout.object_key(name, unit) for name in cache.layout.columns] + [
        cache.layout.marker_key(unit)
    ]
    for number, name in enumerate(names):
        path = tmp_path / "a.zarr" / name
        (kind, whole), (named, move), (settled, folder) = steps[3 * number : 3 * number + 3]
        assert (kind, named, settled) == ("sync", "name", "sync")
        assert move == f"{whole} {path}" and folder == str(path.parent)
    assert len(steps) == 3 * len(names)
