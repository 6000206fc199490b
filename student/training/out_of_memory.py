"""Error messages for an out-of-memory error, with the recipe keys to change."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from student.recipe import MachineSpec, TrainSpec
from teacher_cache.distributed.device import is_out_of_memory
from teacher_cache.errors import RunError


@contextmanager
def explain_out_of_memory(message: Callable[[], str]) -> Iterator[None]:
    """Turn an out-of-memory error of the block into RunError with the message that `message` returns."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(message()) from None


def micro_batch(train: TrainSpec, processes: int) -> int:
    """Number of views that a process computes at once."""
    return max(train.batch // processes // train.accumulate, 1)


def oom_message(device: torch.device, train: TrainSpec, machine: MachineSpec, processes: int) -> str:
    """The message for a training step, with the next larger valid train.accumulate."""
    number, views = micro_batch(train, processes), train.batch // processes
    found = f"train.batch = {train.batch}, train.accumulate = {train.accumulate}"
    message = f"{device} has too little memory for a micro-batch of {number} views ({found}); "
    parts = next((parts for parts in range(train.accumulate + 1, views + 1) if views % parts == 0), None)
    message += (
        f"set train.accumulate = {parts}, which keeps train.batch"
        if parts
        else "use a smaller train.batch, network or view size, as train.accumulate is at its maximum"
    )
    return message if machine.dtype == "bfloat16" else f'{message}, or machine.dtype = "bfloat16"'


def eval_oom_message(device: torch.device | str, number: int, advice: str) -> str:
    """The message for an evaluation. advice: what to change."""
    return f"{device} has too little memory to evaluate batches of {number} images; {advice}"
