"""Tests of the thread that writes checkpoints: what it writes is the state at the call, and errors surface."""

import threading
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from student.recipe import TrainRecipe
from student.training import checkpoint_writer
from student.training.checkpoint import Checkpoint, checkpoint_steps, load_checkpoint, save_checkpoint
from student.training.checkpoint_writer import CheckpointWriter
from student.training.loop import train


def checkpoint_of(step: int, weight: torch.Tensor) -> Checkpoint:
    return Checkpoint("recipe", step, {"network": {"weight": weight}, "groups": [{"lr": 0.1}]}, {}, [])


def test_the_state_of_the_call_is_written_even_if_the_weights_change_meanwhile(tmp_path: Path) -> None:
    weight, go_on = torch.ones(3), threading.Event()

    def slow_save(run: Path, checkpoint: Checkpoint, keep: int, best: int | None) -> None:
        assert go_on.wait(10)
        save_checkpoint(run, checkpoint, keep, best)

    writer = CheckpointWriter(tmp_path, keep=1)
    with patch.object(checkpoint_writer, "save_checkpoint", slow_save):
        writer.save(checkpoint_of(1, weight), None)
        weight += 1
        assert checkpoint_steps(tmp_path) == []
        go_on.set()
        writer.wait()
    loaded = load_checkpoint(tmp_path, "recipe")
    assert loaded and loaded.learner["network"]["weight"].tolist() == [1, 1, 1]
    assert loaded.learner["groups"] == [{"lr": 0.1}]


def test_an_error_of_the_thread_is_raised_by_the_next_call(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep=1)
    (tmp_path / "checkpoints").write_text("a file in place of the folder", encoding="utf-8")
    writer.save(checkpoint_of(1, torch.ones(1)), None)
    with pytest.raises(FileExistsError):
        writer.save(checkpoint_of(2, torch.ones(1)), None)


def test_an_evaluated_epoch_writes_one_checkpoint(
    student_recipe: Callable[..., TrainRecipe], tmp_path: Path
) -> None:
    with patch.object(checkpoint_writer, "save_checkpoint", side_effect=save_checkpoint) as save:
        train(student_recipe("schedule.epochs=2"), tmp_path)
    assert [call.args[1].step for call in save.call_args_list] == [5, 10]
