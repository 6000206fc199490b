"""Collectives between the processes of one training run."""

import os
from collections.abc import Iterator, Mapping
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
"""How long processes wait for each other: rank 0 evaluates and saves by itself."""


@contextmanager
def process_group(environment: Mapping[str, str] = os.environ) -> Iterator[World]:
    """This process among those that torchrun started with it, in touch with each other (gloo; NCCL on GPUs)."""
    if "RANK" not in environment or "MASTER_ADDR" not in environment:
        yield World()
        return
    world = read_world("RANK", "WORLD_SIZE", environment)
    owns_group = world.size > 1 and not dist.is_initialized()  # who connects them disconnects them
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
    """Torchrun's own store outlives a restart, with the addresses of processes that are dead."""
    return f"attempt {environment.get('TORCHELASTIC_RESTART_COUNT', '0')}"


@contextmanager
def sync_errors(world: World) -> Iterator[None]:
    """What every process does alike: an error of one ends all of them, and rank 0 alone raises it."""
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
    """Rank 0's value, on every process."""
    if world.size == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def all_reduce_mean(world: World, tensor: Tensor) -> Tensor:
    """The mean of the processes' tensors, in place."""
    if world.size > 1:
        dist.all_reduce(tensor)
        tensor /= world.size
    return tensor
