"""A small distilled student: its recipe, and finished runs with two heads and with one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from student.recipe import TrainRecipe
from student.train import train
from teacher_cache.cache import TargetCache
from teacher_cache.recipe import load_recipe
from teacher_cache.shards import ShardIndex

Recipes = Callable[..., TrainRecipe]

STUDENT = """
[data]
train = "{shards}"
val = "{shards}"

[cache]
path = "{cache}"

[model]
name = "deit_tiny_distilled_patch16_224"
args = {{ img_size = 32, patch_size = 8, embed_dim = 24, depth = 2, num_heads = 2, drop_path_rate = 0.1 }}

[loss]
distillation = "hard"
smoothing = 0.1

[optim]
name = "adamw"
lr = 3e-3
weight_decay = 0.05
clip_grad = 1.0

[schedule]
epochs = 2
warmup_epochs = 1
warmup_lr = 1e-4
min_lr = 1e-5

[train]
batch = 8
streams = 4

[eval]
size = 32
crop = 0.9

[machine]
workers = 0
device = "cpu"
"""


@pytest.fixture(scope="session")
def recipe_file(cache: TargetCache, shards: ShardIndex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student's recipe as a user would write it: hard distillation, two epochs of five steps."""
    path = tmp_path_factory.mktemp("recipes") / "student.toml"
    path.write_text(STUDENT.format(shards=shards.folder, cache=cache.path))
    return path


@pytest.fixture(scope="session")
def student_recipe(recipe_file: Path) -> Recipes:
    """The student's recipe with overrides, e.g. student_recipe("schedule.epochs=3")."""
    return lambda *changes: load_recipe(recipe_file, TrainRecipe, changes)


@pytest.fixture(scope="session")
def student_run(student_recipe: Recipes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with two heads."""
    run = tmp_path_factory.mktemp("runs") / "student"
    train(student_recipe(), run)
    return run


@pytest.fixture(scope="session")
def alone_run(student_recipe: Recipes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run without distillation: of the same network, only the class head has learned."""
    run = tmp_path_factory.mktemp("runs") / "alone"
    train(student_recipe('loss.distillation="none"'), run)
    return run
