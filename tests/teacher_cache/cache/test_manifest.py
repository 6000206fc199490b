import json
from dataclasses import replace
from typing import Any

import pytest
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


def test_it_promises_views_teacher_encoding_shards_seeds_and_libraries(
    manifest: Manifest, cache_recipe: CacheRecipe, shards: ShardIndex
) -> None:
    assert manifest.policy == cache_recipe.views and manifest.recipe == resolved(cache_recipe)
    assert manifest.teacher["model"] == "resnet10t" and len(manifest.teacher["sha256"]) == 64
    assert manifest.encoding == {"kind": "topk", "k": 2, "values": "float16", "digest_bits": 16}
    assert manifest.shards == shards.contents()
    assert (manifest.seeds, manifest.seeds_per_unit) == (4, 2)
    assert manifest.libraries == library_versions()
    assert (manifest.format, manifest.view_version) == (CACHE_FORMAT, VIEW_VERSION)


def test_it_is_read_back_from_json_as_it_was(manifest: Manifest) -> None:
    assert read_manifest(json.loads(json.dumps(manifest.sealed())), "here") == manifest
    stored = json.loads(json.dumps(manifest.plain()))
    assert diff(manifest, stored) == []
    require_match(manifest, stored, "here", "do this")


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
    ("path", "value", "told"),
    [
        ("views.size", 64, "views.size is 32 there and 64 here"),
        ("views.auto_augment", "", "views.auto_augment is 'rand-m9-mstd0.5-inc1' there and '' here"),
        (
            "views.scale",
            [0.1, 1.0],
            "views.scale: 1 of 2 entries differ, the first is number 0: 0.08 there and 0.1 here",
        ),
        ("views.hflip", None, "views.hflip is 0.5 there and absent here"),
        ("views.blur", 3, "views.blur is absent there and 3 here"),
        ("teacher.model", "resnet18", "teacher.model is 'resnet10t' there and 'resnet18' here"),
        ("seeds", 8, "seeds is 4 there and 8 here"),
        ("libraries.pillow", "1.0", "libraries.pillow is "),
        ("shards.rows", [16, 16], "shards.rows: 3 entries there and 2 here"),
        ("shards.md5", ["a", "b", "c"], "shards.md5: 3 of 3 entries differ, the first is number 0: '"),
        ("shards.classes", ["hopper", "logo", "box"], "number 2: 'parcel' there and 'box' here"),
        ("view_version", 99, f"view_version is {VIEW_VERSION} there and 99 here"),
    ],
)
def test_a_difference_is_named_with_both_values(manifest: Manifest, path: str, value: object, told: str) -> None:
    wanted = changed(manifest.plain(), path, value)
    phrases = diff(manifest, wanted)
    assert (len(phrases) == 1 and phrases[0].startswith(told)) or told in phrases[0]
    with pytest.raises(CacheError) as caught:
        require_match(manifest, wanted, "a.zarr", "do this")
    assert str(caught.value) == f"cache 'a.zarr' was built for something else: {phrases[0]}; do this"
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_every_difference_is_named(manifest: Manifest) -> None:
    wanted = changed(changed(changed(manifest.plain(), "views.size", 8), "seeds", 1), "teacher.sha256", "0")
    phrases = diff(manifest, wanted)
    assert [phrase.split()[0] for phrase in phrases] == ["seeds", "teacher.sha256", "views.size"]
    with pytest.raises(CacheError) as caught:
        require_match(manifest, wanted, "a.zarr", "do this")
    assert all(phrase in str(caught.value) for phrase in phrases)


def test_only_the_fields_asked_for_are_compared(manifest: Manifest) -> None:
    assert diff(manifest, {"views": manifest.views}) == []
    assert diff(replace(manifest, seeds=77), {"views": manifest.views}) == []
    assert diff(replace(manifest, seeds=77), {"seeds": 4}) == ["seeds is 77 there and 4 here"]


@given(rows=st.lists(st.integers(0, 9), min_size=3, max_size=3), other=st.lists(st.integers(0, 9), max_size=5))
def test_lists_differ_where_their_entries_do(cache: TargetCache, rows: list[int], other: list[int]) -> None:
    found = replace(cache.manifest, shards={"rows": rows})
    phrases = diff(found, {"shards": {"rows": other}})
    assert bool(phrases) == (rows != other)
    if len(other) == 3 and phrases:
        apart = [number for number in range(3) if rows[number] != other[number]]
        assert f"{len(apart)} of 3 entries differ, the first is number {apart[0]}: " in phrases[0]


@pytest.mark.parametrize("found", [CACHE_FORMAT + 1, 0, None, "1"])
def test_another_format_is_told(manifest: Manifest, found: object) -> None:
    plain = {**manifest.plain(), "format": found}
    with pytest.raises(
        CacheError, match=rf"^cache 'here' has format {found}, this version of limbeck reads {CACHE_FORMAT}"
    ):
        read_manifest(plain, "here")


@pytest.mark.parametrize("name", ["seeds", "views"])
def test_a_manifest_that_lacks_or_adds_a_field_is_told(manifest: Manifest, name: str) -> None:
    plain = manifest.plain()
    for broken in ({**plain, "strange": 1}, {key: value for key, value in plain.items() if key != name}):
        broken["sha256"] = digest_of(broken)
        with pytest.raises(
            CacheError, match=r"^cache 'here' has a manifest that cannot be read \(.*\); restore zarr\.json"
        ):
            read_manifest(broken, "here")


@pytest.mark.parametrize("path", ["views.hflip", "teacher.sha256", "seeds", "sha256"])
def test_a_manifest_changed_by_hand_is_told(manifest: Manifest, path: str) -> None:
    with pytest.raises(CacheError, match="it is not as it was written, its sha256 differs"):
        read_manifest(changed(manifest.sealed(), path, 1), "here")
