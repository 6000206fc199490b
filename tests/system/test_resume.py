"""Tests of runs that are killed, damaged, or resumed with another number of processes."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from clean_process import exit_code_of
from facts import assert_facts
from torch import Tensor

from student.bundle.bundle import open_raw_and_ema
from student.data.batch import Batch
from student.evaluation.predict import measure
from student.recipe import TrainRecipe
from student.training.checkpoint import checkpoint_path, checkpoint_steps, load_checkpoint
from student.training.learner import Learner
from student.training.loop import train
from teacher_cache.config import digest_of
from teacher_cache.data.index import ShardIndex
from teacher_cache.errors import RunError
from teacher_cache.models.run_folder import FINAL, FINAL_EMA
from teacher_cache.models.weights import load_network
from teacher_cache.rng import generator
from teacher_cache.storage.jsonl import Journal

Recipes = Callable[..., TrainRecipe]
TIMES = ("seconds", "images_per_second", "waiting")
APART = 2e-4
"""Largest difference of weights after ten steps of AdamW at 3e-3 with sums in another order."""


def state_of(run: Path) -> Any:
    """The contents of the run's last checkpoint and of its journal, without the times."""
    recipe = digest_of(json.loads((run / "recipe.json").read_text()))
    found = load_checkpoint(run, recipe)
    assert found is not None
    journal = Journal(run / "journal.jsonl").read()
    assert journal[: len(found.journal)] == found.journal
    lines = [{name: value for name, value in line.items() if name not in TIMES} for line in journal]
    return [found.step, found.learner, lines]


def same(mine: Any, theirs: Any) -> bool:
    """Whether two nested values are equal, tensors bit for bit."""
    if isinstance(mine, Tensor):
        return mine.dtype == theirs.dtype and torch.equal(mine, theirs)
    if isinstance(mine, dict):
        return mine.keys() == theirs.keys() and all(same(mine[key], theirs[key]) for key in mine)
    if isinstance(mine, list | tuple):
        return len(mine) == len(theirs) and all(map(same, mine, theirs))
    return bool(mine == theirs)


def weights(run: Path, name: str = FINAL) -> dict[str, Tensor]:
    return load_network(run / name)[1].state_dict()


def distance(mine: Path, theirs: Path) -> float:
    """The largest difference between two runs' final weights."""
    a, b = weights(mine), weights(theirs)
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in Journal(run / "journal.jsonl").read()]


def train_until_killed(recipe: TrainRecipe, run: Path, steps: int) -> None:
    """Train a number of steps, then exit by SIGKILL, without any cleanup."""
    learn, left = Learner.learn, iter(range(steps, 0, -1))

    def learn_or_exit(self: Learner, batch: Batch, step: int) -> Tensor:
        result = learn(self, batch, step)
        if next(left) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    with patch.object(Learner, "learn", learn_or_exit):
        train(recipe, run)


def train_until_killed_in_evaluation(recipe: TrainRecipe, run: Path, number: int) -> None:
    left = iter(range(number, 0, -1))

    def measure_or_exit(*arguments: Any) -> Any:
        if next(left) == 1:
            while checkpoint_steps(run)[-1:] != [5 * number]:  # a thread writes it
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return measure(*arguments)

    with patch("student.training.loop.measure", measure_or_exit):
        train(recipe, run)


def test_a_run_killed_at_any_step_ends_with_exactly_the_state_of_a_whole_one(
    student_recipe: Recipes, tmp_path: Path
) -> None:
    """Compares weights, moving average, optimizer and journal bit for bit, with dropout and stochastic depth."""
    recipe = student_recipe(
        "schedule.epochs=3", "train.ema=0.9", "machine.checkpoint_every=2", "model.args.drop_rate=0.1"
    )
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    done = 0
    for steps in generator("kills", "of this test").integers(1, 7, 3).tolist():
        assert exit_code_of(train_until_killed, recipe, killed, steps) == -signal.SIGKILL
        done += steps
    assert not (killed / FINAL).exists() and 0 < checkpoint_steps(killed)[-1] <= done < 15
    train(recipe, killed)
    train(recipe, whole)
    assert same(state_of(killed), state_of(whole))
    assert [line["epoch"] for line in state_of(whole)[2]] == [1, 2, 3]
    for name in (FINAL, FINAL_EMA):
        assert same(weights(killed, name), weights(whole, name))


