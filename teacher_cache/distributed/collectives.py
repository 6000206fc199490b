"""Process group and collective operations of one training run."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from teacher_cache.distributed.world import World, read_world
from teacher_cache.errors import LimbeckError

Value = TypeVar("Value")
TIMEOUT = timedelta(hours=2)
"""Longest wait in a collective. The ranks share all computation, but storage may be slow for one of them: shards
that must be downloaded first, or rank 0's last checkpoint."""


@contextmanager
def process_group(environment: Mapping[str, str] = os.environ) -> Iterator[World]:
    """Yield the world of this process; join the process group of torchrun (gloo, and NCCL on GPUs).

    Without torchrun's variables the world is one process. A group that was created here is destroyed at the end.
    """
    if "RANK" not in environment or "MASTER_ADDR" not in environment:
        yield World()
        return
    world = read_world("RANK", "WORLD_SIZE", environment)
    owns_group = world.size > 1 and not dist.is_initialized()
    if owns_group:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store = dist.PrefixStore(_store_prefix(environment), next(rendezvous("env://", timeout=TIMEOUT))[0])
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=TIMEOUT)
    try:
        yield world
    finally:
        if owns_group:
            dist.destroy_process_group()


def _store_prefix(environment: Mapping[str, str]) -> str:
    """Key prefix of this attempt: torchrun's store survives a restart, with addresses of exited processes."""
    return f"attempt {environment.get('TORCHELASTIC_RESTART_COUNT', '0')}"


@contextmanager
def sync_errors(world: World) -> Iterator[None]:
    """Stop all processes if the block raises LimbeckError in one of them.

    Rank 0 raises the error of the lowest rank; the other ranks exit with its status. All ranks must run the block.
    """
    error: LimbeckError | None = None
    try:
        yield
    except LimbeckError as caught:
        error = caught
    if world.size > 1:
        errors: list[LimbeckError | None] = [None] * world.size
        dist.all_gather_object(errors, error)
        error = next((found for found in errors if found is not None), None)
    if error is not None:
        raise error if world.is_main else SystemExit(error.status)


def broadcast(world: World, value: Value) -> Value:
    """Return rank 0's value on every rank; it must be picklable."""
    if world.size == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def broadcast_tensors(world: World, tensors: Iterable[Tensor]) -> None:
    """Replace the values of tensors with those of rank 0, in place."""
    if world.size > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def all_reduce_sum(world: World, tensor: Tensor) -> Tensor:
    """Replace the tensor with its sum over all ranks, in place, and return it."""
    if world.size > 1:
        dist.all_reduce(tensor)
    return tensor


def all_reduce_mean(world: World, tensor: Tensor) -> Tensor:
    """Replace the tensor with its mean over all ranks, in place, and return it."""
    if world.size > 1:
        all_reduce_sum(world, tensor)
        tensor /= world.size
    return tensor
