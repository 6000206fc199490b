import json
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from facts import assert_facts
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.cache.manifest import (
    CACHE_FORMAT,
    Manifest,
    diff,
    library_versions,
    read_manifest,
    require_match,
)
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.config import digest_of, resolved
from teacher_cache.data.index import ShardIndex
from teacher_cache.errors import CacheError
from teacher_cache.recipe import CacheRecipe
from teacher_cache.views.view import VIEW_VERSION


@pytest.fixture
def manifest(cache: TargetCache) -> Manifest:
    return cache.manifest


def test_manifest_holds_views_teacher_encoding_shards_seeds_and_libraries(
    manifest: Manifest, cache_recipe: CacheRecipe, shards: ShardIndex
) -> None:
    assert manifest.policy == cache_recipe.views and manifest.recipe == resolved(cache_recipe)
    assert manifest.teacher["model"] == "resnet10t" and len(manifest.teacher["sha256"]) == 64
    assert manifest.encoding == {"kind": "topk", "k": 2, "values": "float16", "digest_bits": 16}
    assert manifest.shards == shards.contents()
    assert (manifest.seeds, manifest.seeds_per_unit) == (4, 2)
    assert manifest.libraries == library_versions()
    assert (manifest.format, manifest.view_version) == (CACHE_FORMAT, VIEW_VERSION)


def test_manifest_round_trips_through_json(manifest: Manifest) -> None:
    assert read_manifest(json.loads(json.dumps(manifest.with_checksum())), "a.zarr") == manifest
    stored = json.loads(json.dumps(manifest.plain()))
    assert diff(manifest, stored) == []
    require_match(manifest, stored, "a.zarr", "do this")


def changed(plain: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    copy = json.loads(json.dumps(plain))
    *above, last = path.split(".")
    table = copy
    for name in above:
        table = table[name]
    if value is None:
        del table[last]
    else:
        table[last] = value
    return copy


@pytest.mark.parametrize(
    ("path", "value", "facts"),
    [
        ("views.size", 64, [32, 64]),
        ("views.auto_augment", "", ["'rand-m9-mstd0.5-inc1'", "''"]),
        ("views.scale", [0.1, 1.0], [1, 2, 0, 0.08, 0.1]),
        ("views.hflip", None, [0.5]),
        ("views.blur", 3, [3]),
        ("teacher.model", "resnet18", ["'resnet10t'", "'resnet18'"]),
        ("seeds", 8, [4, 8]),
        ("libraries.pillow", "1.0", [library_versions()["pillow"], "'1.0'"]),
        ("shards.rows", [16, 16], [3, 2]),
        ("shards.md5", ["a", "b", "c"], [3, 0, "'a'"]),
        ("shards.classes", ["hopper", "logo", "box"], [1, 3, 2, "'parcel'", "'box'"]),
        ("view_version", 99, [VIEW_VERSION, 99]),
    ],
)
def test_a_difference_is_named_with_both_values(
    manifest: Manifest, path: str, value: object, facts: list[object]
) -> None:
    wanted = changed(manifest.plain(), path, value)
    (phrase,) = diff(manifest, wanted)
    assert_facts(phrase, path, *facts)
    with pytest.raises(CacheError) as caught:
        require_match(manifest, wanted, "a.zarr", "do this")
    assert_facts(caught.value, "cache 'a.zarr'", phrase, "do this")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_every_difference_is_named(manifest: Manifest) -> None:
    wanted = changed(changed(changed(manifest.plain(), "views.size", 8), "seeds", 1), "teacher.sha256", "0")
    phrases = diff(manifest, wanted)
    for name, phrase in zip(("seeds", "teacher.sha256", "views.size"), phrases, strict=True):
        assert_facts(phrase, name)
    with pytest.raises(CacheError) as caught:
        require_match(manifest, wanted, "a.zarr", "do this")
    assert all(phrase in str(caught.value) for phrase in phrases)


def test_only_the_fields_asked_for_are_compared(manifest: Manifest) -> None:
    assert diff(manifest, {"views": manifest.views}) == []
    assert diff(replace(manifest, seeds=77), {"views": manifest.views}) == []
    (phrase,) = diff(replace(manifest, seeds=77), {"seeds": 4})
    assert_facts(phrase, "seeds", 77, 4)


@given(rows=st.lists(st.integers(0, 9), min_size=3, max_size=3), other=st.lists(st.integers(0, 9), max_size=5))
def test_list_difference_counts_entries_and_shows_the_first(
    cache: TargetCache, rows: list[int], other: list[int]
) -> None:
    found = replace(cache.manifest, shards={"rows": rows})
    phrases = diff(found, {"shards": {"rows": other}})
    assert bool(phrases) == (rows != other)
    if len(other) == 3 and phrases:
        differing = [number for number in range(3) if rows[number] != other[number]]
        values = rows[differing[0]], other[differing[0]]
        assert not Counter([len(differing), 3, differing[0], *values]) - Counter(
            map(int, re.findall(r"\d+", phrases[0]))
        )


@pytest.mark.parametrize("found", [CACHE_FORMAT + 1, 0, None, "1"])
def test_unknown_format_is_reported(manifest: Manifest, found: object) -> None:
    plain = {**manifest.plain(), "format": found}
    with pytest.raises(CacheError) as caught:
        read_manifest(plain, "a.zarr")
    assert_facts(caught.value, "cache 'a.zarr'", f"format {found}", CACHE_FORMAT)


@pytest.mark.parametrize("name", ["seeds", "views"])
def test_manifest_with_missing_or_extra_field_is_reported(manifest: Manifest, name: str) -> None:
    plain = manifest.plain()
    incomplete = {key: value for key, value in plain.items() if key != name}
    for broken, field in (({**plain, "strange": 1}, "strange"), (incomplete, name)):
        broken["sha256"] = digest_of(broken)
        with pytest.raises(CacheError) as caught:
            read_manifest(broken, "a.zarr")
        assert_facts(caught.value, "cache 'a.zarr'", f"'{field}'", "zarr.json")


@pytest.mark.parametrize("path", ["views.hflip", "teacher.sha256", "seeds", "sha256"])
def test_edited_manifest_is_reported(manifest: Manifest, path: str) -> None:
    with pytest.raises(CacheError) as caught:
        read_manifest(changed(manifest.with_checksum(), path, 1), "a.zarr")
    assert_facts(caught.value, "cache 'a.zarr'", "sha256", "zarr.json")
