"""How the teacher's outputs were matched to the classes of the shards: by name, or by position only."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from facts import assert_facts

from teacher_cache.cache.layout import ATTRIBUTE, ROOT
from teacher_cache.cache.status import status_table
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.config import digest_of, parse_recipe, resolved
from teacher_cache.errors import CacheError
from teacher_cache.labeling.job import build
from teacher_cache.recipe import CacheRecipe

Make = Callable[..., CacheRecipe]


@pytest.fixture
def make(cache_recipe: CacheRecipe, tmp_path: Path) -> Make:
    """A recipe whose teacher is the tests' run, or with `weights` a local file."""

    def recipe(seeds: int = 1, weights: Path | None = None) -> CacheRecipe:
        plain = resolved(cache_recipe)
        plain["cache"] |= {"path": str(tmp_path / "a.zarr"), "seeds": seeds, "seeds_per_unit": 1}
        if weights:
            plain["teacher"] = {"model": "resnet10t", "weights": str(weights)}
        return parse_recipe(plain, CacheRecipe, "it")

    return recipe


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        torch.save(timm.create_model("resnet10t", num_classes=3).state_dict(), tmp_path / "w.pth")
    return tmp_path / "w.pth"


def remove_field(path: Path) -> None:
    """Write the manifest as 0.1.0 does, without class_match."""
    group: dict[str, Any] = json.loads((path / ROOT).read_text())
    manifest = group["attributes"][ATTRIBUTE]
    del manifest["class_match"], manifest["sha256"]
    group["attributes"][ATTRIBUTE] = manifest | {"sha256": digest_of(manifest)}
    (path / ROOT).write_text(json.dumps(group))


def rows(cache: TargetCache) -> list[str]:
    return [str(cell) for column in status_table(cache).columns for cell in column.cells]


def test_weights_without_class_names_match_by_position(
    make: Make, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = build(make(weights=weights))
    lines = [line for line in capsys.readouterr().err.splitlines() if "by position" in line]
    assert len(lines) == 1
    assert_facts(lines[0], "'resnet10t'", weights, "0 is 'hopper'", "2 is 'parcel'")
    assert TargetCache.open(cache.where).manifest.class_match == "position"
    assert any("position" in row for row in rows(cache))


def test_a_run_of_limbeck_matches_by_name(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    cache = build(make())
    assert "by position" not in capsys.readouterr().err
    assert TargetCache.open(cache.where).manifest.class_match == "name"


def test_caches_without_the_field_are_continued_and_extended(make: Make, weights: Path, tmp_path: Path) -> None:
    build(make(weights=weights))
    remove_field(tmp_path / "a.zarr")
    cache = build(make(weights=weights))
    assert cache.manifest.class_match is None and not any("position" in row for row in rows(cache))
    extended = build(make(seeds=2, weights=weights), extend=True)
    assert not extended.missing() and TargetCache.open(extended.where).manifest.class_match is None


def test_a_cache_with_another_match_is_refused(
    make: Make, alter_manifest: Callable[..., None], tmp_path: Path
) -> None:
    build(make())
    alter_manifest(tmp_path / "a.zarr", class_match="position")
    with pytest.raises(CacheError) as caught:
        build(make())
    assert_facts(caught.value, "class_match", "'position'", "'name'")
