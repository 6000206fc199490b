"""`limbeck train --on ray`: Ray Train starts, connects and restarts the training processes."""

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
from teacher_cache.distributed.ray_cluster import change_folder, require_capacity
from teacher_cache.distributed.ray_logs import Forwarder, LineQueue, create_line_queue, follow
from teacher_cache.errors import LimbeckError, LoaderLostError, RunError
from teacher_cache.storage.atomic import atomic_file

T = TypeVar("T")

MAX_RESTARTS = 3
"""Restarts of all processes, from the last checkpoint, after one died. A node that was preempted with notice does
not count."""
DRIVER_LOCK_NAME = ".driver"
"""The file that the driver locks against other drivers. Rank 0 locks the run itself, on its node."""
RAY_FOLDER = "ray"
"""The folder inside a run for Ray Train's own files. It is removed at the end."""
ERROR_NAME, STARTED_NAME = "error", "started"
"""Files in that folder: the pickled error that stopped a process; an empty file that the first start creates."""


def train_on_ray(
    recipe: TrainRecipe, folder: Path, *, processes: int = 1, skip_damaged: bool = False
) -> dict[str, float]:
    """Train like `train`, with N processes of the Ray cluster of this session, with a GPU each if it has GPUs.

    folder: the run's folder, with the same path on every node. Raises ClusterError if the cluster has too few CPUs
    or GPUs, RunError after MAX_RESTARTS restarts.
    """
    resources = require_capacity(
        "machine", recipe.machine.device, recipe.machine.workers, processes, "--processes"
    )
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_run(folder, DRIVER_LOCK_NAME)
    shutil.rmtree(folder / RAY_FOLDER, ignore_errors=True)  # from a killed driver; Ray Train would resume it
    device = "cuda" if resources.gpus else recipe.machine.device.replace("auto", "cpu")
    machine = recipe.machine.model_copy(update={"device": device, "workers": resources.workers})
    lines = create_line_queue()
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
            f"run '{folder}' stopped after {MAX_RESTARTS} restarts ({reason}); rerun the command to resume"
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
    """Run `fit` in a thread. In the main thread, Ray Train would handle Ctrl-C and exit with status 1."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(fit())
        except BaseException as error:  # raised again by the caller of result()
            done.set_exception(error)

    Thread(target=run, daemon=True).start()
    return done


def train_worker(arguments: dict[str, Any]) -> dict[str, float] | LimbeckError | None:
    """Run one training process. A LimbeckError is stored in a file, as a restart would fail with the same error.

    After it is raised, Ray stops the other processes and restarts all. They then return the stored error, which
    ends the training.
    """
    change_folder(arguments["folder"])
    error_file = Path(arguments["run"], RAY_FOLDER, ERROR_NAME)
    if error_file.exists():
        stored: LimbeckError = pickle.loads(error_file.read_bytes())
        return stored
    try:
        with _forwarded(arguments["lines"], error_file.with_name(STARTED_NAME)):
            return train(arguments["recipe"], arguments["run"], arguments["skip_damaged"])
    except LoaderLostError:  # memory may have run out on this node only
        raise
    except LimbeckError as error:
        error_file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(error_file) as temporary:
            temporary.write_bytes(pickle.dumps(error))
        raise
    except SystemExit:  # the error is reported by rank 0
        return None


@contextmanager
def _forwarded(lines: LineQueue, started: Path) -> Iterator[None]:
    """Forward rank 0's standard error to the driver, and log if this is a restart."""
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with redirect_stderr(Forwarder(sys.stderr, lines)):
        if started.exists():
            log_line("a process was lost; all processes restart from the last checkpoint")
        started.parent.mkdir(parents=True, exist_ok=True)
        started.touch()
        yield
