"""Several caches built in one pass: each equals the cache built alone."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from facts import assert_facts
from safetensors.torch import load_file
from toml_text import to_toml

from teacher_cache.cache.layout import Unit
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.config import resolved
from teacher_cache.data import view_reader as stream
from teacher_cache.distributed.world import World
from teacher_cache.errors import RecipeError
from teacher_cache.labeling.job import build, build_all
from teacher_cache.models.card import load_card
from teacher_cache.models.run_folder import FINAL
from teacher_cache.models.weights import WEIGHTS_NAME, save_network, weights_sha256
from teacher_cache.recipe import CacheRecipe
from teacher_cache.views.decode import decode

Change = Callable[..., CacheRecipe]
Same = Callable[[TargetCache, TargetCache], None]


@pytest.fixture(scope="module")
def other_teacher(teacher_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with other weights, and so with other logits."""
    run = tmp_path_factory.mktemp("other")
    state = load_file(teacher_run / FINAL / WEIGHTS_NAME)
    state["fc.bias"] += state["fc.bias"].flip(0) + 0.5 * state["fc.bias"].new_tensor([2.0, 0.0, -2.0])
    save_network(
        run / FINAL, load_card(teacher_run / FINAL).model_copy(update={"sha256": weights_sha256(state)}), state
    )
    return run


@pytest.fixture
def pair(cache_recipe: CacheRecipe, changed: Change, other_teacher: Path, tmp_path: Path) -> list[CacheRecipe]:
    """Two recipes of the same views: another teacher, another encoding, longer digests."""
    dense = {"encoding": "dense", "values": "uint8", "digest_bits": 64}
    return [
        changed(cache_recipe, tmp_path / "one.zarr"),
        changed(cache_recipe, tmp_path / "two.zarr", cache=dense, teacher={"run": str(other_teacher)}),
    ]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    """How often each image has been decoded, by its bytes."""
    counts: Counter[bytes] = Counter()

    def counting(data: bytes) -> Any:
        counts[data] += 1
        return decode(data)

    monkeypatch.setattr(stream, "decode", counting)
    return counts


def test_two_caches_built_together_equal_the_two_built_apart(
    cache: TargetCache, pair: list[CacheRecipe], changed: Change, assert_same: Same, tmp_path: Path
) -> None:
    one, two = build_all(pair)
    alone = build(changed(pair[1], tmp_path / "alone.zarr"))
    assert one.missing() == two.missing() == []
    assert_same(one, cache)
    assert_same(two, alone)
    apart = sum(
        int((one.read(seed, shard).hard != two.read(seed, shard).hard).sum())
        for seed in range(4)
        for shard in range(3)
    )
    assert apart > 10  # two teachers
    for seed in range(4):
        assert (one.read(seed, 1).digest == two.read(seed, 1).digest & 0xFFFF).all()  # of the same views


def test_each_image_is_decoded_once_for_all_caches_and_seeds_of_a_unit(
    pair: list[CacheRecipe], decoded: Counter[bytes]
) -> None:
    blocks = 2
    build_all(pair, World())
    assert len(decoded) == 40 and set(decoded.values()) == {blocks}
    build_all(pair, World())
    assert decoded.total() == 40 * blocks  # there was nothing left to do


def test_only_missing_units_are_labeled(
    cache: TargetCache, pair: list[CacheRecipe], decoded: Counter[bytes], assert_same: Same
) -> None:
    one = build(pair[0])
    one.drop(Unit(1, 2))
    decoded.clear()
    path = Path(one.where)
    before = {file: file.stat().st_mtime_ns for file in path.glob("*/c.0.*")}
    one, two = build_all(pair)
    assert one.missing() == two.missing() == [] and len(decoded) == 40
    assert {file: file.stat().st_mtime_ns for file in before} == before
    decoded.clear()
    two.drop(Unit(0, 2))
    one, two = build_all(pair[::-1])
    assert one.missing() == two.missing() == [] and decoded.total() == len(decoded) == 8
    assert_same(two, cache)


def test_ranks_and_workers_share_several_caches(
    cache: TargetCache, pair: list[CacheRecipe], changed: Change, assert_same: Same
) -> None:
    pair = [changed(recipe, recipe.cache.path, job={"workers": 1}) for recipe in pair]
    for rank in range(2):
        one, two = build_all(pair, World(rank, 2))
        assert one.present() == two.present() and len(one.missing()) == 3 * (1 - rank)
    assert_same(one, cache)


@pytest.mark.parametrize(
    ("tables", "facts"),
    [
        ({"views": {"hflip": 0.25}}, ["views.hflip", 0.5, 0.25]),
        ({"cache": {"seeds": 6}}, ["cache.seeds", 4, 6]),
        ({"cache": {"seeds_per_unit": 1}}, ["cache.seeds_per_unit", 2, 1]),
        ({"job": {"batch": 8}}, ["job.batch", 16, 8]),
        ({"data": {"train": "elsewhere"}}, ["data.train", "'elsewhere'"]),
    ],
)
def test_recipes_that_do_not_agree_are_refused(
    pair: list[CacheRecipe], changed: Change, tables: dict[str, Any], facts: list[object]
) -> None:
    with pytest.raises(RecipeError) as caught:
        build_all([pair[0], changed(pair[1], pair[1].cache.path, **tables)])
    assert_facts(caught.value, *facts)
    assert "\n" not in str(caught.value)
    assert not Path(pair[0].cache.path).exists() and not Path(pair[1].cache.path).exists()


@pytest.mark.parametrize("places", [(0, 1), (1, 2), (0, 2)])
def test_one_path_for_two_caches_is_refused(
    pair: list[CacheRecipe], changed: Change, tmp_path: Path, places: tuple[int, int]
) -> None:
    """Combine any two of three recipes."""
    paths = [tmp_path / f"{number}.zarr" for number in range(3)]
    paths[places[1]] = tmp_path / "here" / ".." / paths[places[0]].name
    three = [changed(recipe, path) for recipe, path in zip((*pair, pair[0]), paths, strict=True)]
    with pytest.raises(RecipeError, match=rf"cache\.path.*{paths[places[0]].name}'"):
        build_all(three)
    assert not any(path.exists() for path in paths)


def test_the_command_builds_several_recipes(
    pair: list[CacheRecipe], limbeck: Callable[..., str], tmp_path: Path
) -> None:
    files = []
    for number, recipe in enumerate(pair):
        files.append(tmp_path / f"{number}.toml")
        files[-1].write_text(to_toml(resolved(recipe)), encoding="utf-8")
    said = limbeck("cache", "build", *files)
    for recipe in pair:
        assert_facts(said, f"cache '{recipe.cache.path}'", "6 units")
        assert TargetCache.open(recipe.cache.path).missing() == []