def test_a_kill_costs_no_more_than_the_steps_since_the_last_checkpoint(
    student_recipe: Recipes, tmp_path: Path
) -> None:
    recipe = student_recipe("machine.checkpoint_every=3")
    assert exit_code_of(train_until_killed, recipe, tmp_path, 9) == -signal.SIGKILL
    assert checkpoint_steps(tmp_path) == [5, 6]  # saved every third step and at the end of an epoch; two are kept


@pytest.mark.parametrize(("number", "left"), [(1, 5), (2, 0)])
def test_a_run_killed_during_an_evaluation_resumes_there_and_repeats_no_step(
    student_recipe: Recipes, student_run: Path, tmp_path: Path, number: int, left: int
) -> None:
    run = tmp_path / "run"
    assert exit_code_of(train_until_killed_in_evaluation, student_recipe(), run, number) == -signal.SIGKILL
    assert len(losses(run)) == number - 1 and checkpoint_steps(run)[-1] == 5 * number
    with patch.object(Learner, "learn", autospec=True, side_effect=Learner.learn) as learn:
        train(student_recipe(), run)
    assert learn.call_count == left
    assert same(state_of(run), state_of(student_run)) and same(weights(run), weights(student_run))
    assert checkpoint_steps(run) == checkpoint_steps(student_run)


def test_a_damaged_checkpoint_is_reported_and_the_previous_one_used_if_requested(
    student_recipe: Recipes, student_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(student_run, tmp_path / "run"))
    shutil.rmtree(run / FINAL)
    path = checkpoint_path(run, 10)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RunError) as raised:
        train(student_recipe(), run)
    assert_facts(raised.value, path, "--skip-damaged", "step 5")
    train(student_recipe(), run, skip_damaged=True)
    assert same(state_of(run), state_of(student_run))
    assert same(weights(run), weights(student_run))


def test_the_best_checkpoint_is_kept_besides_the_last_few(student_recipe: Recipes, tmp_path: Path) -> None:
    train(student_recipe("schedule.epochs=4", "machine.keep=1"), tmp_path)
    tops = [line["accuracy"]["joint"] for line in Journal(tmp_path / "journal.jsonl").read()]
    assert checkpoint_steps(tmp_path) == sorted({5 * (1 + tops.index(max(tops))), 20})


TWO = """
import sys
from pathlib import Path
import torch
from student.recipe import TrainRecipe
from student.training.learner import Learner
from student.training.loop import train
from teacher_cache.errors import LimbeckError
from teacher_cache.config import load_recipe
from teacher_cache.distributed.collectives import process_group

CHANGES = {
    "alone": ["loss.distillation=none"],
    "unshared": ["train.streams=1"],
    "diverged": ["optim.lr=1e36", "optim.clip_grad=0.0", "schedule.warmup_epochs=0"],
    "convnet": [
        "loss.distillation=none", "model.name=resnet10t", "model.args={stem_type='',channels=[8,8,16,16]}",
        "train.ema=0.5", "eval.size=40", "train.batch=16",
    ],
}

networks = Learner.networks


def networks_of_other_statistics(learner):
    with torch.no_grad():
        for buffer in learner.student.network.buffers():
            buffer.mul_(1 + rank)
    return networks(learner)


recipe, *runs = sys.argv[1:]
Learner.networks = networks_of_other_statistics
with process_group() as world:
    rank = world.rank
    for run in runs:
        try:
            train(load_recipe(recipe, TrainRecipe, CHANGES.get(Path(run).name, [])), Path(run))
        except LimbeckError as error:
            print("limbeck:", error, file=sys.stderr)
        except SystemExit as end:
            assert end.code == 2
"""


