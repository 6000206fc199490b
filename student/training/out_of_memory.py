"""What a user is told where a device's memory is too small, and what to lower."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from student.recipe import MachineSpec, TrainSpec
from teacher_cache.distributed.device import is_out_of_memory
from teacher_cache.errors import RunError


@contextmanager
def explain_out_of_memory(message: Callable[[], str]) -> Iterator[None]:
    """Raises RunError, with what is `told`, where the memory does not suffice for what is done within."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(message()) from None


def micro_batch(train: TrainSpec, processes: int) -> int:
    """How many views a process computes at the same time."""
    return max(train.batch // processes // train.accumulate, 1)


def oom_message(device: torch.device, train: TrainSpec, machine: MachineSpec, processes: int) -> str:
    """That a step's views are too many, and which recipe would have fewer of them at once."""
    number, views = micro_batch(train, processes), train.batch // processes
    found = f"train.batch = {train.batch}, train.accumulate = {train.accumulate}"
    message = f"{device} has too little memory for {number} views at once ({found}); "
    parts = next((parts for parts in range(train.accumulate + 1, views + 1) if views % parts == 0), None)
    message += (
        f"set train.accumulate = {parts}, which leaves the step as it is"
        if parts
        else "take a smaller train.batch, network or view size, as train.accumulate can be no larger"
    )
    return message if machine.dtype == "bfloat16" else f'{message}, or machine.dtype = "bfloat16"'


def eval_oom_message(device: torch.device | str, number: int, advice: str) -> str:
    """That the images shown at once are too many for an evaluation."""
    return f"{device} has too little memory to evaluate {number} images at once; {advice}"
