"""Write checkpoints in a thread, from a copy of the state, while training goes on."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from student.training.checkpoint import Checkpoint, save_checkpoint
from teacher_cache.distributed.device import HostCopy


class CheckpointWriter:
    """Writes the checkpoints of one run, one at a time and in order."""

    def __init__(self, run: Path, keep: int) -> None:
        self._run, self._keep = run, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, checkpoint: Checkpoint, best: int | None) -> None:
        """Copy the state to host memory and write it in the thread. best: as in `save_checkpoint`.

        Waits for the previous checkpoint, so that at most one copy is in memory. Raises its error.
        """
        self.wait()
        copied = replace(checkpoint, learner=_finished(_copied(checkpoint.learner)))
        self._pending = self._thread.submit(save_checkpoint, self._run, copied, self._keep, best)

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk. Raises the error that its writing met."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()


def _copied(state: Any) -> Any:
    """The nested state with each tensor as a HostCopy of its own; copies from a GPU run together."""
    if isinstance(state, dict):
        return {name: _copied(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(_copied, state))
    if isinstance(state, Tensor):
        return HostCopy(state.clone() if state.device.type == "cpu" else state)
    return state


def _finished(state: Any) -> Any:
    """The nested state when all its copies are complete."""
    if isinstance(state, dict):
        return {name: _finished(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(_finished, state))
    return state.wait() if isinstance(state, HostCopy) else state
