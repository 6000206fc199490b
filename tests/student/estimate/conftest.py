"""The ImageNet cache recipe and the figures of a V100."""

from pathlib import Path

import pytest

from student.estimate.machine import Hardware
from teacher_cache.config import load_recipe
from teacher_cache.recipe import CacheRecipe

ROOT = Path(__file__).parents[3]


@pytest.fixture
def imagenet() -> CacheRecipe:
    return load_recipe(ROOT / "teacher_cache" / "recipes" / "imagenet_224.toml", CacheRecipe)


@pytest.fixture
def v100() -> Hardware:
    return load_recipe(ROOT / "deploy" / "imagenet_v100.toml", Hardware)
