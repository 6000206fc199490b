"""Tests that too little memory gives one line with what to change, and that the advice is valid."""

import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from clean_process import exit_code_of
from facts import assert_facts

import student.evaluation.predict
import student.training.loop
from student.recipe import TrainRecipe
from student.training.loop import train
from student.training.out_of_memory import oom_message
from teacher_cache.data.index import ShardIndex
from teacher_cache.errors import RunError

Recipes = Callable[..., TrainRecipe]
CPU = torch.device("cpu")


def train_in_little_memory(recipe: TrainRecipe, run: Path, message: Path) -> None:
    used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
    try:
        train(recipe, run)
    except RunError as error:
        message.write_text(str(error), encoding="utf-8")


def test_too_little_memory_gives_one_line_with_what_to_change(student_recipe: Recipes, tmp_path: Path) -> None:
    recipe = student_recipe(
        "model.args={img_size=32,patch_size=2,embed_dim=192,depth=12,num_heads=3}",
        "train.batch=40",
        "train.accumulate=2",
    )
    assert exit_code_of(train_in_little_memory, recipe, tmp_path / "run", tmp_path / "message") == 0
    message = (tmp_path / "message").read_text()
    assert_facts(message, "cpu", 20, "train.batch", 40, "train.accumulate", 2, "machine.dtype", "bfloat16")
    assert largest_accumulate(message) == 4 and "\n" not in message


def largest_accumulate(message: str) -> int:
    """The largest train.accumulate in a message: the advised value, or else the recipe's own."""
    return max(map(int, re.findall(r"train\.accumulate\D+\b(\d+)", message)))


@pytest.mark.parametrize(
    ("batch", "accumulate", "processes", "advice"),
    [
        (1024, 1, 1, 2),
        (2040, 8, 1, 10),
        (504, 4, 2, 6),
        (30, 15, 1, 30),
        (30, 15, 2, 15),  # none larger divides the batch
    ],
)
def test_the_advised_accumulate_divides_the_batch(
    student_recipe: Recipes, batch: int, accumulate: int, processes: int, advice: int
) -> None:
    recipe = student_recipe(f"train.batch={batch}", f"train.accumulate={accumulate}")
    message = oom_message(CPU, recipe.train, recipe.machine, processes)
    assert largest_accumulate(message) == advice and "\n" not in message
    assert_facts(message, "train.batch", batch, "machine.dtype", "bfloat16")
    fast = recipe.machine.model_copy(update={"dtype": "bfloat16"})
    assert "bfloat16" not in oom_message(CPU, recipe.train, fast, processes)


def full(*_: object) -> NoReturn:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


def test_a_run_evaluates_as_many_images_at_once_as_it_trains_views(
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
    with pytest.raises(RunError) as raised:
        train(student_recipe(*changes), tmp_path / "other")
    assert_facts(raised.value, "cpu", "train.accumulate", "eval.size")
    assert re.search(r"\b2\b", str(raised.value)), "the images at once"


@pytest.mark.parametrize("command", [("evaluate",), ("report",), ("study", "resolution")])
def test_too_many_images_for_the_memory_give_one_line_with_the_option(
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
    assert_facts(raised.value, "cpu", 12, "--batch")
