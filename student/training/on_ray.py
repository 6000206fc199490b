"""`limbeck train --on ray`: the processes of one training, which Ray Train starts, connects and starts again."""

import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from student.recipe import TrainRecipe
from student.training.loop import train
from student.training.run import lock_run
from teacher_cache.console import log_line
from teacher_cache.distributed.collectives import TIMEOUT
from teacher_cache.distributed.ray_cluster import move_to, require_capacity
from teacher_cache.distributed.ray_logs import Forwarder, Lines, create_lines, follow
from teacher_cache.errors import LimbeckError, RunError
from teacher_cache.storage.atomic import atomic_file

T = TypeVar("T")

MAX_RESTARTS = 3
"""How often all processes begin again, from the last checkpoint, because one died; a node that is taken away by
notice is not counted."""
DRIVER_LOCK_NAME = ".driver"
"""The file by which one driver keeps others out; rank 0, wherever it is, has a claim of its own."""
RAY_FOLDER = "ray"
"""The folder inside a run's where Ray Train keeps its own notes while it is at work."""
ERROR_NAME, STARTED_NAME = "mistake", "begun"
"""The files there: the error that stopped a process; one that the first start makes."""


def train_on_ray(
    recipe: TrainRecipe, folder: Path, *, processes: int = 1, skip_damaged: bool = False
) -> dict[str, float]:
    """As `train`, by so many processes of the Ray cluster that this one has joined; a GPU each, where it has some.

    folder: the run's, which every node must see under the same name. Raises ClusterError where the cluster has
    too little, RunError where processes keep dying.
    """
    resources = require_capacity(
        "machine", recipe.machine.device, recipe.machine.workers, processes, "--processes"
    )
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_run(folder, DRIVER_LOCK_NAME)
    shutil.rmtree(folder / RAY_FOLDER, ignore_errors=True)  # a killed driver's, with which Ray Train would go on
    device = "cuda" if resources.gpus else recipe.machine.device.replace("auto", "cpu")
    machine = recipe.machine.model_copy(update={"device": device})
    lines = create_lines()
    arguments = {
        "lines": lines,
        "folder": str(Path.cwd()),
        "recipe": recipe.model_copy(update={"machine": machine}),
        "run": folder,
        "skip_damaged": skip_damaged,
    }
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=arguments,
        torch_config=TorchConfig(
            backend="cpu:gloo,cuda:nccl" if resources.gpus else "gloo", timeout_s=int(TIMEOUT.total_seconds())
        ),
        scaling_config=ScalingConfig(
            num_workers=processes,
            use_gpu=bool(resources.gpus),
            resources_per_worker={"CPU": resources.cpus} | ({"GPU": resources.gpus} if resources.gpus else {}),
        ),
        run_config=RunConfig(
            name=RAY_FOLDER,
            storage_path=str(folder.absolute()),
            failure_config=FailureConfig(max_failures=MAX_RESTARTS),
        ),
    )
    try:
        result = follow(_in_thread(trainer.fit), lines, sys.stderr).return_value
    except TrainingFailedError as error:
        reason = " ".join(str(error).split())[-300:]
        raise RunError(
            f"run '{folder}' stopped after {MAX_RESTARTS} restarts ({reason}); run it again to go on"
        ) from None
    finally:
        lines.shutdown(force=True)
        shutil.rmtree(folder / RAY_FOLDER, ignore_errors=True)
        if lock:
            lock.release()
    if isinstance(result, LimbeckError):
        raise result
    accuracy: dict[str, float] = result
    return accuracy


def _in_thread(fit: Callable[[], T]) -> "Future[T]":
    """Run it outside the main thread, where Ray Train answers Ctrl-C by ending the process with status 1."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(fit())
        except BaseException as error:  # whatever it is, who waits raises it
            done.set_exception(error)

    Thread(target=run, daemon=True).start()
    return done


def train_worker(arguments: dict[str, Any]) -> dict[str, float] | LimbeckError | None:
    """What each process does. An error that another start would meet again is noted, and ends all of them.

    Raised by one alone it has Ray end the others, who wait for it; all begin again, and return what is noted.
    """
    move_to(arguments["folder"])
    error_file = Path(arguments["run"], RAY_FOLDER, ERROR_NAME)
    if error_file.exists():
        stored: LimbeckError = pickle.loads(error_file.read_bytes())
        return stored
    try:
        with _forwarded(arguments["lines"], error_file.with_name(STARTED_NAME)):
            return train(arguments["recipe"], arguments["run"], arguments["skip_damaged"])
    except LimbeckError as error:
        error_file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(error_file) as temporary:
            temporary.write_bytes(pickle.dumps(error))
        raise
    except SystemExit:  # rank 0 tells of it
        return None


@contextmanager
def _forwarded(lines: Lines, started: Path) -> Iterator[None]:
    """What rank 0 says, the driver says; first of all that this is another start, if it is one."""
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with redirect_stderr(Forwarder(sys.stderr, lines)):
        if started.exists():
            log_line("a process was lost; all begin again at the last checkpoint")
        started.parent.mkdir(parents=True, exist_ok=True)
        started.touch()
        yield
