"""Faults at every step of writing: committed units are intact, and a rerun completes the cache."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from facts import assert_facts
from toml_text import to_toml

from server.cli import main
from teacher_cache.cache.layout import Unit
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.config import resolved
from teacher_cache.data.index import ShardIndex
from teacher_cache.distributed.world import World
from teacher_cache.errors import CacheError, ShardError
from teacher_cache.labeling.job import build
from teacher_cache.packing.pack import pack
from teacher_cache.recipe import CacheRecipe
from teacher_cache.storage.atomic import atomic_folder, create_exclusive, write_atomic
from teacher_cache.storage.local import LocalStore

Same = Callable[[TargetCache, TargetCache], None]
LEAST_KILLS = 50
SMALL = {"seeds": 2, "seeds_per_unit": 2, "encoding": "hard"}


@pytest.fixture(scope="module")
def few(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    """Six photos in three shards."""
    return pack(photos, tmp_path_factory.mktemp("few"), shard_rows=2, limit=6)


@pytest.fixture(scope="module")
def small(
    cache_recipe: CacheRecipe,
    few: ShardIndex,
    changed: Callable[..., CacheRecipe],
    tmp_path_factory: pytest.TempPathFactory,
) -> CacheRecipe:
    """Three units of hard labels."""
    path = tmp_path_factory.mktemp("small") / "whole.zarr"
    return changed(cache_recipe, path, cache=SMALL, data={"train": few.folder})


@pytest.fixture(scope="module")
def whole(small: CacheRecipe) -> TargetCache:
    return build(small)


def test_build_killed_at_any_durable_step_equals_whole_build_after_rerun(
    small: CacheRecipe,
    whole: TargetCache,
    changed: Callable[..., CacheRecipe],
    assert_same: Same,
    kill: Callable[..., bool],
    tmp_path: Path,
) -> None:
    """Cut every write in half, skip every sync, rename and link, each in a separate build."""
    plain, kills, kept = resolved(small), 0, set()
    while True:
        path = tmp_path / f"{kills}.zarr"
        plain["cache"]["path"] = str(path)
        if not kill("steps", [kills, plain, 0, 1]):
            break
        kills += 1
        if (path / "zarr.json").exists():
            partial = TargetCache.open(path)
            kept.add(len(partial.present()))
            assert_same(partial, whole)
        built = build(changed(small, path))
        assert built.missing() == [] and not built.damaged_metadata()
        assert_same(built, whole)
        shutil.rmtree(path)
    assert kills >= LEAST_KILLS and kept == {0, 1, 2, 3}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["put", "create"])
def test_a_write_that_fails_keeps_earlier_units_and_a_rerun_completes(
    small: CacheRecipe,
    whole: TargetCache,
    changed: Callable[..., CacheRecipe],
    assert_same: Same,
    number: int,
    call: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """put: the first object of the second unit. create: the second unit's marker."""
    recipe = changed(small, tmp_path / "a.zarr")
    honest, done = getattr(LocalStore, call), []
    last = {"put": 3 + 2, "create": 2}[call]  # after the metadata of three arrays and groups, and one unit

    def failing(self: LocalStore, name: str, data: bytes) -> Any:
        if len(done) == last:
            raise OSError(number, os.strerror(number), f"{self.where}/{name}")
        done.append(name)
        return honest(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, call, failing)
        with pytest.raises(OSError) as caught:
            build(recipe, World())
    assert caught.value.errno == number and caught.value.filename.startswith(recipe.cache.path)
    partial = TargetCache.open(recipe.cache.path)
    assert partial.present() == {Unit(0, 0)}
    assert_same(partial, whole)
    again = build(recipe)
    assert again.missing() == []
    assert_same(again, whole)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of ten pages. Mounting needs root; the tests above run without it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(folder)]
    # Only a mounted file system can really be full, and only root can mount one.
    if not shutil.which("mount") or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("needs root and mount(8)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_status_75_and_a_rerun_with_room_completes(
    small: CacheRecipe,
    whole: TargetCache,
    changed: Callable[..., CacheRecipe],
    assert_same: Same,
    disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    recipe = changed(small, disk / "a.zarr")
    (tmp_path / "recipe.toml").write_text(to_toml(resolved(recipe)), encoding="utf-8")
    words = ["limbeck", "cache", "build", str(tmp_path / "recipe.toml"), "--rank", "0", "--world", "1"]
    monkeypatch.setattr(sys, "argv", words)
    capfd.readouterr()
    with pytest.raises(SystemExit, match=r"^75$"):
        main()
    out, errors = capfd.readouterr()
    assert out == "" and errors.startswith("limbeck: ") and errors.count("\n") == 1 and errors.endswith("\n")
    assert_facts(errors, f"'{disk}/a.zarr/", os.strerror(errno.ENOSPC))
    partial = TargetCache.open(disk / "a.zarr")
    assert 0 < len(partial.present()) < 3
    assert_same(partial, whole)
    assert not list(disk.rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
    assert build(recipe).missing() == []
    assert_same(TargetCache.open(disk / "a.zarr"), whole)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    TargetCache.open(disk / "a.zarr").sweep()
    assert build(recipe).missing() == []  # there is nothing to write


@pytest.mark.parametrize("compressed", [False, True])
def test_a_pack_onto_a_full_disk_has_status_75_and_names_the_output(
    photos: Path, disk: Path, compressed: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """compressed: the archive is unpacked onto the full disk."""
    source = photos
    if compressed:
        source = Path(shutil.make_archive(str(disk.parent / "photos"), "gztar", photos))
    monkeypatch.setattr(sys, "argv", ["limbeck", "pack", str(source), str(disk / "x")])
    with pytest.raises(SystemExit, match=r"^75$"):
        main()
    error = capfd.readouterr().err.splitlines()[-1]
    assert_facts(error, f"'{disk}/x{'' if compressed else '/000000.tar'}'", os.strerror(errno.ENOSPC))


def write_folder(path: Path, data: bytes) -> None:
    with atomic_folder(path) as folder:
        (folder / "file").write_bytes(data)


@pytest.mark.parametrize("write", [write_atomic, create_exclusive, write_folder])
def test_a_read_only_disk_is_reported_with_the_final_path(
    write: Callable[[Path, bytes], object], disk: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)) as caught:
        write(disk / "new", b"data")
    assert caught.value.filename == f"{disk}/new"


@pytest.mark.parametrize("write", [write_atomic, create_exclusive, write_folder])
def test_a_full_disk_is_reported_with_the_final_path(write: Callable[[Path, bytes], object], disk: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
        write(disk / "new", bytes(100_000))
    assert caught.value.filename == f"{disk}/new" and not list(disk.iterdir())


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.tar")


@pytest.mark.parametrize("spoil", [a_folder, a_link_to_nowhere])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_cannot_be_read_keeps_earlier_units(
    small: CacheRecipe,
    whole: TargetCache,
    changed: Callable[..., CacheRecipe],
    assert_same: Same,
    few: ShardIndex,
    spoil: Callable[[Path], None],
    workers: int,
    tmp_path: Path,
) -> None:
    folder = Path(shutil.copytree(few.folder, tmp_path / "shards"))
    spoil(folder / "000002.tar")
    recipe = changed(small, tmp_path / "a.zarr", data={"train": str(folder)}, job={"workers": workers})
    with pytest.raises(ShardError, match=r"'.*/000002\.tar'") as caught:
        build(recipe, World())
    assert "\n" not in str(caught.value)
    partial = TargetCache.open(recipe.cache.path)
    assert {Unit(0, 0)} <= partial.present() <= {Unit(0, 0), Unit(0, 1)}
    assert_same(partial, whole)
    with pytest.raises(CacheError, match=r"seed 0.*shard 2.*limbeck cache build"):
        partial.read(0, 2)
    path = folder / "000002.tar"
    path.rmdir() if path.is_dir() else path.unlink()
    shutil.copy(few.url(2), path)
    assert build(recipe).missing() == []
    assert_same(TargetCache.open(recipe.cache.path), whole)
