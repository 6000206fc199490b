"""The shard cache that processes share: within its limit, never partial, nothing fetched twice."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from facts import assert_facts
from fault_proxy import FaultProxy
from hypothesis import given, settings
from hypothesis import strategies as st
from other_user import by_another_user, shared_folder

from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.data.index import ShardIndex, load_index
from teacher_cache.data.prefetch import prefetch
from teacher_cache.data.shards import read_shard, with_shard_cache
from teacher_cache.disk_cache.shard_cache import ShardCache, ShardCacheSpec
from teacher_cache.errors import RecipeError, ShardError
from teacher_cache.labeling.job import build
from teacher_cache.recipe import CacheRecipe

LIMIT = 1000

READER = """
import sys
from teacher_cache.disk_cache.shard_cache import ShardCacheSpec
from teacher_cache.data.index import load_index
from teacher_cache.data.shards import with_shard_cache, read_shard
index = with_shard_cache(load_index(sys.argv[1]), ShardCacheSpec(shard_cache=sys.argv[2]), "job")
print("ready", flush=True)
sys.stdin.readline()
print(sum(len(read_shard(index, number)) for number in range(len(index.shards))))
"""

WRITER = """
import os, signal, sys
from pathlib import Path
from teacher_cache.disk_cache.shard_cache import ShardCache

