"""`limbeck cache verify` finds and names damage, and only damage."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from facts import assert_facts

from teacher_cache.cache.encoding import Array
from teacher_cache.cache.layout import Unit
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.cache.verify import ROUNDING, TOLERANCE, verify
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.shards import read_shard
from teacher_cache.errors import CacheError, ShardError
from teacher_cache.labeling.job import build
from teacher_cache.models.spec import Dtype
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
    """Verify a damaged cache; returns all output and the error message."""

    def run(cache: TargetCache, *, replay: int = 0, teacher: bool = False, shards: str | None = None) -> str:
        capsys.readouterr()
        with pytest.raises(CacheError) as caught:
            verify(str(cache.where), replay=replay, teacher=teacher, shards=shards, seed=0)
        return f"{capsys.readouterr().err} {caught.value}".replace("\n", " ")

    return run


def rewrite(cache: TargetCache, unit: Unit, change: Callable[[dict[str, Array]], dict[str, Array]]) -> None:
    """Write a unit with other columns, with matching marker and checksums."""
    read = [cache.read(seed, unit.shard).columns for seed in cache.layout.seeds(unit)]
    columns = change({name: np.stack([part[name] for part in read]) for name in read[0]})
    cache.drop(unit)
    cache.write(unit, columns)


def test_each_dtype_of_a_teacher_has_a_tolerance() -> None:
    assert TOLERANCE.keys() == set(get_args(Dtype))


def test_intact_cache_verifies(cache: TargetCache, limbeck: Callable[..., str]) -> None:
    assert re.search(r"\b6\D+6 unit", limbeck("cache", "verify", cache.where))
    output = limbeck("cache", "verify", cache.where, "--replay", 20, "--teacher", "--seed", 3)
    assert re.search(r"\b6\D+6 units?\D+20 view", output)
    allowed = TOLERANCE[cache.manifest.teacher["dtype"]] + ROUNDING["float16"]
    assert re.search(rf"probabilit\D+[\d.e-]+\D+{allowed:.2g}\b", output)


def test_finished_units_of_an_unfinished_cache_are_verified(
    copy: TargetCache, limbeck: Callable[..., str]
) -> None:
    for unit in list(copy.layout.units())[1:]:
        copy.drop(unit)
    assert re.search(r"\b1\D+6 units?\D+4 view", limbeck("cache", "verify", copy.where, "--replay", 4))
    copy.drop(Unit(0, 0))
    assert re.search(r"\b0\D+6 unit", limbeck("cache", "verify", copy.where, "--replay", 4))


def test_a_changed_digest_is_found_with_key_seed_and_cause(
    copy: TargetCache, shards: ShardIndex, found: Found, alter_manifest: Callable[..., None]
) -> None:
    # reported once, though the view is drawn twice, or mixed into another one
    def another_view(columns: dict[str, Array]) -> dict[str, Array]:
        columns["digest"][1, 3] ^= 1
        return columns

    rewrite(copy, Unit(1, 2), another_view)
    output = found(copy, replay=300)
    facts = f"'{read_shard(shards, 2)[3].key}'", "seed 3", "shard 2", "row 3"
    assert_facts(output, *facts)
    assert output.count("row 3") == 1 and "pillow" not in output
    assert re.search(r"\b1\D+6\D+6 units?\D+300 view", output)
    libraries = copy.manifest.libraries | {"pillow": "0.1"}
    alter_manifest(Path(copy.where), libraries=libraries)
    output = found(TargetCache.open(copy.where), replay=300)
    assert_facts(output, *facts, "pillow", "0.1", copy.manifest.libraries["pillow"])
    assert "limbeck cache build" not in output  # it would not help: the units are as they were written


def test_replaced_teacher_is_refused(
    copy: TargetCache, alter_manifest: Callable[..., None], limbeck: Callable[..., str]
) -> None:
    alter_manifest(Path(copy.where), teacher=copy.manifest.teacher | {"sha256": "0" * 64})
    with pytest.raises(CacheError, match=r"teacher\.sha256\W.*'0{64}'.*'\w{64}'"):
        limbeck("cache", "verify", copy.where, "--replay", 1, "--teacher")


def test_missing_units_are_counted(copy: TargetCache, limbeck: Callable[..., str]) -> None:
    copy.drop(Unit(0, 1))
    output = limbeck("cache", "verify", copy.where)
    assert re.search(r"\b5\D+6 unit", output)
    assert_facts(output, "1 unit", "limbeck cache build")


@pytest.fixture(scope="module")
def small(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twelve photos in two shards."""
    return pack(photos, tmp_path_factory.mktemp("small"), shard_rows=6, limit=12).folder


