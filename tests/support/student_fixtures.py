"""A small distilled student: its recipe, and finished runs with two heads and with one head."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from student.recipe import TrainRecipe
from student.training.loop import train
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.config import load_recipe
from teacher_cache.data.index import ShardIndex

Recipes = Callable[..., TrainRecipe]

MACHINE = """
[machine]
workers = 0
device = "cpu"
"""


@pytest.fixture(scope="session")
def recipe_file(
    recipe_text: Callable[..., str],
    cache: TargetCache,
    shards: ShardIndex,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The student's recipe as a user would write it: hard distillation, two epochs of five steps."""
    path = tmp_path_factory.mktemp("recipes") / "student.toml"
    path.write_text(recipe_text("student", shards=shards.folder, cache=cache.where) + MACHINE)
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
    """The folder of a finished run without distillation: only the class head of the same network was trained."""
    run = tmp_path_factory.mktemp("runs") / "alone"
    train(student_recipe('loss.distillation="none"'), run)
    return run


@pytest.fixture(scope="session")
def torchrun() -> Callable[..., str]:
    """Run two processes of a script, check that they exit with status 0, and return their standard error."""

    def run(*words: object) -> str:
        launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
        ended = subprocess.run(
            [*map(str, (*launcher, *words))],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stderr

    return run