write = Path.write_bytes
def half(path, data):
    write(path, data[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)

Path.write_bytes = half
ShardCache(sys.argv[1], 1000).read(sys.argv[2], 600, lambda: b"a" * 600)
"""


def held(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def read(cache: ShardCache, data: bytes, fetched: list[bytes], verify: bool = True) -> bytes:
    def download() -> bytes:
        fetched.append(data)
        return data

    return cache.read(hashlib.md5(data).hexdigest(), len(data), download, verify)


@settings(max_examples=40)
@given(wanted=st.lists(st.integers(1, 12), max_size=40))
def test_limit_is_kept_and_recently_used_shards_stay(
    wanted: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Shard n has 40 n + 100 bytes. Least recently used shards are removed first."""
    folder = tmp_path_factory.mktemp("kept")
    cache, fetched, used = ShardCache(str(folder), LIMIT), list[bytes](), list[bytes]()
    for turn, number in enumerate(wanted):
        data = bytes([number]) * (40 * number + 100)
        before = len(fetched)
        assert read(cache, data, fetched) == data
        since = used[used.index(data) :] if data in used else None
        fits = since is not None and sum(map(len, since)) <= LIMIT
        assert (len(fetched) == before) == fits
        used = [one for one in used if one != data] + [data]
        assert held(folder) <= LIMIT
        for path in folder.glob("*.tar"):  # the clock is too coarse for this test
            if path.stat().st_size == len(data):
                os.utime(path, ns=(turn, turn))


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: b"?" + data[1:]])
def test_damaged_cached_shard_is_fetched_again(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    cache, fetched, data = ShardCache(str(tmp_path), LIMIT), list[bytes](), b"a" * 300
    read(cache, data, fetched)
    (path,) = tmp_path.glob("*.tar")
    path.write_bytes(spoil(data))
    assert read(cache, data, fetched) == data and len(fetched) == 2 and path.read_bytes() == data


def test_failed_download_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    def fail() -> bytes:
        raise ShardError("no such shard")

    with pytest.raises(ShardError, match="no such shard"):
        ShardCache(str(tmp_path), LIMIT).read("0" * 32, 100, fail)
    assert held(tmp_path) == 0


def test_writer_killed_midway_leaves_no_complete_shard(tmp_path: Path) -> None:
    data = b"a" * 600
    command = [sys.executable, "-c", WRITER, str(tmp_path), hashlib.md5(data).hexdigest()]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert held(tmp_path) == 300  # half a shard was written
    fetched: list[bytes] = []
    assert read(ShardCache(str(tmp_path), LIMIT), data, fetched) == data and len(fetched) == 1
    assert held(tmp_path) == 600


def test_two_processes_fetch_each_shard_once_and_one_killed_in_the_middle_frees_its_shard(
    proxy: FaultProxy, shards: ShardIndex, shards_in_bucket: str, tmp_path: Path
) -> None:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", READER, shards_in_bucket, str(tmp_path)]
    first, second, third = (subprocess.Popen(command, stdin=pipe, stdout=pipe, encoding="utf-8") for _ in range(3))
    for reader in (first, second, third):
        assert reader.stdin and reader.stdout and reader.stdout.readline() == "ready\n"
    with proxy.breaking("stalled", every=100, where="000000.tar"):
        print("go", file=first.stdin, flush=True)
        while not proxy.asked("000000.tar"):
            time.sleep(0.01)
        for reader in (second, third):
            print("go", file=reader.stdin, flush=True)
        time.sleep(0.2)
        first.kill()  # during its download, while the others wait for it
        assert [reader.communicate()[0] for reader in (second, third)] == ["40\n", "40\n"]
        first.communicate()
    assert sorted(path.rpartition("/")[2] for path in proxy.asked(".tar")) == [
        *("000000.tar", "000000.tar"),  # the second of them after the kill
        *("000001.tar", "000002.tar"),
    ]
    assert held(tmp_path) == sum(shard.bytes for shard in shards.shards)


def test_a_shard_removed_by_another_process_is_fetched_again(
    shards: ShardIndex, shards_in_bucket: str, tmp_path: Path
) -> None:
    index = with_shard_cache(load_index(shards_in_bucket), ShardCacheSpec(shard_cache=str(tmp_path)), "job")
    whole = read_shard(shards, 0)
    assert read_shard(index, 0) == whole
    (path,) = tmp_path.glob("*.tar")
    with path.open("rb") as reading:
        path.unlink()
        assert len(reading.read()) == shards.shards[0].bytes  # an open file stays readable
    assert read_shard(index, 0, verify=False) == whole and path.exists()


def test_next_shards_are_prefetched(proxy: FaultProxy, shards_in_bucket: str, tmp_path: Path) -> None:
    index = with_shard_cache(load_index(shards_in_bucket), ShardCacheSpec(shard_cache=str(tmp_path)), "job")
    requested = [2, 2, 2, 0, 0, 1, 2]
    seen = []
    for shard in prefetch(requested, index, int):
        seen.append(shard)
        read_shard(index, shard)
        deadline = time.monotonic() + 10
        while len(set(proxy.asked(".tar"))) < min(len(set(seen)) + 1, 3):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert seen == requested and len(proxy.asked(".tar")) == 3


def test_resumed_build_fetches_no_shard_twice(
    proxy: FaultProxy,
    cache: TargetCache,
    cache_recipe: CacheRecipe,
    changed: Callable[..., CacheRecipe],
    shards_in_bucket: str,
    assert_same: Callable[[TargetCache, TargetCache], None],
    tmp_path: Path,
) -> None:
    places = {"data": {"train": shards_in_bucket}, "job": {"shard_cache": str(tmp_path / "kept")}}
    for name in ("a.zarr", "b.zarr"):
        assert_same(build(changed(cache_recipe, tmp_path / name, **places)), cache)
        assert len(proxy.asked(".tar")) == 3


def test_limit_below_one_shard_and_invalid_folder_are_refused(
    shards_in_bucket: str, shards: ShardIndex, tmp_path: Path
) -> None:
    remote = load_index(shards_in_bucket)
    spec = ShardCacheSpec(shard_cache=str(tmp_path), shard_cache_gib=1e-6)
    with pytest.raises(RecipeError) as small:
        with_shard_cache(remote, spec, "job")
    assert_facts(small.value, "job.shard_cache_gib", "1e-06", f"'{shards_in_bucket}/")
    assert with_shard_cache(shards, spec, "job").shards == shards.shards  # local shards are not copied
    (tmp_path / "file").write_bytes(b"")
    index = with_shard_cache(remote, ShardCacheSpec(shard_cache=str(tmp_path / "file" / "x")), "job")
    with pytest.raises(ShardError) as below_a_file:
        read_shard(index, 0)
    assert_facts(below_a_file.value, f"'{tmp_path}/file/x'", os.strerror(errno.ENOTDIR))
    with pytest.raises(ShardError) as in_proc:
        read(ShardCache("/proc/limbeck", LIMIT), b"a", [])
    assert_facts(in_proc.value, "'/proc/limbeck'", os.strerror(errno.ENOENT))


@pytest.fixture
def shared() -> Iterator[Path]:
    with shared_folder() as folder:
        yield folder


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_users_of_one_machine_share_a_folder(shared: Path) -> None:
    cache, first, second = ShardCache(str(shared), LIMIT), b"a" * 300, b"b" * 400
    md5 = hashlib.md5(first).hexdigest()
    before = os.umask(0o022)
    try:
        read(cache, first, [])

        def reads_all() -> int:
            fetched: list[bytes] = []
            cache.ensure(md5, len(first), lambda: fetched.append(first) or first)
            assert read(cache, first, fetched) == first
            assert read(cache, second, fetched) == second
            return len(fetched)

        assert by_another_user(reads_all) == "1"  # only the second one is fetched
        assert {path.stat().st_mode & 0o777 for path in shared.glob("lock-*")} == {0o666}
        fetched: list[bytes] = []
        read(cache, second, fetched)
        assert fetched == [] and len({path.stat().st_uid for path in shared.glob("*.tar")}) == 2
        assert (
            by_another_user(lambda: len(read(cache, b"c" * 500, []))) == "500"
        )  # files of root were removed for it
        assert held(shared) == 900
        shared.chmod(0o755)
        assert_facts(by_another_user(reads_all), "ShardError", f"'{shared}'", os.strerror(errno.EACCES))
        shared.chmod(0o1777)  # like /tmp: no user may remove, or open with O_CREAT, files of another user
        assert by_another_user(lambda: len(read(ShardCache(str(shared), 9 * LIMIT), first, []))) == "300"
    finally:
        os.umask(before)
