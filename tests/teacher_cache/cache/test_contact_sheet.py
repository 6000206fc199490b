"""`limbeck cache show` draws views and targets."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from facts import assert_facts
from PIL import Image

from teacher_cache.cache.layout import Unit
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.errors import CacheError, RecipeError
from teacher_cache.labeling.job import build
from teacher_cache.packing.pack import pack
from teacher_cache.recipe import CacheRecipe

LEAST_BYTES = 20_000


@pytest.fixture(scope="module")
def small(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six photos in two shards."""
    return pack(photos, tmp_path_factory.mktemp("small"), shard_rows=3, limit=6).folder


def opened(path: Path) -> tuple[int, int]:
    """Size of an image file, which must be a PNG with at least 500 colors."""
    assert path.stat().st_size > LEAST_BYTES
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        colors = image.convert("RGB").getcolors(2**24)
        assert colors is not None and len(colors) > 500
        return image.size


@pytest.mark.parametrize("encoding", ["hard", "topk", "dense"])
def test_every_encoding_is_drawn(
    cache_recipe: CacheRecipe,
    changed: Callable[..., CacheRecipe],
    small: str,
    encoding: str,
    limbeck: Callable[..., str],
    tmp_path: Path,
) -> None:
    recipe = changed(
        cache_recipe, tmp_path / "a.zarr", cache={"seeds": 2, "encoding": encoding, "k": 2}, data={"train": small}
    )
    command = "cache", "show", build(recipe).where, "--seed", 1, "--shard", 1, "--out"
    assert_facts(limbeck(*command, tmp_path / "a.png"), "3 images", "shard 1", "seed 1", tmp_path / "a.png")
    width, height = opened(tmp_path / "a.png")
    assert height > width / 2
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("command", "facts"), [(("--seed", 4), ["--seed 4", 0, 3]), (("--shard", 3), ["--shard 3", 0, 2])]
)
def test_missing_seed_or_shard_is_one_line_error(
    cache: TargetCache,
    command: tuple[object, ...],
    facts: list[object],
    limbeck: Callable[..., str],
    tmp_path: Path,
) -> None:
    with pytest.raises(RecipeError) as caught:
        limbeck("cache", "show", cache.where, *command, "--out", tmp_path / "a.png")
    assert_facts(caught.value, f"'{cache.where}'", *facts)
    assert not list(tmp_path.iterdir())


def test_missing_targets_cannot_be_drawn(cache: TargetCache, limbeck: Callable[..., str], tmp_path: Path) -> None:
    copy = TargetCache.open(shutil.copytree(cache.where, tmp_path / "a.zarr"))
    copy.drop(Unit(1, 2))
    with pytest.raises(CacheError) as caught:
        limbeck("cache", "show", copy.where, "--seed", 3, "--shard", 2, "--out", tmp_path / "a.png")
    assert_facts(caught.value, "seed 3", "shard 2", "limbeck cache build")
    assert not (tmp_path / "a.png").exists()
    limbeck("cache", "show", copy.where, "--seed", 1, "--shard", 2, "--rows", 1, "--out", tmp_path / "a.png")
    width, height = opened(tmp_path / "a.png")
    assert height < width / 4


def test_other_shards_cannot_be_drawn(
    cache: TargetCache, photos: Path, limbeck: Callable[..., str], tmp_path: Path
) -> None:
    other = pack(photos, tmp_path / "other", shard_rows=16, seed=3)
    with pytest.raises(CacheError, match=r"shards\.md5.*--shards\b"):
        limbeck("cache", "show", cache.where, "--shards", other.folder, "--out", tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
