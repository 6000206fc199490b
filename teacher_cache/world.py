"""Where the work runs: this process's rank among its peers, its device, and what the peers tell each other."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from teacher_cache.errors import LimbeckError, RecipeError
from teacher_cache.journal import some

Value = TypeVar("Value")

LAUNCHERS = (
    ("RANK", "WORLD_SIZE"),  # torchrun
    ("JOB_COMPLETION_INDEX", "WORLD_SIZE"),  # a Kubernetes indexed job; its manifest must name the size
)
"""The environment variables by which launchers tell rank and size, the first pair that is there counts."""
ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
STEP = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
"""Of srun; in sbatch's own script only the first is set."""
PATIENCE = timedelta(hours=2)
"""How long processes wait for each other: rank 0 evaluates and saves by itself."""


@dataclass(frozen=True)
class World:
    """This process among `size` that share one job; rank in 0..size-1."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise RecipeError(
                f"rank {self.rank} of {self.size} jobs; give a rank from 0 to {max(self.size - 1, 0)}"
            )


def find_world(rank: int | None, size: int | None, environment: Mapping[str, str] = os.environ) -> World | None:
    """The rank and size a user gave, else what the launcher's environment says, else None.

    Raises RecipeError where one is given without the other, or is no number that fits.
    """
    if rank is not None or size is not None:
        if rank is None or size is None:
            raise RecipeError("--rank and --world belong together; give both or neither")
        return World(rank, size)
    for rank_name, size_name in LAUNCHERS:
        if rank_name in environment:
            return _read(rank_name, size_name, environment)
    in_array, in_step = ARRAY[0] in environment, STEP[1] in environment
    array = _read(*ARRAY, environment) if in_array else World()
    step = _read(*STEP, environment) if in_step else World()
    world = World(array.rank * step.size + step.rank, array.size * step.size)
    return world if in_array or in_step else None


def _read(rank_name: str, size_name: str, environment: Mapping[str, str]) -> World:
    found = environment.get(size_name)
    if found is None or rank_name not in environment:
        here, gone = (rank_name, size_name) if found is None else (size_name, rank_name)
        raise RecipeError(f"{here} is set but {gone} is not; set it, or give --rank and --world")
    array = environment if rank_name == ARRAY[0] else {}
    try:
        first, step = int(array.get("SLURM_ARRAY_TASK_MIN", "0")), int(array.get("SLURM_ARRAY_TASK_STEP", "1"))
        return World((int(environment[rank_name]) - first) // step, int(found))
    except ValueError:
        raise RecipeError(
            f"{rank_name} = '{environment[rank_name]}' and {size_name} = '{found}' should be numbers; "
            "give --rank and --world"
        ) from None


@contextmanager
def together(environment: Mapping[str, str] = os.environ) -> Iterator[World]:
    """This process among those that torchrun started with it, in touch with each other (gloo; NCCL on GPUs)."""
    if "RANK" not in environment or "MASTER_ADDR" not in environment:
        yield World()
        return
    world = _read("RANK", "WORLD_SIZE", environment)
    mine = world.size > 1 and not dist.is_initialized()  # who connects them disconnects them
    if mine:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store = dist.PrefixStore(_attempt(environment), next(rendezvous("env://", timeout=PATIENCE))[0])
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=PATIENCE)
    try:
        yield world
    finally:
        if mine:
            dist.destroy_process_group()


def _attempt(environment: Mapping[str, str]) -> str:
    """Torchrun's own store outlives a restart, with the addresses of processes that are dead."""
    return f"attempt {environment.get('TORCHELASTIC_RESTART_COUNT', '0')}"


@contextmanager
def agreeing(world: World) -> Iterator[None]:
    """What every process does alike: an error of one ends all of them, and rank 0 alone raises it."""
    error: LimbeckError | None = None
    try:
        yield
    except LimbeckError as raised:
        error = raised
    if world.size > 1:
        errors: list[LimbeckError | None] = [None] * world.size
        dist.all_gather_object(errors, error)
        error = next((one for one in errors if one is not None), None)
    if error is not None:
        raise error if world.leads else SystemExit(error.status)


def share(world: World, value: Value) -> Value:
    """Rank 0's value, on every process."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def mean(world: World, tensor: Tensor) -> Tensor:
    """The mean of the processes' tensors, in place."""
    if world.size > 1:
        dist.all_reduce(tensor)
        tensor /= world.size
    return tensor


def local_device(name: str, environment: Mapping[str, str] = os.environ) -> torch.device:
    """As pick_device; of several processes on a machine, each takes a GPU of its own.

    Raises RecipeError where there are more processes than GPUs.
    """
    device = pick_device(name)
    if device.type != "cuda" or device.index is not None:
        return device
    place, gpus = environment.get("LOCAL_RANK", "0"), torch.cuda.device_count()
    if place.isdigit() and int(place) >= gpus:
        there = some(gpus, "GPU")
        raise RecipeError(f"this machine has {there}; start at most {gpus} processes (--nproc-per-node {gpus})")
    own = pick_device(f"cuda:{place}")
    torch.cuda.set_device(own)
    return own


def pick_device(name: str) -> torch.device:
    """ "auto" is the first GPU where there is one, else the CPU; anything else is torch's own name."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except Exception as error:  # each of torch's backends fails in its own way
        reason = str(error).partition("\n")[0]
        raise RecipeError(f"device '{name}' cannot be used here ({reason}); use auto or cpu") from None
    return device
