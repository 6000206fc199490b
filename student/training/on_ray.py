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
from teacher_cache.distributed.ray_cluster import change_folder, require_capacity
from teacher_cache.distributed.ray_logs import Forwarder, LineQueue, create_line_queue, follow
from teacher_cache.errors import LimbeckError, RunError
from teacher_cache.storage.atomic import atomic_file

T = TypeVar("T")

RESTARTS = 3
"""How often all processes begin again, from the last checkpoint, because one died; a node that is taken away by
notice is not counted."""
DRIVER = ".driver"
"""The file by which one driver keeps others out; rank 0, wherever it is, has a claim of its own."""
NOTES = "ray"
"""The folder inside a run's where Ray Train keeps its own notes while it is at work."""
MISTAKE, BEGUN = "mistake", "begun"
"""The files there: the error that stopped a process; one that the first start makes."""


def train_on_ray(
    recipe: TrainRecipe, folder: Path, *, processes: int = 1, skip_damaged: bool = False
) -> dict[str, float]:
    """As `train`, by so many processes of the Ray cluster that this one has joined; a GPU each, where it has some.

    folder: the run's, which every node must see under the same name. Raises ClusterError where the cluster has
    too little, RunError where processes keep dying.
    """
    need = require_capacity("machine", recipe.machine.device, recipe.machine.workers, processes, "--processes")
    folder.mkdir(parents=True, exist_ok=True)
    held = lock_run(folder, DRIVER)
    shutil.rmtree(folder / NOTES, ignore_errors=True)  # a killed driver's, with which Ray Train would go on
    device = "cuda" if need.gpus else recipe.machine.device.replace("auto", "cpu")
    machine = recipe.machine.model_copy(update={"device": device})
    lines = create_line_queue()
    words = {
        "lines": lines,
        "folder": str(Path.cwd()),
        "recipe": recipe.model_copy(update={"machine": machine}),
        "run": folder,
        "skip_damaged": skip_damaged,
    }
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=words,
        torch_config=TorchConfig(
            backend="cpu:gloo,cuda:nccl" if need.gpus else "gloo", timeout_s=int(TIMEOUT.total_seconds())
        ),
        scaling_config=ScalingConfig(
            num_workers=processes,
            use_gpu=bool(need.gpus),
            resources_per_worker={"CPU": need.cpus} | ({"GPU": need.gpus} if need.gpus else {}),
        ),
        run_config=RunConfig(
            name=NOTES,
            storage_path=str(folder.absolute()),
            failure_config=FailureConfig(max_failures=RESTARTS),
        ),
    )
    try:
        told = follow(_in_thread(trainer.fit), lines, sys.stderr).return_value
    except TrainingFailedError as error:
        reason = " ".join(str(error).split())[-300:]
        raise RunError(
            f"run '{folder}' stopped after {RESTARTS} restarts ({reason}); run it again to go on"
        ) from None
    finally:
        lines.shutdown(force=True)
        shutil.rmtree(folder / NOTES, ignore_errors=True)
        if held:
            held.release()
    if isinstance(told, LimbeckError):
        raise told
    accuracy: dict[str, float] = told
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


def train_worker(words: dict[str, Any]) -> dict[str, float] | LimbeckError | None:
    """What each process does. An error that another start would meet again is noted, and ends all of them.

    Raised by one alone it has Ray end the others, who wait for it; all begin again, and return what is noted.
    """
    change_folder(words["folder"])
    note = Path(words["run"], NOTES, MISTAKE)
    if note.exists():
        noted: LimbeckError = pickle.loads(note.read_bytes())
        return noted
    try:
        with _forwarded(words["lines"], note.with_name(BEGUN)):
            return train(words["recipe"], words["run"], words["skip_damaged"])
    except LimbeckError as error:
        note.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(note) as temporary:
            temporary.write_bytes(pickle.dumps(error))
        raise
    except SystemExit:  # rank 0 tells of it
        return None


@contextmanager
def _forwarded(lines: LineQueue, begun: Path) -> Iterator[None]:
    """What rank 0 says, the driver says; first of all that this is another start, if it is one."""
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with redirect_stderr(Forwarder(sys.stderr, lines)):
        if begun.exists():
            log_line("a process was lost; all begin again at the last checkpoint")
        begun.parent.mkdir(parents=True, exist_ok=True)
        begun.touch()
        yield
