"""Memory that does not suffice is one line with what to lower, and what it says to set is not refused."""

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from clean_process import exit_code_of

import student.evaluation.predict
import student.training.loop
from student.recipe import TrainRecipe
from student.training.loop import train
from student.training.out_of_memory import oom_message
from teacher_cache.data.index import ShardIndex
from teacher_cache.errors import RunError

Recipes = Callable[..., TrainRecipe]
CPU = torch.device("cpu")


def train_in_little_memory(recipe: TrainRecipe, run: Path, told: Path) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
    try:
        train(recipe, run)
    except RunError as error:
        told.write_text(str(error))


def test_too_little_memory_is_one_line_that_says_what_to_lower(student_recipe: Recipes, tmp_path: Path) -> None:
    recipe = student_recipe(
        "model.args={img_size=32,patch_size=2,embed_dim=192,depth=12,num_heads=3}",
        "train.batch=40",
        "train.accumulate=2",
    )
    assert exit_code_of(train_in_little_memory, recipe, tmp_path / "run", tmp_path / "told") == 0
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
    told = oom_message(CPU, recipe.train, recipe.machine, processes)
    assert f"; {advice}" in told and told.endswith(', or machine.dtype = "bfloat16"') and "\n" not in told
    fast = recipe.machine.model_copy(update={"dtype": "bfloat16"})
    assert "bfloat16" not in oom_message(CPU, recipe.train, fast, processes)


def full(*_: object) -> NoReturn:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


def test_a_run_is_evaluated_by_no_more_images_than_it_computes_views_at_once(
    student_recipe: Recipes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[int] = []

    def watched(*arguments: Any) -> Any:
        seen.append(arguments[2])
        return show(*arguments)

    show = student.evaluation.predict.eval_batches
    monkeypatch.setattr(student.evaluation.predict, "eval_batches", watched)
    changes = ("train.accumulate=4", "schedule.epochs=1", "schedule.warmup_epochs=0")
    train(student_recipe(*changes), tmp_path / "run")
    assert seen == [2]
    monkeypatch.setattr(student.training.loop, "measure", full)
    with pytest.raises(
        RunError, match=r"^cpu has too little memory to evaluate 2 images at once; free some of it"
    ):
        train(student_recipe(*changes), tmp_path / "other")


@pytest.mark.parametrize("command", [("evaluate",), ("report",), ("study", "resolution")])
def test_too_many_images_for_the_memory_are_one_line_that_names_the_option(
    limbeck: Callable[..., str],
    student_run: Path,
    shards: ShardIndex,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: tuple[str, ...],
) -> None:
    sets = (shards.folder,) if command == ("evaluate",) else ("--out", tmp_path / "out")
    monkeypatch.setattr(student.evaluation.predict, "eval_batches", full)
    with pytest.raises(RunError) as raised:
        limbeck(*command, student_run, *sets, "--device", "cpu", "--batch", 12)
    assert str(raised.value) == "cpu has too little memory to evaluate 12 images at once; lower --batch"
