"""`limbeck cache show` draws what the teacher saw and said."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
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
    """The size of a picture that is one, and shows something."""
    assert path.stat().st_size > LEAST_BYTES
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        colours = image.convert("RGB").getcolors(2**24)
        assert colours is not None and len(colours) > 500
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
    words = "cache", "show", build(recipe).where, "--seed", 1, "--shard", 1, "--out"
    told = limbeck(*words, tmp_path / "a.png")
    assert "3 images of shard 1 under seed 1" in told.replace("\n", " ")
    width, height = opened(tmp_path / "a.png")
    assert height > width / 2
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--seed", 4), r"^--seed 4: cache '.*' has seeds 0 to 3; choose one of them$"),
        (("--shard", 3), r"^--shard 3: cache '.*' has shards 0 to 2; choose one of them$"),
    ],
)
def test_a_seed_or_shard_that_is_not_there_is_one_line(
    cache: TargetCache, words: tuple[object, ...], told: str, limbeck: Callable[..., str], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=told):
        limbeck("cache", "show", cache.where, *words, "--out", tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_targets_that_are_not_there_cannot_be_drawn(
    cache: TargetCache, limbeck: Callable[..., str], tmp_path: Path
) -> None:
    copy = TargetCache.open(shutil.copytree(cache.where, tmp_path / "a.zarr"))
    copy.drop(Unit(1, 2))
    with pytest.raises(
        CacheError, match=r"seed 3, shard 2 has no targets yet; finish it with: limbeck cache build"
    ):
        limbeck("cache", "show", copy.where, "--seed", 3, "--shard", 2, "--out", tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
    limbeck("cache", "show", copy.where, "--seed", 1, "--shard", 2, "--rows", 1, "--out", tmp_path / "a.png")
    width, height = opened(tmp_path / "a.png")
    assert height < width / 4


def test_other_shards_cannot_be_drawn(
    cache: TargetCache, photos: Path, limbeck: Callable[..., str], tmp_path: Path
) -> None:
    other = pack(photos, tmp_path / "other", shard_rows=16, seed=3)
    with pytest.raises(CacheError, match=r"name the right ones with --shards$"):
        limbeck("cache", "show", cache.where, "--shards", other.folder, "--out", tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
