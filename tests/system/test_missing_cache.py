"""Paths at which there is no cache, opened or created."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import zarr
from facts import assert_facts

from teacher_cache.cache.manifest import CACHE_FORMAT
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.errors import CacheError


def test_opening_a_missing_cache_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(CacheError):
        TargetCache.open(tmp_path / "a.zarr")
    assert not list(tmp_path.iterdir())


def test_cache_is_never_created_over_other_files(cache: TargetCache, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "file").write_bytes(b"cat")
    for name in ("photos", "file"):
        with pytest.raises(CacheError, match=rf"'.*/{name}'"):
            TargetCache.create(tmp_path / name, cache.manifest)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["cat.jpg", "file", "photos"]


def test_cache_of_another_format_is_reported(
    cache: TargetCache, alter_manifest: Callable[..., None], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(cache.where, tmp_path / "copy.zarr"))
    alter_manifest(path, format=7)
    with pytest.raises(CacheError) as caught:
        TargetCache.open(path)
    assert_facts(caught.value, f"cache '{path}'", "format 7", CACHE_FORMAT)


def nothing(path: Path) -> None:
    pass


def a_file(path: Path) -> None:
    path.write_text("hello", encoding="utf-8")


def a_folder(path: Path) -> None:
    path.mkdir()


def another_group(path: Path) -> None:
    zarr.create_group(path).create_array("hard", shape=(1,), dtype="u1")


def a_spoiled_group(path: Path) -> None:
    path.mkdir()
    (path / "zarr.json").write_text("{")


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (nothing, ["limbeck cache build"]),
        (a_folder, ["limbeck cache build"]),
        (a_file, []),
        (another_group, ["zarr.json", "KeyError('limbeck')"]),
        (a_spoiled_group, ["zarr.json", "JSONDecodeError("]),
    ],
)
def test_path_without_a_cache_is_one_line_error(
    make: Callable[[Path], None], facts: list[str], tmp_path: Path
) -> None:
    make(tmp_path / "a.zarr")
    with pytest.raises(CacheError) as caught:
        TargetCache.open(tmp_path / "a.zarr")
    assert_facts(caught.value, f"'{tmp_path / 'a.zarr'}'", *facts)
    assert "\n" not in str(caught.value)
    assert ("limbeck cache build" in str(caught.value)) == ("limbeck cache build" in facts)
