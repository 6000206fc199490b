"""An extended cache equals a cache built at once."""

import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import zarr
from facts import assert_facts

from teacher_cache.cache.layout import Unit
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.config import resolved
from teacher_cache.errors import CacheError
from teacher_cache.labeling.job import build
from teacher_cache.packing.pack import pack
from teacher_cache.recipe import CacheRecipe

Change = Callable[..., CacheRecipe]
Same = Callable[[TargetCache, TargetCache], None]

METADATA_STEPS = 5 * 4
"""Number of durable steps in the metadata that extend writes: root, marker group and three arrays."""


@pytest.fixture(scope="module")
def six(
    cache_recipe: CacheRecipe, photos: Path, changed: Change, tmp_path_factory: pytest.TempPathFactory
) -> CacheRecipe:
    """Six photos in three shards under six seeds, two to a unit."""
    root = tmp_path_factory.mktemp("six")
    pack(photos, root / "shards", shard_rows=2, limit=6)
    spec = {"seeds": 6, "seeds_per_unit": 2, "encoding": "hard", "k": 1}
    return changed(cache_recipe, root / "whole.zarr", cache=spec, data={"train": str(root / "shards")})


@pytest.fixture(scope="module")
def whole(six: CacheRecipe) -> TargetCache:
    return build(six)


@pytest.fixture(scope="module")
def three(six: CacheRecipe, changed: Change, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of half the seeds, its last block half full; copy it before extending it."""
    path = tmp_path_factory.mktemp("three") / "a.zarr"
    build(changed(six, path, cache={"seeds": 3}))
    return path


@pytest.fixture
def copy(three: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(three, tmp_path / "a.zarr"))


def test_extended_cache_equals_a_cache_built_at_once(
    six: CacheRecipe,
    whole: TargetCache,
    changed: Change,
    assert_same: Same,
    copy: Path,
    limbeck: Callable[..., str],
) -> None:
    """Units of the half-full block are missing; units of full blocks are not touched."""
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in copy.glob("*/c.0.*")}
    grown = build(changed(six, copy), extend=True)
    assert grown.missing() == [] and grown.manifest == TargetCache.open(copy).manifest
    assert grown.manifest.seeds == 6 and grown.manifest.recipe["cache"]["seeds"] == 6
    assert_same(grown, whole)
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in before} == before and len(before) == 6
    for name in whole.layout.columns:
        assert (
            zarr.open_array(copy / name, mode="r")[:] == zarr.open_array(f"{whole.where}/{name}", mode="r")[:]
        ).all()
    assert re.search(r"\b9\D+9\D+12\b", limbeck("cache", "verify", copy, "--replay", 12, "--teacher"))


def test_added_seeds_are_missing_until_built(six: CacheRecipe, copy: Path) -> None:
    cache = TargetCache.open(copy).extend(6, resolved(six))
    assert cache.missing() == [Unit(block, shard) for block in (1, 2) for shard in range(3)]
    assert len(cache.read(1, 0).hard) == 2
    for seed in (2, 3, 5):
        with pytest.raises(CacheError) as caught:
            cache.read(seed, 0)
        assert_facts(caught.value, f"seed {seed}", "shard 0", "limbeck cache build")


@pytest.mark.parametrize(
    ("seeds", "advice"),
    [
        (6, "limbeck cache extend"),
        (2, "cache.seeds = 3"),
    ],
)
def test_build_with_another_number_of_seeds_suggests_extend(
    six: CacheRecipe, changed: Change, copy: Path, seeds: int, advice: str
) -> None:
    with pytest.raises(CacheError) as caught:
        build(changed(six, copy, cache={"seeds": seeds}))
    assert_facts(caught.value, f"cache '{copy}'", "seeds", 3, seeds, advice)
    assert TargetCache.open(copy).manifest.seeds == 3 and TargetCache.open(copy).missing() == []


def test_extend_neither_shrinks_nor_changes_a_cache(six: CacheRecipe, changed: Change, copy: Path) -> None:
    with pytest.raises(CacheError, match=r"\bseeds\D+3\D+2\b"):
        build(changed(six, copy, cache={"seeds": 2}), extend=True)
    with pytest.raises(CacheError, match=r"views\.hflip\D+0\.5\D+0\.25\b") as caught:
        build(changed(six, copy, views={"hflip": 0.25}), extend=True)
    assert "seeds" not in str(caught.value)
    assert TargetCache.open(copy).manifest.seeds == 3 and TargetCache.open(copy).missing() == []


def test_extend_to_the_same_seeds_is_a_build(
    six: CacheRecipe, whole: TargetCache, changed: Change, assert_same: Same, copy: Path
) -> None:
    cache = TargetCache.open(copy)
    cache.drop(Unit(1, 2))
    assert build(changed(six, copy, cache={"seeds": 3}), extend=True).missing() == []


def test_extend_killed_between_metadata_writes_can_be_rerun(
    six: CacheRecipe,
    whole: TargetCache,
    three: Path,
    changed: Change,
    assert_same: Same,
    kill: Callable[..., bool],
    tmp_path: Path,
) -> None:
    """After a kill at any step, our reader and zarr can read all seeds of full blocks."""
    had, seen = TargetCache.open(three), set()
    for step in range(1, METADATA_STEPS + 2, 2):  # before a file is renamed, and after
        path = Path(shutil.copytree(three, tmp_path / f"{step}.zarr"))
        recipe = changed(six, path)
        assert kill("steps", [step, resolved(recipe), 0, 1, True])
        cache = TargetCache.open(path)
        seen.add(cache.manifest.seeds)
        for shard in range(3):
            for seed in range(2):
                assert (cache.read(seed, shard).hard == had.read(seed, shard).hard).all()
            assert (zarr.open_array(path / "hard", mode="r")[:2, shard] != 255).all()
        again = build(recipe, extend=True)
        assert again.missing() == [] and not again.damaged_metadata()
        assert_same(again, whole)
    assert seen == {3, 6}


def test_job_on_an_extended_cache_stops_without_damage(tmp_path: Path, made_up: Any) -> None:
    outdated = TargetCache.create(tmp_path / "a.zarr", made_up.make_manifest(seeds=3))
    current = outdated.extend(4, {})
    grown = Unit(1, 0)
    for first, second in ((current, outdated), (outdated, current)):
        for cache in (first, second):
            stops = pytest.raises(CacheError, match=r"'.*/a\.zarr'")
            with stops if cache is outdated else nullcontext():
                cache.write(grown, made_up.columns(cache, grown))
        assert current.has(grown) == (second is current)  # a unit overwritten by the outdated job is not present
    assert not current.damage(grown) and not made_up.differ(current, grown)
    outdated.write(Unit(0, 0), made_up.columns(outdated, Unit(0, 0)))  # a full block cannot get more seeds
    assert not made_up.differ(current, Unit(0, 0))


def test_job_with_fewer_seeds_never_shrinks_a_cache(tmp_path: Path, made_up: Any) -> None:
    outdated = TargetCache.create(tmp_path / "a.zarr", made_up.make_manifest(seeds=3))
    outdated.extend(6, {})
    assert outdated.extend(4, {}).manifest.seeds == 6
    assert TargetCache.create(tmp_path / "a.zarr", made_up.make_manifest(seeds=3)).manifest.seeds == 6
    assert zarr.open_group(tmp_path / "a.zarr", mode="r")["hard"].shape[0] == 6
