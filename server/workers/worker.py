"""A model worker: a process that decodes and classifies batches of images for the serving process."""

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
from server.ipc.messages import CLASSIFY, Pixels, Prediction, Task, TaskResult
from server.workers.attention_maps import TASKS
from server.workers.runtime import Runtime
from server.workers.silence_stderr import SilencedStderr
from server.workers.sniff import check
from student.bundle.bundle import Bundle
from student.model.student import Heads, fuse
from teacher_cache.distributed.device import is_out_of_memory
from teacher_cache.errors import LimbeckError

DECODE_SECONDS = 5.0
"""Time limit for decoding one image: with some formats, a few bytes can take minutes."""
_FAILED = "the server failed on this image; see its log"

log = logging.getLogger(__name__)


class Worker:
    """Runs tasks. Images are decoded one by one, so an invalid image fails only its own task.

    Every batch is padded with blank images to the same shape. All batches then run the same kernels, so the result
    for an image does not depend on the other images.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime, batch: int, max_pixels: int) -> None:
        self._bundle, self._runtime, self._batch, self._max_pixels = bundle, runtime, batch, max_pixels
        self._silenced_stderr = SilencedStderr()
        signal.signal(signal.SIGALRM, _raise_timeout)

    def run(self, tasks: list[Task]) -> list[TaskResult]:
        """Run tasks and return their results in the same order. Exceptions are returned as values."""
        start = time.perf_counter()
        prepared = [self._guard(self._prepare, task) for task in tasks]
        valid = [i for i, value in enumerate(prepared) if not isinstance(value, Exception)]
        classified = [i for i in valid if tasks[i].kind == CLASSIFY]
        values = list(prepared)
        predictions = self._predict([tasks[i] for i in classified], [prepared[i] for i in classified])
        for i, prediction in zip(classified, predictions, strict=True):
            values[i] = prediction
        for i in set(valid) - set(classified):
            values[i] = self._guard(TASKS[tasks[i].kind], self._bundle, prepared[i], tasks[i])
        compute_ms = 1000 * (time.perf_counter() - start)
        return [TaskResult(value, compute_ms) for value in values]

    def _prepare(self, task: Task) -> Pixels:
        if not isinstance(task.image, bytes):
            return task.image
        with self._silenced_stderr, _time_limit():
            check(task.image, self._max_pixels)
            return self._bundle.prepare(task.image)

    def _guard(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return the function's result, or the exception to send to the client."""
        try:
            return function(*arguments)
        except LimbeckError as error:
            return error
        except Exception:  # concerns only this image
            log.exception("an image could not be processed")
            return ComputeError(_FAILED)

    def _predict(self, tasks: list[Task], pixels: list[Pixels]) -> list[Prediction | LimbeckError]:
        predictions: list[Prediction | LimbeckError] = []
        for start in range(0, len(tasks), self._batch):
            stop = start + self._batch
            predictions += self._forward(tasks[start:stop], pixels[start:stop], self._batch)
        return predictions

    def _forward(
        self, tasks: list[Task], pixels: list[Pixels], size: int, memory_failed: bool = False
    ) -> list[Prediction | LimbeckError]:
        """Run up to `size` images through the network. If that fails, run each half on its own.

        memory_failed: a larger batch ran out of memory. Any failure of a part of it then counts as out of memory.
        """
        try:
            heads = self._runtime(_pad(pixels, size))
        except Exception as error:  # each runtime raises other exceptions
            memory_failed = memory_failed or is_out_of_memory(error)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if size > 1:
                half = size // 2
                log.warning("a batch of %d failed: %s; trying batches of %d", size, _one_line(error), half)
                predictions: list[Prediction | LimbeckError] = []
                for start in range(0, len(tasks), half):
                    part = slice(start, start + half)
                    predictions += self._forward(tasks[part], pixels[part], half, memory_failed)
                return predictions
            if memory_failed:
                log.error("out of memory with a batch of 1: %s", _one_line(error))
                return [NoMemoryError("the server is out of memory; send the request again later")]
            log.exception("an image could not be classified")
            return [ComputeError(_FAILED)]
        return [self._prediction(task, heads, row) for row, task in enumerate(tasks)]

    def _prediction(self, task: Task, heads: Heads, row: int) -> Prediction | LimbeckError:
        one = Heads(heads.class_logits[row : row + 1], heads.distill_logits[row : row + 1])
        if not all(bool(torch.isfinite(logits).all()) for logits in one):
            return NonFiniteError("the network's output for this image is NaN or infinite")
        fused = fuse(one, task.fusion or self._bundle.card.fusion)
        return Prediction(torch.cat([*one, fuse(one, "class"), fuse(one, "distill"), fused]).numpy())


def _raise_timeout(*_: object) -> None:
    raise ImageSizeError(
        f"decoding the image takes more than {DECODE_SECONDS:g} s; send it as a baseline JPEG or a PNG"
    )


@contextmanager
def _time_limit() -> Iterator[None]:
    """Raise ImageSizeError in the body after DECODE_SECONDS, then every second: parsers may catch one."""
    signal.setitimer(signal.ITIMER_REAL, DECODE_SECONDS, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _pad(pixels: list[Pixels], size: int) -> torch.Tensor:
    """Images as one (size, S, S, 3) uint8 batch, padded with blank ones."""
    batch = np.zeros((size, *pixels[0].shape), np.uint8)
    for row, image in enumerate(pixels):
        batch[row] = image
    return torch.from_numpy(batch)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__


def run_worker(connection: socket.socket, worker: Worker) -> None:
    """Run batches of tasks until the serving process closes the connection."""
    while (tasks := wire.receive(connection)) is not None:
        wire.send(connection, worker.run(tasks))
