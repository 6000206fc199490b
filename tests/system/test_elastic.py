"""Tests that a killed process makes all restart from the last checkpoint, with the same result."""

import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Queue
from typing import Any
from unittest.mock import patch

import psutil
import pytest
import torch
from facts import assert_facts
from locked_run import held_by_another
from wait import until

from student import cli
from student.recipe import TrainRecipe
from student.training.checkpoint import checkpoint_steps
from teacher_cache.distributed.collectives import TIMEOUT
from teacher_cache.distributed.ray_cluster import ray_session
from teacher_cache.errors import CacheError, ClusterError, RunLockedError, ShardError
from teacher_cache.models.run_folder import FINAL
from teacher_cache.models.weights import load_network
from teacher_cache.storage.jsonl import Journal

LONG = "schedule.epochs=4"
EVERY_TWO = "machine.checkpoint_every=2"

HEARS_CTRL_C = """
import signal
from server.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell start with SIGINT ignored
main()
"""

KILLED = """
import os, signal, sys
from pathlib import Path
from student.training.learner import Learner
from student.recipe import TrainRecipe
from student.training.loop import train
from teacher_cache.config import load_recipe
from teacher_cache.distributed.collectives import process_group

recipe, whole, killed = sys.argv[1:]
first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
learn = Learner.learn

def learn_or_exit(self, batch, step):
    result = learn(self, batch, step)
    if step == 12 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return result

with process_group():
    if first:
        train(load_recipe(recipe, TrainRecipe, ["schedule.epochs=4"]), Path(whole))
        Learner.learn = learn_or_exit
    train(load_recipe(recipe, TrainRecipe, ["schedule.epochs=4", "machine.checkpoint_every=2"]), Path(killed))
"""


@pytest.fixture(scope="module")
def by_torchrun(recipe_file: Path, torchrun: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two processes: `whole`, and `killed`, whose rank 1 was killed after step 13 of 20."""
    folder = tmp_path_factory.mktemp("torchrun")
    (folder / "killed.py").write_text(KILLED)
    words = ["--max-restarts", "1", folder / "killed.py", recipe_file, folder / "whole", folder / "killed"]
    (folder / "stderr.txt").write_text(torchrun(*words))
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_network(run / FINAL)[1].state_dict()


def assert_same_end(run: Path, whole: Path) -> None:
    """Compare the weights bit for bit, and the journals without their times."""
    mine, theirs = weights(run), weights(whole)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in theirs)
    ours, others = (Journal(one / "journal.jsonl").read() for one in (run, whole))
    for name in ("epoch", "step", "loss", "lr", "accuracy"):
        assert [line[name] for line in ours] == [line[name] for line in others]
    assert checkpoint_steps(run)[-1] == checkpoint_steps(whole)[-1] == 20


def test_a_killed_rank_restarted_by_torchrun_changes_nothing(by_torchrun: Path) -> None:
    lines = (by_torchrun / "stderr.txt").read_text().splitlines()
    killed = str(by_torchrun / "killed")
    assert sum(killed in line and bool(re.search(r"\bstep 12\b", line)) for line in lines) == 1
    assert_same_end(by_torchrun / "killed", by_torchrun / "whole")


def test_two_processes_on_ray_with_one_killed_end_like_torchrun(
    by_torchrun: Path,
    ray_cluster: Any,
    student_recipe: Callable[..., TrainRecipe],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The driver prints each line of rank 0 once, in order, and a line about the restart."""
    from student.training.on_ray import RAY_FOLDER, train_on_ray

    run, killed = tmp_path / "run", []

    def kill_one() -> None:
        while not checkpoint_steps(run):
            time.sleep(0.001)
        killed.append(trainers()[1])
        killed[0].kill()

    killer = threading.Thread(target=kill_one, daemon=True)
    with ray_session(ray_cluster.address):
        killer.start()
        accuracy = train_on_ray(student_recipe(LONG, EVERY_TWO), run, processes=2)
        killer.join(1)
    assert killed and accuracy == Journal(run / "journal.jsonl").read()[-1]["accuracy"]
    assert_same_end(run, by_torchrun / "whole")
    assert not (run / RAY_FOLDER).exists()
    lines = capsys.readouterr().err.splitlines()
    resumed = [number for number, line in enumerate(lines) if str(run) in line and re.search(r"\bstep \d", line)]
    assert len(resumed) == 1
    for epoch in range(1, 5):
        times = sum(line.startswith(f"epoch {epoch}/4: ") for line in lines)
        assert times in (1, 2)  # 2 if its process was killed before the checkpoint
    assert str(run) in lines[-1] and "%" in lines[-1]
    assert not [line for line in lines if "pid=" in line or "Ray Train" in line or "[FailurePolicy]" in line]


def trainers() -> list[psutil.Process]:
    """The training processes of this test's cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::RayTrainWorker"):
                found.append(process)
    return found


def test_ctrl_c_interrupts_a_training_on_ray_like_any_other_command(
    ray_cluster: Any, recipe_file: Path, tmp_path: Path
) -> None:
    """The output has the lines of the training, and none of Ray's."""
    words = ["train", recipe_file, "--set", "schedule.epochs=10000", "--set", EVERY_TWO, "--out", tmp_path / "run"]
    command = [sys.executable, "-c", HEARS_CTRL_C, *words, "--on", f"ray={ray_cluster.address}"]
    with subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, encoding="utf-8") as driver:
        until(lambda: checkpoint_steps(tmp_path / "run") or driver.poll() is not None)
        driver.send_signal(signal.SIGINT)
        said = driver.communicate(timeout=60)[1]
    assert driver.returncode == 130, said
    first, second, *_, last = said.splitlines()
    assert ray_cluster.address in first and last.startswith("limbeck: ") and " pid=" not in said
    assert re.search(r"\b4\b.*\b10,?000\b", second), "the cache's seeds for the recipe's epochs"
    until(lambda: not trainers())


