"""Memory that does not suffice is one line with what to lower, and what it says to set is not refused."""

import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from student.memory import too_many_views
from student.recipe import TrainRecipe
from student.train import train
from teacher_cache.errors import RunError

Recipes = Callable[..., TrainRecipe]
Forked = Callable[..., int]
CPU = torch.device("cpu")


def train_in_little_memory(recipe: TrainRecipe, run: Path, told: Path) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
    try:
        train(recipe, run)
    except RunError as error:
        told.write_text(str(error))


def test_too_little_memory_is_one_line_that_says_what_to_lower(
    student_recipe: Recipes, forked: Forked, tmp_path: Path
) -> None:
    recipe = student_recipe(
        "model.args={img_size=32,patch_size=2,embed_dim=192,depth=12,num_heads=3}",
        "train.batch=40",
        "train.accumulate=2",
    )
    assert forked(train_in_little_memory, recipe, tmp_path / "run", tmp_path / "told") == 0
    assert (tmp_path / "told").read_text() == (
        "cpu has too little memory for 20 views at once (train.batch = 40, train.accumulate = 2); "
        'set train.accumulate = 4, which leaves the step as it is, or machine.dtype = "bfloat16"'
    )


@pytest.mark.parametrize(
    ("batch", "accumulate", "processes", "advice"),
    [
        (1024, 1, 1, "set train.accumulate = 2, which"),
        (2040, 8, 1, "set train.accumulate = 10, which"),
        (504, 4, 2, "set train.accumulate = 6, which"),
        (30, 15, 1, "set train.accumulate = 30, which"),
        (30, 15, 2, "take a smaller train.batch, network or view size"),
    ],
)
def test_what_is_advised_divides_the_batch(
    student_recipe: Recipes, batch: int, accumulate: int, processes: int, advice: str
) -> None:
    recipe = student_recipe(f"train.batch={batch}", f"train.accumulate={accumulate}")
    told = too_many_views(CPU, recipe.train, recipe.machine, processes)
    assert f"; {advice}" in told and told.endswith(', or machine.dtype = "bfloat16"') and "\n" not in told
    fast = recipe.machine.model_copy(update={"dtype": "bfloat16"})
    assert "bfloat16" not in too_many_views(CPU, recipe.train, fast, processes)