@pytest.mark.parametrize("kind", KINDS)
def test_verify_accepts_the_teachers_targets_and_no_others(
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
    output = limbeck("cache", "verify", cache.where, "--replay", 24, "--teacher")
    assert re.search(r"\b2\D+2 units?\D+24 view", output)

    def random_targets(columns: dict[str, Array]) -> dict[str, Array]:
        encoded = []
        for place in range(2):
            logits = 4 * generator("anyone", place).standard_normal((6, 3)).astype(np.float32)
            encoded.append(cache.encoding.encode(logits, columns["digest"][place].astype(np.uint64)))
        return {name: np.stack([part[name] for part in encoded]) for name in encoded[0]}

    rewrite(cache, Unit(0, 1), random_targets)
    assert cache.damage(Unit(0, 1)) == []  # the checksums match
    limbeck("cache", "verify", cache.where, "--replay", 24)  # and the views match
    output = found(cache, replay=24, teacher=True)
    assert re.search(r"shard 1\W+row \d\D+[01]\.\d+|shard 1\W+row \d\D+\b1\b", output) and "shard 0" not in output


@pytest.mark.parametrize("name", ["hard/zarr.json", "value/zarr.json", "units/zarr.json"])
@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("{}")])
def test_missing_metadata_is_found_and_rebuilt(
    cache_recipe: CacheRecipe,
    changed: Change,
    copy: TargetCache,
    name: str,
    damage: Callable[[Path], object],
    found: Found,
    limbeck: Callable[..., str],
) -> None:
    """Our reader does not need it; zarr and xarray do."""
    damage(Path(copy.where) / name)
    assert len(copy.read(0, 0).hard) == 16
    output = found(copy)
    assert_facts(output, f"'{name}'", "limbeck cache build")
    assert re.search(r"\b1\D+6\D+6 unit", output)
    build(changed(cache_recipe, copy.where))
    limbeck("cache", "verify", copy.where)


def test_other_shards_are_refused(
    copy: TargetCache, shards: ShardIndex, photos: Path, limbeck: Callable[..., str], tmp_path: Path
) -> None:
    other = pack(photos, tmp_path / "other", shard_rows=16, seed=3)
    words = "cache", "verify", copy.where, "--replay", 3, "--shards"
    with pytest.raises(CacheError) as caught:
        limbeck(*words, other.folder)
    assert_facts(caught.value, "shards.md5", 3, shards.shards[0].md5, other.shards[0].md5, "--shards")
    with pytest.raises(ShardError, match=r"'.*/nowhere'"):
        limbeck(*words, tmp_path / "nowhere")
    moved = shutil.copytree(shards.folder, tmp_path / "moved")
    assert re.search(r"\b6\D+6 units?\D+3 view", limbeck(*words, moved))


def test_every_damaged_object_is_named_with_its_unit(copy: TargetCache, found: Found) -> None:
    names = [
        copy.layout.object_key(column, unit) for column, unit in (("hard", Unit(0, 0)), ("index", Unit(1, 2)))
    ]
    copy.store.put(names[0], b"")
    copy.store.remove(names[1])
    copy.store.put(copy.layout.marker_key(Unit(0, 1)), b"{")
    output = found(copy, replay=30)
    for unit, name in (("0-2.0", names[0]), ("2-4.2", names[1]), ("0-2.1", "units/0-2.1")):
        assert re.search(rf"\b{re.escape(unit)}\b.*'{re.escape(name)}'", output)
