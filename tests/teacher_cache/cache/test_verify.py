"""`limbeck cache verify` finds what is wrong, names it, and says nothing of what is right."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from teacher_cache.cache.encoding import Array
from teacher_cache.cache.layout import Unit
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.cache.verify import verify
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.shards import read_shard
from teacher_cache.errors import CacheError, ShardError
from teacher_cache.labeling.job import build
from teacher_cache.packing.pack import pack
from teacher_cache.recipe import CacheRecipe
from teacher_cache.rng import generator

Change = Callable[..., CacheRecipe]
Found = Callable[..., str]

KINDS = {
    "hard": {"encoding": "hard"},
    "topk": {"encoding": "topk", "k": 2},
    "dense": {"encoding": "dense"},
    "topk uint8": {"encoding": "topk", "k": 2, "values": "uint8"},
    "dense uint8": {"encoding": "dense", "values": "uint8"},
}


@pytest.fixture
def copy(cache: TargetCache, tmp_path: Path) -> TargetCache:
    return TargetCache.open(shutil.copytree(cache.where, tmp_path / "a.zarr"))


@pytest.fixture
def found(capsys: pytest.CaptureFixture[str]) -> Found:
    """Verifies a cache that is wrong; returns what is told, the last line included."""

    def run(cache: TargetCache, *, replay: int = 0, teacher: bool = False, shards: str | None = None) -> str:
        capsys.readouterr()
        with pytest.raises(CacheError) as caught:
            verify(str(cache.where), replay=replay, teacher=teacher, shards=shards, choice=0)
        return f"{capsys.readouterr().err} {caught.value}".replace("\n", " ")

    return run


def rewrite(cache: TargetCache, unit: Unit, change: Callable[[dict[str, Array]], dict[str, Array]]) -> None:
    """Write a unit with other columns, in all honesty of marker and checksums."""
    read = [cache.read(seed, unit.shard).columns for seed in cache.layout.seeds(unit)]
    columns = change({name: np.stack([part[name] for part in read]) for name in read[0]})
    cache.drop(unit)
    cache.write(unit, columns)


def test_of_a_good_cache_nothing_is_wrong(cache: TargetCache, limbeck: Callable[..., str]) -> None:
    assert "6 of 6 units checked, nothing is wrong" in limbeck("cache", "verify", cache.where).replace("\n", " ")
    told = limbeck("cache", "verify", cache.where, "--replay", 20, "--teacher", "--seed", 3).replace("\n", " ")
    assert "6 of 6 units and 20 views checked, nothing is wrong" in told
    assert "the teacher's probabilities differ by at most" in told


def test_an_unfinished_cache_is_checked_as_far_as_it_is(copy: TargetCache, limbeck: Callable[..., str]) -> None:
    for unit in list(copy.layout.units())[1:]:
        copy.drop(unit)
    told = limbeck("cache", "verify", copy.where, "--replay", 4).replace("\n", " ")
    assert "1 of 6 units and 4 views checked, nothing is wrong" in told
    copy.drop(Unit(0, 0))
    assert "0 of 6 units" in limbeck("cache", "verify", copy.where, "--replay", 4)


def test_a_changed_digest_is_found_with_key_seed_and_cause(
    copy: TargetCache, shards: ShardIndex, found: Found, alter_manifest: Callable[..., None]
) -> None:
    # it is told once, though drawn twice, or as the partner that is mixed into another
    def another_view(columns: dict[str, Array]) -> dict[str, Array]:
        columns["digest"][1, 3] ^= 1
        return columns

    rewrite(copy, Unit(1, 2), another_view)
    told = found(copy, replay=300)
    key = read_shard(shards, 2)[3].key
    line = f"the view of '{key}' under seed 3 (shard 2, row 3) is not the one the teacher judged; "
    assert line + "no library changed, so the shard's images did" in told
    assert told.count("the view of ") == 1 and "1 thing is wrong in 6 of 6 units and 300 views" in told
    libraries = copy.manifest.libraries | {"pillow": "0.1"}
    alter_manifest(Path(copy.where), libraries=libraries)
    told = found(TargetCache.open(copy.where), replay=300)
    assert f"{line}libraries changed: pillow was 0.1, is {copy.manifest.libraries['pillow']}" in told
    assert told.endswith("restore the libraries, shards and teacher it was built with, or build a new cache")
    assert "builds damaged units" not in told  # for it does not: they are as they were written


def test_another_teacher_in_the_place_of_the_caches_is_refused(
    copy: TargetCache, alter_manifest: Callable[..., None], limbeck: Callable[..., str]
) -> None:
    alter_manifest(Path(copy.where), teacher=copy.manifest.teacher | {"sha256": "0" * 64})
    with pytest.raises(CacheError, match=r"teacher\.sha256 is '0+' there and '\w+' here; restore its teacher$"):
        limbeck("cache", "verify", copy.where, "--replay", 1, "--teacher")


def test_what_is_missing_is_said(copy: TargetCache, limbeck: Callable[..., str]) -> None:
    copy.drop(Unit(0, 1))
    told = limbeck("cache", "verify", copy.where).replace("\n", " ")
    assert "5 of 6 units checked, nothing is wrong" in told
    assert "1 unit is missing; limbeck cache build RECIPE completes the cache" in told


@pytest.fixture(scope="module")
def small(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twelve photos in two shards."""
    return pack(photos, tmp_path_factory.mktemp("small"), shard_rows=6, limit=12).folder


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_knows_its_own_answers_and_no_others(
    cache_recipe: CacheRecipe,
    changed: Change,
    small: str,
    kind: str,
    found: Found,
    limbeck: Callable[..., str],
    tmp_path: Path,
) -> None:
    spec: dict[str, Any] = {"seeds": 2, **KINDS[kind]}
    cache = build(changed(cache_recipe, tmp_path / "a.zarr", cache=spec, data={"train": small}))
    told = limbeck("cache", "verify", cache.where, "--replay", 24, "--teacher").replace("\n", " ")
    assert "2 of 2 units and 24 views checked, nothing is wrong" in told

    def anyones(columns: dict[str, Array]) -> dict[str, Array]:
        said = []
        for place in range(2):
            logits = 4 * generator("anyone", place).standard_normal((6, 3)).astype(np.float32)
            said.append(cache.encoding.encode(logits, columns["digest"][place].astype(np.uint64)))
        return {name: np.stack([part[name] for part in said]) for name in said[0]}

    rewrite(cache, Unit(0, 1), anyones)
    assert cache.damage(Unit(0, 1)) == []  # its checksums are right
    assert "nothing is wrong" in limbeck("cache", "verify", cache.where, "--replay", 24)  # and so are the views
    told = found(cache, replay=24, teacher=True)
    assert "(shard 1, row " in told and "(shard 0, row " not in told
    assert ": the teacher gives a probability that differs by " in told and "is allowed" in told


