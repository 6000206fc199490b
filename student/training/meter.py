"""Sums over an epoch: losses, seconds, and seconds spent waiting for data."""

import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from student.data.batch import Batch
from teacher_cache.distributed.device import HostCopy


@dataclass
class Epoch:
    """Sums over the steps of an epoch. losses: total, class head, distillation head. waited: seconds, for data."""

    losses: tuple[float, float, float] = (0.0, 0.0, 0.0)
    steps: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def means(self, batch: int) -> dict[str, Any]:
        """The journal's fields: mean losses, seconds, images per second, share of waiting. batch: global size."""
        loss, loss_class, loss_distill = (part / self.steps for part in self.losses)
        return {
            "loss": loss,
            "loss_class": loss_class,
            "loss_distill": loss_distill,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.steps * batch / self.seconds, 1),
            "waiting": round(self.waited / self.seconds, 4),
        }


class Meter:
    """Sums an epoch and checks each loss; on a GPU, a step late, so that the step is not delayed."""

    def __init__(self, epoch: dict[str, Any] | None = None) -> None:
        """epoch: the result of `state()` before an interruption."""
        self.epoch = Epoch(**epoch) if epoch else Epoch()
        self._pending: deque[tuple[int, HostCopy]] = deque()

    def over(self, batches: Iterator[Batch], steps: range) -> Iterator[tuple[int, Batch]]:
        """Yield (step, batch), and time the wait for each batch and its use."""
        for step in steps:
            started = time.monotonic()
            batch = next(batches)
            self.epoch.waited += time.monotonic() - started
            yield step, batch
            self.epoch.seconds += time.monotonic() - started

    def add(self, step: int, losses: Tensor) -> None:
        """Add the (3,) losses of a step.

        Raises FloatingPointError, naming the step, if the total is NaN or infinite; on a GPU one call later.
        """
        self._pending.append((step, HostCopy(losses)))
        if len(self._pending) > 1 or not losses.is_cuda:
            self._record(*self._pending.popleft())

    def finish(self) -> Epoch:
        """Wait for the losses of all steps, and return the sums."""
        while self._pending:
            self._record(*self._pending.popleft())
        return self.epoch

    def summary(self, batch: int) -> str:
        """A line with losses, images per second and share of waiting time; "" before the first step."""
        if not (self.epoch.steps and self.epoch.seconds):
            return ""
        means = self.epoch.means(batch)
        parts = f"class {means['loss_class']:.3f}"
        if means["loss_distill"]:
            parts += f", distill {means['loss_distill']:.3f}"
        speed = f"{means['images_per_second']:,.0f} images/s, {means['waiting']:.0%} waiting for data"
        return f"loss {means['loss']:.3f} ({parts})  {speed}"

    def state(self) -> dict[str, Any]:
        """The sums in the form stored in a checkpoint."""
        return asdict(self.finish())

    def _record(self, step: int, losses: HostCopy) -> None:
        total, on_class, on_distill = losses.wait().tolist()
        if not math.isfinite(total):
            raise FloatingPointError(f"the loss is {total} at step {step + 1:,}")
        sums = self.epoch.losses
        self.epoch.losses = (sums[0] + total, sums[1] + on_class, sums[2] + on_distill)
        self.epoch.steps += 1