def test_errors_of_a_training_on_ray_are_one_line(
    ray_cluster: Any, student_recipe: Callable[..., TrainRecipe], tmp_path: Path
) -> None:
    from student.training.on_ray import DRIVER_LOCK_NAME, train_on_ray, train_worker

    with ray_session(ray_cluster.address), pytest.raises(ClusterError) as raised:
        train_on_ray(student_recipe(), tmp_path, processes=4)
    assert_facts(raised.value, 4, "1 CPU")
    assert re.search(r"--processes\D+2\b", str(raised.value)) and "\n" not in str(raised.value)
    with (
        ray_session(ray_cluster.address),
        held_by_another(tmp_path / DRIVER_LOCK_NAME),
        patch("student.training.run.LOCK_WAIT_SECONDS", 0.1),
        pytest.raises(RunLockedError, match=str(tmp_path)),
    ):
        train_on_ray(student_recipe(), tmp_path)
    recipe = student_recipe("cache.path=elsewhere")
    words = {"folder": str(Path.cwd()), "recipe": recipe, "run": tmp_path, "skip_damaged": False, "lines": Queue()}
    with pytest.raises(CacheError) as first:
        train_worker(words)
    assert str(train_worker(words)) == str(first.value)  # an error that a restart cannot fix is returned


def test_an_error_in_one_process_on_ray_ends_the_others(
    ray_cluster: Any, student_recipe: Callable[..., TrainRecipe], shards: Any, tmp_path: Path
) -> None:
    """Only the first process evaluates, and a shard of the validation set is missing."""
    from student.training.on_ray import train_on_ray

    validation = Path(shutil.copytree(shards.folder, tmp_path / "val"))
    (validation / "000001.tar").unlink()
    recipe = student_recipe(f'data.val="{validation}"', "schedule.epochs=1", "schedule.warmup_epochs=0")
    began = time.monotonic()
    with ray_session(ray_cluster.address), pytest.raises(ShardError, match=r"000001\.tar"):
        train_on_ray(recipe, tmp_path / "run", processes=2)
    assert time.monotonic() - began < TIMEOUT.total_seconds() / 10


def test_processes_without_ray_are_refused(recipe_file: Path) -> None:
    with pytest.raises(ClusterError) as raised:
        cli.train(recipe_file, processes=2)
    assert_facts(raised.value, "--processes", "--on ray", "torchrun")
