"""SIGKILL at any moment: after a rerun the result equals an uninterrupted run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from teacher_cache.cache.layout import MARKERS
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.config import resolved
from teacher_cache.data.index import load_index
from teacher_cache.packing.pack import pack
from teacher_cache.recipe import CacheRecipe
from teacher_cache.rng import generator

Kill = Callable[[str, list[object], Callable[[], bool]], bool]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_killed_pack_equals_whole_pack_after_rerun(spoiled: Path, kill: Kill, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"
    pack(spoiled, whole, shard_rows=2, skip_broken=True)

    def names() -> int:
        return len(list(out.glob("*")))

    kills = 0
    while kill("pack", [str(spoiled), str(out)], lambda limit=names() + 3: names() >= limit):
        kills += 1
        assert not (out / "index.json").exists() or load_index(out).rows == 36
    assert kills >= 5
    assert contents(out) == contents(whole)  # shards, index, list of broken images, and no leftovers


def assert_what_counts_is_whole(built: TargetCache, whole: TargetCache) -> None:
    for unit in built.present():
        for seed in built.layout.seeds(unit):
            ours, theirs = built.read(seed, unit.shard).columns, whole.read(seed, unit.shard).columns
            assert ours.keys() == theirs.keys()
            assert all((ours[name] == theirs[name]).all() for name in theirs)


@pytest.mark.parametrize("workers", [0, 1])
def test_killed_build_equals_whole_build_after_rerun(
    cache: TargetCache, cache_recipe: CacheRecipe, kill: Kill, workers: int, tmp_path: Path
) -> None:
    path = tmp_path / "killed.zarr"
    recipe = resolved(cache_recipe)
    recipe["cache"]["path"], recipe["job"]["workers"] = str(path), workers
    rng = generator("kill", workers)

    def files() -> int:
        return sum(1 for _ in path.glob("*/c.*")) + sum(1 for _ in path.glob(f"{MARKERS}/*")) + path.exists()

    kills, kept = 0, 0
    while kill("build", [recipe], lambda limit=files() + int(rng.integers(4, 18)): files() >= limit):
        kills += 1
        assert kills < 40
        if (path / "zarr.json").exists():
            partial = TargetCache.open(path)
            present = len(partial.present())
            kept = max(kept, present if present < 6 else 0)
            assert_what_counts_is_whole(partial, cache)
    assert kills >= 2 and kept > 0
    built = TargetCache.open(path)
    assert built.missing() == [] and built.present() == cache.present()
    assert_what_counts_is_whole(built, cache)