@pytest.fixture(scope="module")
def by_two(
    recipe_file: Path,
    student_run: Path,
    torchrun: Callable[..., str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Runs of two processes, started by torchrun and connected by gloo.

    `whole`; `half`, which one process started; `alone`, without distillation; `convnet`, with BatchNorm and a
    moving average; `unshared`, whose streams two processes cannot share, and `diverged`. The file `stderr.txt` has
    their standard error.
    """
    folder = tmp_path_factory.mktemp("two")
    (folder / "two.py").write_text(TWO)
    copy_after_first_epoch(student_run, folder / "half")
    runs = [folder / name for name in ("whole", "half", "alone", "convnet", "unshared", "diverged")]
    (folder / "stderr.txt").write_text(torchrun(folder / "two.py", recipe_file, *runs))
    return folder


def copy_after_first_epoch(run: Path, copy: Path) -> Path:
    """Copy a finished run in its state after the first epoch."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / FINAL)
    checkpoint_path(copy, 10).unlink()
    return copy


def test_two_processes_learn_the_same_as_one(student_run: Path, alone_run: Path, by_two: Path) -> None:
    for run, theirs in (("whole", student_run), ("alone", alone_run)):
        assert losses(by_two / run) == pytest.approx(losses(theirs), rel=1e-5)
        assert distance(by_two / run, theirs) < APART
        assert checkpoint_steps(by_two / run) == checkpoint_steps(theirs) == [5, 10]


@pytest.mark.parametrize("run", ["whole", "convnet"])
def test_two_processes_measure_the_same_accuracy_as_one(
    by_two: Path, student_recipe: Recipes, shards: ShardIndex, run: str
) -> None:
    """The processes' BatchNorm statistics differ widely before each evaluation."""
    changes = ("eval.size=40", 'loss.distillation="none"') if run == "convnet" else ()
    bundles = open_raw_and_ema(by_two / run, torch.device("cpu"))
    networks = {name: bundle.student for name, bundle in bundles.items()}
    scores = measure(networks, shards, student_recipe(*changes), batch=7, workers=0)
    line = Journal(by_two / run / "journal.jsonl").read()[-1]
    assert (line["accuracy"], line["accuracy_ema"]) == (scores["raw"], scores.get("ema", {}))
    assert ("ema" in scores) == (run == "convnet")


def test_only_one_of_two_processes_writes_and_logs(by_two: Path) -> None:
    lines = (by_two / "stderr.txt").read_text().splitlines()
    for run in ("whole", "half", "alone"):
        accuracy = [line for line in lines if f"'{by_two / run}'" in line and " %" in line]
        assert len(accuracy) == 1, "the run's last line"
    assert [line["epoch"] for line in Journal(by_two / "whole" / "journal.jsonl").read()] == [1, 2]


def test_a_run_started_by_one_process_resumes_with_two(student_run: Path, by_two: Path) -> None:
    half = by_two / "half"
    assert losses(half) == pytest.approx(losses(student_run), rel=1e-5)
    assert losses(half)[0] == losses(student_run)[0]
    assert distance(half, student_run) < APART


def test_a_run_started_by_two_processes_resumes_with_one(
    student_recipe: Recipes, student_run: Path, by_two: Path, tmp_path: Path
) -> None:
    run = copy_after_first_epoch(by_two / "whole", tmp_path / "run")
    train(student_recipe(), run)
    assert losses(run) == pytest.approx(losses(student_run), rel=1e-5)
    assert distance(run, student_run) < APART


def test_processes_that_cannot_share_the_streams_are_refused_in_one_line(by_two: Path) -> None:
    errors = [line for line in (by_two / "stderr.txt").read_text().splitlines() if line.startswith("limbeck:")]
    assert_facts(errors[0], "2 processes", "1 stream", "train.streams")
    assert not (by_two / "unshared").exists()


def test_two_processes_end_together_at_a_nan_loss_and_one_reports_it(by_two: Path) -> None:
    errors = [line for line in (by_two / "stderr.txt").read_text().splitlines() if line.startswith("limbeck:")]
    assert len(errors) == 2
    assert_facts(errors[1], by_two / "diverged", "step 2", "optim.lr")
    assert not checkpoint_steps(by_two / "diverged")


def test_a_resumed_run_reports_each_changed_key(student_recipe: Recipes, student_run: Path) -> None:
    changed = student_recipe("train.accumulate=2", "train.ema=0.5", 'train.targets="live"')
    with pytest.raises(RunError) as raised:
        train(changed, student_run)
    assert_facts(
        raised.value, "train.accumulate", 1, 2, "train.ema", 0.0, 0.5, "train.targets", "'cached'", "'live'"
    )