@pytest.mark.parametrize("name", ["hard/zarr.json", "value/zarr.json", "units/zarr.json"])
@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_text("{}")])
def test_missing_metadata_is_found_and_made_anew_by_build(
    cache_recipe: CacheRecipe,
    changed: Change,
    copy: TargetCache,
    name: str,
    spoil: Callable[[Path], object],
    found: Found,
    limbeck: Callable[..., str],
) -> None:
    """We need it not; zarr and xarray do."""
    spoil(Path(copy.where) / name)
    assert len(copy.read(0, 0).hard) == 16
    told = found(copy)
    assert f"'{name}' is not as it was written" in told and "1 thing is wrong in 6 of 6 units" in told
    build(changed(cache_recipe, copy.where))
    assert "nothing is wrong" in limbeck("cache", "verify", copy.where)


def test_other_shards_are_told(
    copy: TargetCache, shards: ShardIndex, photos: Path, limbeck: Callable[..., str], tmp_path: Path
) -> None:
    other = pack(photos, tmp_path / "other", shard_rows=16, seed=3)
    words = "cache", "verify", copy.where, "--replay", 3, "--shards"
    with pytest.raises(
        CacheError, match=r"shards\.md5: 3 of 3 entries differ.*; name the right ones with --shards$"
    ):
        limbeck(*words, other.folder)
    with pytest.raises(ShardError, match=r"^no shards at '.*nowhere', as there is no such folder"):
        limbeck(*words, tmp_path / "nowhere")
    moved = shutil.copytree(shards.folder, tmp_path / "moved")
    assert "3 views checked, nothing is wrong" in limbeck(*words, moved).replace("\n", " ")


def test_every_damaged_object_is_named_with_its_unit(copy: TargetCache, found: Found) -> None:
    names = [copy.layout.object(column, unit) for column, unit in (("hard", Unit(0, 0)), ("index", Unit(1, 2)))]
    copy.store.put(names[0], b"")
    copy.store.remove(names[1])
    copy.store.put(copy.layout.marker(Unit(0, 1)), b"{")
    told = found(copy, replay=30)
    assert f"unit 0-2.0: '{names[0]}' is not what its marker was written for" in told
    assert f"unit 2-4.2: '{names[1]}' is missing" in told
    assert "unit 0-2.1: 'units/0-2.1' cannot be read" in told
