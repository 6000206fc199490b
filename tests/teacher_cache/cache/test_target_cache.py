import multiprocessing
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from facts import assert_facts
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_cache.cache.encoding import Array, Encoding
from teacher_cache.cache.layout import MARKERS, Unit
from teacher_cache.cache.manifest import Manifest
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.errors import CacheError
from teacher_cache.rng import generator
from teacher_cache.views.policy import ViewPolicy

ROWS = [3, 7, 1]
KINDS = ("hard", "topk", "dense", "topk uint8", "dense uint8")
VIEWS = ViewPolicy(size=8, hflip=0.5, auto_augment="", re_prob=0.0, mixup=0.8, cutmix=1.0)
processes = multiprocessing.get_context("fork")


def make_manifest(
    kind: str = "topk", rows: list[int] = ROWS, seeds: int = 5, per_unit: int = 2, bits: int = 16
) -> Manifest:
    """A manifest of three classes; by default the last block of seeds is short."""
    return Manifest(
        views=VIEWS.model_dump(mode="json"),
        teacher={},
        encoding={
            "kind": kind.removesuffix(" uint8"),
            "k": 2,
            "values": "uint8" if kind.endswith("uint8") else "float16",
            "digest_bits": bits,
        },
        shards={"classes": ["a", "b", "c"], "rows": rows, "md5": [""] * len(rows)},
        seeds=seeds,
        seeds_per_unit=per_unit,
        recipe={},
    )


def answers(encoding: Encoding, seed: int, shard: int, rows: int) -> dict[str, Array]:
    """Random logits, encoded."""
    rng = generator("answers", seed, shard)
    logits = (3 * rng.standard_normal((rows, encoding.classes))).astype(np.float32)
    return encoding.encode(logits, rng.integers(0, 2**64, rows, dtype=np.uint64))


def columns_of(cache: TargetCache, unit: Unit) -> dict[str, Array]:
    expected = [
        answers(cache.encoding, seed, unit.shard, cache.rows[unit.shard]) for seed in cache.layout.seeds(unit)
    ]
    return {name: np.stack([columns[name] for columns in expected]) for name in expected[0]}


def fill(cache: TargetCache) -> TargetCache:
    for unit in cache.layout.units():
        cache.write(unit, columns_of(cache, unit))
    return cache


