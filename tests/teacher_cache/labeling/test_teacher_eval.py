import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from facts import assert_facts

from teacher_cache.config import parse_recipe, resolved
from teacher_cache.data.index import ShardIndex, save_index
from teacher_cache.data.shards import read_shard
from teacher_cache.errors import RecipeError
from teacher_cache.labeling.job import build
from teacher_cache.models.teacher import load_teacher
from teacher_cache.recipe import CacheRecipe
from teacher_cache.views.decode import decode
from teacher_cache.views.eval_transform import center_crop

Recipe = Callable[..., CacheRecipe]


@pytest.fixture
def recipe(cache_recipe: CacheRecipe, shards: ShardIndex, tmp_path: Path) -> Recipe:
    """The tests' cache recipe with `teacher.min_accuracy` = least (percent)."""

    def make(least: float, **tables: Any) -> CacheRecipe:
        plain = resolved(cache_recipe)
        plain["data"]["val"] = shards.folder
        plain["teacher"]["min_accuracy"] = least
        plain["cache"] |= {"path": str(tmp_path / "cache.zarr"), "seeds": 1, "seeds_per_unit": 1}
        return parse_recipe(plain | tables, CacheRecipe, "it")

    return make


@pytest.fixture
def accuracy(recipe: Recipe, shards: ShardIndex) -> float:
    """Accuracy of the teacher in percent, by a plain loop over single images."""
    teacher = load_teacher(recipe(1.0).teacher, shards.classes, 32)
    right = []
    for shard in range(len(shards.shards)):
        for record in read_shard(shards, shard):
            pixels = torch.from_numpy(center_crop(decode(record.image), 32, 1.0))[None].permute(0, 3, 1, 2)
            right.append(int(teacher(pixels).argmax()) == record.label)
    return float(100 * np.mean(right))


def test_teacher_below_min_accuracy_is_refused_and_nothing_is_built(
    recipe: Recipe, accuracy: float, tmp_path: Path
) -> None:
    assert 40 < accuracy < 100
    with pytest.raises(RecipeError) as caught:
        build(recipe(accuracy + 0.1))
    least = f"{accuracy + 0.1:g}"
    assert_facts(caught.value, "resnet10t", f"{accuracy:.2f}", 40, "data.val", "teacher.min_accuracy", least)
    assert not (tmp_path / "cache.zarr").exists()


def test_teacher_is_evaluated_once_and_its_score_stored(
    recipe: Recipe, accuracy: float, limbeck: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = build(recipe(accuracy))
    assert json.loads((tmp_path / "cache.zarr" / "teacher.json").read_text())["accuracy"] == accuracy
    assert not cache.missing()
    assert re.search(rf"\b{accuracy:.2f} ?%\D+40\b", limbeck("cache", "status", cache.where))

    def unexpected(*_: object) -> None:
        raise AssertionError("the teacher was evaluated again")

    with monkeypatch.context() as patch:
        patch.setattr("teacher_cache.labeling.teacher_eval.eval_batches", unexpected)
        build(recipe(accuracy - 1))  # min_accuracy is not part of the manifest
        with pytest.raises(RecipeError, match=r"teacher\.min_accuracy\D*99\.5"):
            build(recipe(99.5))
        with pytest.raises(AssertionError, match="evaluated again"):  # another dtype needs another evaluation
            teacher = recipe(accuracy).teacher.model_dump(mode="json") | {"dtype": "bfloat16"}
            build(recipe(accuracy, teacher=teacher))


def test_validation_shards_of_other_classes_are_refused(
    recipe: Recipe, shards: ShardIndex, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(shards.folder, tmp_path / "val"))
    save_index(replace(shards, folder=str(folder), classes=("a", "b", "c", "d")), folder / "index.json")
    data = {"train": shards.folder, "val": str(folder)}
    with pytest.raises(RecipeError) as caught:
        build(recipe(50.0, data=data))
    assert_facts(caught.value, "class 0", "'hopper'", "'a'", "data.train", "data.val", "--classes")


def test_min_accuracy_needs_validation_images(recipe: Recipe, shards: ShardIndex) -> None:
    with pytest.raises(RecipeError, match=r"teacher\.min_accuracy\D*50\b.*data\.val"):
        recipe(50.0, data={"train": shards.folder})
