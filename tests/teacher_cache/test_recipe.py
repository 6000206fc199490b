"""Recipes: validation, overrides and comparison."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from facts import assert_facts
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.config import differences, digest_of, load_recipe, parse_recipe, resolved
from teacher_cache.errors import RecipeError
from teacher_cache.recipe import CacheRecipe
from teacher_cache.views.policy import ViewPolicy

RECIPE = """
[data]
train = "shards"

[views]
size = 32
scale = [0.5, 1.0]
hflip = 0.5
auto_augment = "rand-m9-mstd0.5-inc1"
re_prob = 0.25
mixup = 0.8
cutmix = 1.0

[teacher]
run = "teacher"

[cache]
path = "cache.zarr"
seeds = 4
encoding = "topk"
k = 2
"""

TIMM = 'model = "resnet18"'


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., CacheRecipe]:
    """Load RECIPE with one line replaced, or lines added, and overrides."""

    def read(*overrides: str, line: str = "", by: str = "") -> CacheRecipe:
        assert RECIPE.count(line) == 1 or not line
        path = tmp_path / "recipe.toml"
        path.write_text(RECIPE.replace(line, by) if line else RECIPE + by)
        return load_recipe(path, CacheRecipe, overrides)

    return read


@pytest.mark.parametrize(
    ("line", "by", "facts"),
    [
        ("hflip = 0.5", "hflipp = 0.5", ["'views.hflipp'", "'views.hflip'"]),
        ("", "\n[cahce]\nk = 1", ["'cahce'", "'cache'"]),
        ("k = 2", "k = 2\nzzz = 1", ["'cache.zzz'"]),
        ("size = 32", "", ["'views.size'"]),
        ('[teacher]\nrun = "teacher"', "", ["'teacher'"]),
        ("size = 32", 'size = "32"', ["views.size", '"32"']),
        ("size = 32", "size = 32.0", ["views.size", "32.0"]),
        ("size = 32", "size = 0", ["views.size = 0", 1]),
        ("hflip = 0.5", "hflip = true", ["views.hflip", "true"]),
        ("hflip = 0.5", "hflip = 1.5", ["views.hflip", "1.5", 1]),
        ("mixup = 0.8", "mixup = -1", ["views.mixup", "-1", 0]),
        ("mixup = 0.8", "mixup = nan", ["views.mixup", "NaN"]),
        ("mixup = 0.8", "mixup = inf", ["views.mixup", "Infinity"]),
        ("scale = [0.5, 1.0]", "scale = [0.5]", ["views.scale.1"]),
        ("scale = [0.5, 1.0]", "scale = 0.5", ["views.scale", "0.5"]),
        ("scale = [0.5, 1.0]", "scale = [1.0, 0.5]", ["views", "scale", "0 < low <= high", "[1.0, 0.5]"]),
        ("scale = [0.5, 1.0]", "scale = [0.5, 2.0]", ["views", "scale", "2.0"]),
        ("scale = [0.5, 1.0]", "ratio = [0.0, 2.0]", ["views", "ratio", "0 < low <= high", "[0.0, 2.0]"]),
        ('"topk"', '"top-k"', ["cache.encoding", '"top-k"', "'hard'", "'topk'", "'dense'"]),
        ('"rand-m9-mstd0.5-inc1"', '"rand-m9-x3"', ["views.auto_augment", "'x3'", "mmax", "inc"]),
        ('"rand-m9-mstd0.5-inc1"', '"augmix-m3"', ["views.auto_augment", "'augmix-m3'", "'3a'"]),
        ('run = "teacher"', "", ["teacher", "run", "model"]),
        ('run = "teacher"', 'run = "teacher"\nmodel = "resnet18"', ["teacher", "run", "model"]),
        ('run = "teacher"', 'run = "teacher"\nmean = [0.5, 0.5, 0.5]', ["teacher", "run = 'teacher'", "mean"]),
        (
            'run = "teacher"',
            f"{TIMM}\nmean = [123.675, 116.28, 103.53]",
            ["teacher.mean", 255, 0.485, 0.456],
        ),
        ('run = "teacher"', f"{TIMM}\nstd = [58.395, 57.12, 57.375]", ["teacher.std", 255, 0.229, 0.224, 0.225]),
        ('run = "teacher"', f"{TIMM}\nstd = [0.2, 0.2, 57.375]", ["teacher.std", 57.375, 255]),
        ('run = "teacher"', f"{TIMM}\nmean = 0.5", ["teacher.mean", 0.5, "three"]),
        ('run = "teacher"', f"{TIMM}\nmean = [0.5]", ["teacher.mean", "[0.5]", "three"]),
        ('run = "teacher"', f"{TIMM}\nmean = [0.5, 0.5, 0.5, 0.5]", ["teacher.mean", "three"]),
        ('run = "teacher"', f'{TIMM}\nmean = [0.5, 0.5, "0.5"]', ["teacher.mean", "three"]),
        ('run = "teacher"', f"{TIMM}\nmean = [0.5, -0.1, 0.5]", ["teacher.mean", -0.1]),
        ('run = "teacher"', f"{TIMM}\nstd = [0.5, 0.0, 0.5]", ["teacher.std", 0]),
        ('run = "teacher"', f"{TIMM}\nstd = [nan, 0.5, 0.5]", ["teacher.std", "NaN"]),
        ("seeds = 4", "seeds = 4\ndigest_bits = 8", ["cache.digest_bits", 8, 16, 32, 64]),
        ("cutmix = 1.0", "cutmix = 1.0\naug_repeats = 3", ["cache.seeds = 4", "views.aug_repeats = 3"]),
        ("[cache]", '[job]\nshard_cache = "s3://b/sc"\n[cache]', ["job.shard_cache", "'s3://b/sc'"]),
        ("[cache]", '[job]\ndecoded_cache = "s3://b/d"\n[cache]', ["job.decoded_cache", "'s3://b/d'"]),
        ("seeds = 4", "seeds = 2024-01-01", ["date"]),
        ("size = 32", "size = ", ["TOML", "line 6"]),
        ("size = 32", "size = 32\nsize = 32", ["TOML", "line 7"]),
    ],
)
def test_recipe_error_is_one_line_with_file_and_key(
    load: Callable[..., CacheRecipe], tmp_path: Path, line: str, by: str, facts: list[object]
) -> None:
    with pytest.raises(RecipeError) as caught:
        load(line=line, by=by)
    where = f"recipe '{tmp_path / 'recipe.toml'}'"
    assert_facts(caught.value, where)
    assert_facts(str(caught.value).replace(where, ""), *facts)
    assert "\n" not in str(caught.value)


def test_three_recipe_errors_are_reported_at_once(load: Callable[..., CacheRecipe]) -> None:
    with pytest.raises(RecipeError) as two:
        load("views.size=0", "cache.seed=3")
    assert_facts(two.value, "'cache.seed'", "'cache.seeds'", "views.size = 0")
    with pytest.raises(RecipeError) as four:
        load("zzz=1", "views.size=", "cache.path=", "cache.encoding=")
    assert_facts(four.value, 4, "'zzz'", "'views.size'", "'cache.path'", 1)
    assert "cache.encoding" not in str(four.value)  # this one is only counted


def test_missing_or_unreadable_recipe_is_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'.*none\.toml'.*limbeck recipes"):
        load_recipe(tmp_path / "none.toml", CacheRecipe)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match=r"'.*/binary\.toml'.*UTF-8"):
        load_recipe(tmp_path / "binary.toml", CacheRecipe)
    with pytest.raises(RecipeError, match=rf"'{tmp_path}'.*TOML"):
        load_recipe(tmp_path, CacheRecipe)


def test_overrides_change_add_and_keep_their_types(load: Callable[..., CacheRecipe]) -> None:
    recipe = load("cache.seeds=8", "views.scale=[0.2, 0.9]", "job.batch = 7", "cache.path=there", "views.mixup=0")
    assert recipe.cache.seeds == 8 and recipe.views.scale == (0.2, 0.9) and recipe.job.batch == 7
    assert recipe.cache.path == "there" and recipe.views.mixup == 0
    assert load("cache.seeds=8", "cache.seeds=12").cache.seeds == 12
    assert load('views.auto_augment=""').views.auto_augment == ""


def test_an_override_without_a_value_removes_the_key(load: Callable[..., CacheRecipe]) -> None:
    assert load("cache.k=2", "cache.k=").cache.k == 10
    with pytest.raises(RecipeError, match=r"'views\.size'"):
        load("views.size=")


@pytest.mark.parametrize(
    ("override", "facts"),
    [
        ("views.size", ["--set 'views.size'", "table.key=value"]),
        ("=3", ["--set '=3'", "table.key=value"]),
        ("views..size=3", ["--set 'views..size=3'", "table.key=value"]),
        ("views.size.more=3", ["--set 'views.size.more=3'", "'size'"]),
        ("views.sise=", ["--set 'views.sise='"]),
        ("view.size=", ["--set 'view.size='"]),
        ("views.size.more=", ["--set 'views.size.more='"]),
        ("views.sise=3", ["'views.sise'", "'views.size'"]),
        ("views.size=big", ["views.size", '"big"']),
        ("views=3", ["views = 3"]),
    ],
)
def test_invalid_override_is_one_line_error(
    load: Callable[..., CacheRecipe], override: str, facts: list[str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        load(override)
    assert_facts(caught.value, *facts)
    assert "\n" not in str(caught.value)


def test_a_recipe_is_frozen(load: Callable[..., CacheRecipe]) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().views.size = 64


SHARE = st.floats(0, 1)
PAIR = st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted).map(tuple)
POLICY = st.builds(
    ViewPolicy,
    size=st.integers(1, 500),
    scale=PAIR,
    ratio=PAIR,
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    hflip=SHARE,
    vflip=SHARE,
    auto_augment=st.sampled_from(["", "rand-m9-mstd0.5-inc1", "rand-m3-n1-p0.7-mmax20"]),
    re_prob=SHARE,
    re_mode=st.sampled_from(["const", "rand", "pixel"]),
    re_count=st.integers(1, 4),
    mixup=st.floats(0, 5),
    cutmix=st.floats(0, 5),
    mixup_prob=SHARE,
    mixup_switch_prob=SHARE,
    aug_repeats=st.integers(1, 4),
)


@given(policy=POLICY)
def test_a_resolved_table_is_read_back_as_it_was(policy: ViewPolicy) -> None:
    plain = resolved(policy)
    stored = json.loads(json.dumps(plain))
    assert parse_recipe(stored, ViewPolicy, "stored") == policy
    assert plain.keys() == ViewPolicy.model_fields.keys() and digest_of(stored) == digest_of(plain)


def test_a_resolved_recipe_holds_every_default_and_is_read_back(load: Callable[..., CacheRecipe]) -> None:
    recipe = load()
    plain = resolved(recipe)
    assert plain["cache"]["digest_bits"] == 16
    machine = {"workers": None, "device": "auto", "compile": False, "shard_cache": "", "shard_cache_gib": 50.0}
    decoded = {"decoded_gib": 2.0, "decoded_cache": "", "decoded_cache_gib": 50.0}
    assert plain["job"] == machine | decoded | {"batch": 64, "cudnn_benchmark": False}
    assert parse_recipe(plain, CacheRecipe, "stored") == recipe
    assert digest_of(plain) != digest_of(resolved(load("cache.k=3")))


PLAIN = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2)),
    lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3),
)


def leaves(plain: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(plain, dict):
        return {name: plain}
    return {key: leaf for part in plain for key, leaf in leaves(plain[part], f"{name}.{part}".lstrip(".")).items()}


@given(one=st.dictionaries(st.text("abc", min_size=1, max_size=2), PLAIN, max_size=3))
def test_no_value_differs_from_itself(one: dict[str, Any]) -> None:
    assert differences(one, json.loads(json.dumps(one))) == []


@given(
    one=st.dictionaries(st.text("abc", min_size=1, max_size=2), st.integers(0, 2), max_size=4),
    other=st.dictionaries(st.text("abc", min_size=1, max_size=2), st.integers(0, 2), max_size=4),
)
def test_every_difference_is_named_with_both_values(one: dict[str, int], other: dict[str, int]) -> None:
    named = differences({"t": one, "u": 1}, {"t": other, "u": 1})
    assert named == [
        (f"t.{key}", one.get(key), other.get(key))
        for key in sorted(one.keys() | other.keys())
        if one.get(key) != other.get(key)
    ]


def test_a_mistyped_path_names_the_most_similar_recipe_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "deit_tiny.toml").write_text("", encoding="utf-8")
    for typed in ("deit_tny.toml", "deit_tiny"):
        with pytest.raises(RecipeError) as error:
            load_recipe(tmp_path / typed, CacheRecipe)
        assert_facts(error.value, tmp_path / typed, tmp_path / "deit_tiny.toml")
