"""What stands where a cache is looked for, or is to be made, and is none."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import zarr

from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.errors import CacheError


def test_looking_for_a_cache_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(CacheError):
        TargetCache.open(tmp_path / "a.zarr")
    assert not list(tmp_path.iterdir())


def test_a_cache_is_never_made_over_something_else(cache: TargetCache, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "file").write_bytes(b"cat")
    for name in ("photos", "file"):
        with pytest.raises(CacheError, match=rf"^'.*/{name}' is there and is no cache; give another path$"):
            TargetCache.create(tmp_path / name, cache.manifest)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["cat.jpg", "file", "photos"]


def test_a_cache_of_another_format_is_told(
    cache: TargetCache, alter_manifest: Callable[..., None], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(cache.where, tmp_path / "copy.zarr"))
    alter_manifest(path, format=7)
    with pytest.raises(
        CacheError, match=r"^cache '.*copy\.zarr' has format 7, this version of limbeck reads \d+; build"
    ):
        TargetCache.open(path)


def nothing(path: Path) -> None:
    pass


def a_file(path: Path) -> None:
    path.write_text("hello")


def a_folder(path: Path) -> None:
    path.mkdir()


def another_group(path: Path) -> None:
    zarr.create_group(path).create_array("hard", shape=(1,), dtype="u1")


def a_spoiled_group(path: Path) -> None:
    path.mkdir()
    (path / "zarr.json").write_text("{")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (nothing, "no teacher cache at '{}'; make one with: limbeck cache build RECIPE"),
        (a_folder, "no teacher cache at '{}'; make one with: limbeck cache build RECIPE"),
        (a_file, "'{}' is there and is no cache; give another path"),
        (another_group, "'{}' has a zarr.json without a manifest (KeyError('limbeck')); restore it or build"),
        (a_spoiled_group, "'{}' has a zarr.json without a manifest (JSONDecodeError("),
    ],
)
def test_what_is_no_cache_is_told_in_one_line(make: Callable[[Path], None], told: str, tmp_path: Path) -> None:
    make(tmp_path / "a.zarr")
    with pytest.raises(CacheError) as caught:
        TargetCache.open(tmp_path / "a.zarr")
    assert str(caught.value).startswith(told.format(tmp_path / "a.zarr"))
    assert "\n" not in str(caught.value)
