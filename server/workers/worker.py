"""A model worker: a process that decodes and judges images, a batch at a time, for the serving process."""

import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from server.errors import ComputeError, ImageSizeError, NoMemoryError, NonFiniteError
from server.ipc import wire
from server.ipc.messages import Pixels, Prediction, Task, TaskResult
from server.workers.attention_maps import TASKS
from server.workers.runtime import Runtime
from server.workers.silence_stderr import SilencedStderr
from server.workers.sniff import check
from student.bundle.bundle import Bundle
from student.model.student import Heads, fuse
from teacher_cache.distributed.device import is_out_of_memory
from teacher_cache.errors import LimbeckError

DECODE_SECONDS = 5.0
"""In which an image must be decoded: of some types a few bytes cost minutes."""
_FAILED = "the server failed over this image; its log says why"

log = logging.getLogger(__name__)


class Worker:
    """Answers tasks. Every image is decoded on its own, and a bad one spoils no other.

    Where more than one image may go through the network at once, a batch is filled up with blank ones: so it
    always has the same shape, the same kernels compute it, and no answer depends on what is asked beside it.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime, batch: int, max_pixels: int) -> None:
        self._bundle, self._runtime, self._batch, self._max_pixels = bundle, runtime, batch, max_pixels
        self._mute = SilencedStderr()
        signal.signal(signal.SIGALRM, _ring)

    def run(self, tasks: list[Task]) -> list[TaskResult]:
        """One Done for each task, in their order."""
        began = time.perf_counter()
        prepared = [self._guard(self._prepare, task) for task in tasks]
        good = [i for i, found in enumerate(prepared) if not isinstance(found, Exception)]
        judged = [i for i in good if tasks[i].kind == "judge"]
        values = list(prepared)
        rows = self._predict([tasks[i] for i in judged], [prepared[i] for i in judged])
        for i, row in zip(judged, rows, strict=True):
            values[i] = row
        for i in set(good) - set(judged):
            values[i] = self._guard(TASKS[tasks[i].kind], self._bundle, prepared[i], tasks[i])
        took = 1000 * (time.perf_counter() - began)
        return [TaskResult(value, took) for value in values]

    def _prepare(self, task: Task) -> Pixels:
        if not isinstance(task.image, bytes):
            return task.image
        with self._mute, _in_time():
            check(task.image, self._max_pixels)
            return self._bundle.prepare(task.image)

    def _guard(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """What `work` returns, or the exception that this image's client is to be told of."""
        try:
            return work(*arguments)
        except LimbeckError as error:
            return error
        except Exception:  # whatever it is, it is this image's alone
            log.exception("an image could not be judged")
            return ComputeError(_FAILED)

    def _predict(self, tasks: list[Task], pixels: list[Pixels]) -> list[Prediction | LimbeckError]:
        answers: list[Prediction | LimbeckError] = []
        for start in range(0, len(tasks), self._batch):
            stop = start + self._batch
            answers += self._forward(tasks[start:stop], pixels[start:stop], self._batch)
        return answers

    def _forward(
        self, tasks: list[Task], pixels: list[Pixels], size: int, no_memory: bool = False
    ) -> list[Prediction | LimbeckError]:
        """Up to `size` images through the network; where it fails, as for want of memory, half as many, twice.

        no_memory: it was memory that twice as many lacked; whatever half of them fails by, that is the reason.
        """
        try:
            heads = self._runtime(_padded(pixels, size))
        except Exception as error:  # each runtime has its own
            no_memory = no_memory or is_out_of_memory(error)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if size > 1:
                half = size // 2
                log.warning("%d images at once: %s; going on with %d", size, _line(error), half)
                answers: list[Prediction | LimbeckError] = []
                for start in range(0, len(tasks), half):
                    part = slice(start, start + half)
                    answers += self._forward(tasks[part], pixels[part], half, no_memory)
                return answers
            if no_memory:
                log.error("no memory for even one image: %s", _line(error))
                return [NoMemoryError("the server is out of memory; ask again later")]
            log.exception("an image could not be judged")
            return [ComputeError(_FAILED)]
        return [self._read(task, heads, row) for row, task in enumerate(tasks)]

    def _read(self, task: Task, heads: Heads, row: int) -> Prediction | LimbeckError:
        mine = Heads(heads.class_logits[row : row + 1], heads.distill_logits[row : row + 1])
        if not all(bool(torch.isfinite(logits).all()) for logits in mine):
            return NonFiniteError("the network's output for this image is not finite")
        fused = fuse(mine, task.fusion or self._bundle.card.fusion)
        return Prediction(torch.cat([*mine, fuse(mine, "class"), fuse(mine, "distill"), fused]).numpy())


def _ring(*_: object) -> None:
    raise ImageSizeError("the image takes too long to decode; send it as a baseline JPEG or a PNG")


@contextmanager
def _in_time() -> Iterator[None]:
    """Have `_ring` raise in what takes too long, again and again should some parser overlook it."""
    signal.setitimer(signal.ITIMER_REAL, DECODE_SECONDS, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _padded(pixels: list[Pixels], size: int) -> torch.Tensor:
    """(size, S, S, 3) uint8, the last of them blank."""
    batch = np.zeros((size, *pixels[0].shape), np.uint8)
    for row, one in enumerate(pixels):
        batch[row] = one
    return torch.from_numpy(batch)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__


def run_worker(channel: socket.socket, worker: Worker) -> None:
    """Answer batches of tasks until the serving process hangs up."""
    while (tasks := wire.receive(channel)) is not None:
        wire.send(channel, worker.run(tasks))