def assert_whole(cache: TargetCache) -> None:
    for seed in range(cache.manifest.seeds):
        for shard, rows in enumerate(cache.rows):
            read, expected = cache.read(seed, shard).columns, answers(cache.encoding, seed, shard, rows)
            assert read.keys() == expected.keys()
            for name, values in expected.items():
                assert read[name].dtype == values.dtype and read[name].shape == values.shape
                assert (read[name] == values).all()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A complete cache of each encoding; copy it before changing it."""
    root = tmp_path_factory.mktemp("filled")
    return {kind: fill(TargetCache.create(root / f"{kind}.zarr", make_manifest(kind))).where for kind in KINDS}


@pytest.fixture
def copy(filled: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    def make(kind: str) -> Path:
        return Path(shutil.copytree(filled[kind], tmp_path / "copy.zarr", dirs_exist_ok=True))

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_written_targets_are_read_back(filled: dict[str, Path], kind: str) -> None:
    cache = TargetCache.open(filled[kind])
    assert cache.missing() == []
    assert_whole(cache)


@settings(max_examples=10)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.lists(st.integers(0, 5), min_size=1, max_size=2).filter(any),
    seeds=st.integers(1, 4),
    per_unit=st.integers(1, 5),
    bits=st.sampled_from([16, 32, 64]),
)
def test_any_shape_is_read_back_without_its_padding(
    kind: str, rows: list[int], seeds: int, per_unit: int, bits: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("any") / "cache.zarr"
    fill(TargetCache.create(path, make_manifest(kind, rows, seeds, per_unit, bits)))
    cache = TargetCache.open(path)
    assert cache.missing() == []
    assert_whole(cache)
    covered = sorted((seed, unit.shard) for unit in cache.layout.units() for seed in cache.layout.seeds(unit))
    assert covered == [(seed, shard) for seed in range(seeds) for shard in range(len(rows))]


def test_a_unit_is_one_object_in_each_array_and_a_marker(filled: dict[str, Path]) -> None:
    cache = TargetCache.open(filled["topk"])
    for name, dims in {"hard": 1, "digest": 1, "tail": 1, "index": 2, "value": 2}.items():
        names = {f"c.{unit.block}.{unit.shard}" + ".0" * dims for unit in cache.layout.units()}
        assert {file.name for file in (Path(cache.where) / name).iterdir()} == {*names, "zarr.json"}
    assert {file.name for file in (Path(cache.where) / MARKERS).iterdir()} == {
        *(f"{seeds}.{shard}" for seeds in ("0-2", "2-4", "4-5") for shard in range(3)),
        "zarr.json",
    }
    assert sum(cache.bytes_by_column().values()) == sum(
        file.stat().st_size for file in Path(cache.where).glob("*/c.*") if file.is_file()
    )


def test_zarr_alone_reads_the_arrays_by_their_dimensions(filled: dict[str, Path]) -> None:
    group = zarr.open_group(filled["topk"], mode="r")
    expected = answers(TargetCache.open(filled["topk"]).encoding, 4, 1, 7)
    dims = {
        "hard": ("seed", "shard", "row"),
        "digest": ("seed", "shard", "row"),
        "tail": ("seed", "shard", "row"),
        "index": ("seed", "shard", "rank", "row"),
        "value": ("seed", "shard", "rank", "row"),
    }
    for name, wanted in dims.items():
        array: Any = group[name]
        assert array.metadata.dimension_names == wanted
        assert (array[4, 1] == expected[name]).all()
    hard: Any = group["hard"]
    assert (hard[4, 0][3:] == 255).all()


def test_a_unit_without_its_marker_does_not_count(copy: Callable[[str], Path]) -> None:
    cache = TargetCache.open(copy("topk"))
    (Path(cache.where) / MARKERS / "2-4.2").unlink()
    assert cache.missing() == [Unit(1, 2)]
    with pytest.raises(CacheError) as caught:
        cache.read(3, 2)
    assert_facts(caught.value, cache.where, "seed 3", "shard 2", "limbeck cache build")
    assert "limbeck cache verify" not in str(caught.value)  # nothing is damaged
    assert len(cache.read(3, 1).hard) == 7
    cache.write(Unit(1, 2), columns_of(cache, Unit(1, 2)))
    assert cache.missing() == []
    assert_whole(cache)


def test_missing_lists_the_unwritten_units(tmp_path: Path) -> None:
    cache = TargetCache.create(tmp_path / "a.zarr", make_manifest())
    units = list(cache.layout.units())
    assert cache.missing() == units == sorted(units) and len(units) == 9
    for number, unit in enumerate(units[::-1], start=1):
        cache.write(unit, columns_of(cache, unit))
        assert cache.missing() == units[: len(units) - number] == TargetCache.open(cache.where).missing()


def test_bytes_from_markers_equal_bytes_on_disk_and_a_sample_is_close(tmp_path: Path) -> None:
    cache = TargetCache.create(tmp_path / "a.zarr", make_manifest())
    units = list(cache.layout.units())
    assert [cache.layout.unit_at(number) for number in range(cache.layout.unit_count)] == units
    assert set(cache.estimated_bytes(units).values()) == {0}
    for unit in units[:-1]:
        cache.write(unit, columns_of(cache, unit))
    exact = cache.bytes_by_column()
    assert cache.estimated_bytes(cache.missing()) == exact
    assert cache.estimated_bytes(cache.missing(), sample=5) == pytest.approx(exact, rel=0.5)
    Path(cache.where, cache.layout.marker_key(units[0])).write_text("{}", encoding="utf-8")
    with pytest.raises(CacheError, match="limbeck cache verify"):
        cache.estimated_bytes(units[-1:])


def test_a_reader_sees_what_another_process_wrote_since(tmp_path: Path) -> None:
    writer = TargetCache.create(tmp_path / "a.zarr", make_manifest())
    reader = TargetCache.open(writer.where)
    with pytest.raises(CacheError):
        reader.read(0, 0)
    writer.write(Unit(0, 0), columns_of(writer, Unit(0, 0)))
    assert (reader.read(1, 0).hard == answers(writer.encoding, 1, 0, 3)["hard"]).all()


def test_unit_of_fill_values_is_written(tmp_path: Path) -> None:
    cache = TargetCache.create(tmp_path / "a.zarr", make_manifest("hard"))
    columns = columns_of(cache, Unit(0, 0))
    columns["digest"][:] = 0
    cache.write(Unit(0, 0), columns)
    assert (cache.read(1, 0).digest == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_in_any_object_is_found_and_named(
    copy: Callable[[str], Path], limbeck: Callable[..., str], kind: str
) -> None:
    """In the first chunk, the last chunk, the index after them, and every checksum."""
    path = copy(kind)
    cache = TargetCache.open(path)
    objects = sorted(path.glob("*/c.0.1.*"))
    assert len(objects) == len(cache.layout.columns)
    for file in objects:
        data = file.read_bytes()
        footer = len(data) - 2 * 16 - 4
        for place in {
            0,
            1,
            footer // 3,
            footer // 2,
            footer - 1,
            footer,
            footer + 9,
            len(data) - 5,
            len(data) - 1,
        }:
            file.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
            name = f"{file.parent.name}/{file.name}"
            for seed in cache.layout.seeds(Unit(0, 1)):
                with pytest.raises(CacheError) as caught:
                    cache.read(seed, 1)
                assert_facts(caught.value, f"seed {seed}", "shard 1", f"'{name}'", "limbeck cache verify")
            (found,) = cache.damage(Unit(0, 1))
            assert_facts(found, f"'{name}'")
            assert len(cache.read(2, 1).hard) == 7  # another unit
        with pytest.raises(CacheError, match=r"\b1\b.*\b9\D+9\b.*limbeck cache build"):
            limbeck("cache", "verify", path)
        file.write_bytes(data)
    assert_whole(cache)
    limbeck("cache", "verify", path)


@pytest.mark.parametrize("name", ["hard", "digest", "tail", "index", "value", "logits"])
@pytest.mark.parametrize("left", [None, 0.0, 0.5, 1.5])
def test_missing_or_resized_object_is_refused(copy: Callable[[str], Path], name: str, left: float | None) -> None:
    path = copy("dense" if name == "logits" else "topk")
    (file,) = path.glob(f"{name}/c.0.1.*")
    data = file.read_bytes()
    if left is None:
        file.unlink()
    else:
        file.write_bytes((data * 2)[: int(left * len(data))])
    with pytest.raises(CacheError, match=r"seed 0.*shard 1.*limbeck cache verify"):
        TargetCache.open(path).read(0, 1)
    assert len(TargetCache.open(path).read(2, 1).hard) == 7  # another unit


@pytest.mark.parametrize("marker", ["", "{}", "[", '{"objects": {}}', '{"objects": {"hard/c.0.1.0": {}}}'])
def test_damaged_marker_is_refused(copy: Callable[[str], Path], marker: str) -> None:
    path = copy("hard")
    (path / MARKERS / "0-2.1").write_text(marker)
    with pytest.raises(CacheError, match=r"seed 0.*shard 1.*limbeck cache verify"):
        TargetCache.open(path).read(0, 1)


@pytest.mark.parametrize("unit", [Unit(0, 1), Unit(2, 1)], ids=["a whole block", "the short last block"])
def test_rewriting_a_damaged_unit_repairs_it(copy: Callable[[str], Path], unit: Unit) -> None:
    path = copy("topk")
    for file in path.glob(f"*/c.{unit.block}.{unit.shard}.*"):
        file.write_bytes(b"\xff" * file.stat().st_size)
    cache = TargetCache.open(path)
    cache.drop(unit)
    assert cache.missing() == [unit]
    cache.write(unit, columns_of(cache, unit))
    assert_whole(TargetCache.open(path))


def _create(path: Path, seeds: int, barrier: Any, results: Any) -> None:
    barrier.wait()
    cache = TargetCache.create(path, make_manifest(seeds=seeds))
    results.put((seeds, cache.manifest.seeds, len(cache.missing())))


def test_two_processes_creating_one_cache_open_the_same_cache(tmp_path: Path) -> None:
    for attempt in range(4):
        path = tmp_path / f"{attempt}.zarr"
        barrier, results = processes.Barrier(2), processes.Queue()
        racers = [processes.Process(target=_create, args=(path, seeds, barrier, results)) for seeds in (2, 4)]
        for racer in racers:
            racer.start()
        opened = [results.get(timeout=60) for _ in racers]
        for racer in racers:
            racer.join()
            assert racer.exitcode == 0
        winner = TargetCache.open(path).manifest.seeds
        assert winner in (2, 4) and {seeds for _, seeds, _ in opened} == {winner}
    assert {file.name for file in tmp_path.iterdir()} == {f"{attempt}.zarr" for attempt in range(4)}


def _write_all(path: Path, barrier: Any) -> None:
    cache = TargetCache.open(path)
    barrier.wait()
    for unit in cache.layout.units():
        cache.write(unit, columns_of(cache, unit))


def test_two_writers_of_the_same_units_do_no_harm(tmp_path: Path) -> None:
    cache = TargetCache.create(tmp_path / "a.zarr", make_manifest())
    barrier = processes.Barrier(2)
    writers = [processes.Process(target=_write_all, args=(cache.where, barrier)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert cache.missing() == []
    assert_whole(TargetCache.open(cache.where))


def test_a_unit_with_a_marker_is_never_written_again(copy: Callable[[str], Path]) -> None:
    cache = TargetCache.open(copy("topk"))
    columns = columns_of(cache, Unit(0, 0))
    cache.write(Unit(0, 0), {name: np.zeros_like(values) for name, values in columns.items()})
    assert_whole(cache)


def test_creating_an_existing_cache_opens_it(filled: dict[str, Path]) -> None:
    cache = TargetCache.create(filled["topk"], replace(make_manifest(), seeds=1))
    assert cache.manifest.seeds == 5
    assert_whole(cache)


def test_status_shows_progress(
    copy: Callable[[str], Path], alter_manifest: Callable[..., None], limbeck: Callable[..., str]
) -> None:
    path = copy("hard")
    alter_manifest(path, teacher={"model": "resnet10t", "classes": 3, "sha256": "abc", "dtype": "float32"})
    shown = limbeck("cache", "status", path)
    assert_facts(shown, "resnet10t", "100.0%")
    assert re.search(r"\bseeds\W+5\D+5\b.*\bunits\W+9\D+9\b.*\btargets\W+55\D+55\b", shown, re.DOTALL)
    assert "limbeck cache build" not in shown  # it is complete
    (path / MARKERS / "4-5.1").unlink()
    shown = limbeck("cache", "status", path)
    assert re.search(r"\bseeds\W+4\D+5\b.*\bunits\W+8\D+9\b.*\btargets\W+48\D+55\b", shown, re.DOTALL)
    assert_facts(shown, "limbeck cache build")
