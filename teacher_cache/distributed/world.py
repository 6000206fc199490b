"""Rank of this process and number of processes of the job, from options or from the launcher's variables."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from teacher_cache.errors import RecipeError

LAUNCHERS = (
    ("RANK", "WORLD_SIZE"),  # torchrun
    ("JOB_COMPLETION_INDEX", "WORLD_SIZE"),  # Kubernetes indexed job; its manifest must set WORLD_SIZE
)
"""Variables with the rank and the size, by launcher. The first launcher whose rank is set is used."""
SLURM_ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
SLURM_STEP = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
"""Set by srun. In sbatch's own script only SLURM_PROCID is set."""


@dataclass(frozen=True)
class World:
    """Rank of this process, 0..size-1, and the number of processes that share the job.

    Raises RecipeError if the rank is out of range.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise RecipeError(
                f"rank {self.rank} of {self.size} jobs is invalid; give a rank from 0 to {max(self.size - 1, 0)}"
            )


def find_world(rank: int | None, size: int | None, environment: Mapping[str, str] = os.environ) -> World | None:
    """The world of the given rank and size, or of the launcher's variables; None if there is neither.

    A SLURM array whose tasks are srun steps counts every step of every task.
    Raises RecipeError if only one of rank and size is given, or if one is invalid.
    """
    if rank is not None or size is not None:
        if rank is None or size is None:
            raise RecipeError("--rank and --world must be given together; give both or neither")
        return World(rank, size)
    for rank_name, size_name in LAUNCHERS:
        if rank_name in environment:
            return read_world(rank_name, size_name, environment)
    in_array, in_step = SLURM_ARRAY[0] in environment, SLURM_STEP[1] in environment
    array = read_world(*SLURM_ARRAY, environment) if in_array else World()
    step = read_world(*SLURM_STEP, environment) if in_step else World()
    world = World(array.rank * step.size + step.rank, array.size * step.size)
    return world if in_array or in_step else None


def read_world(rank_name: str, size_name: str, environment: Mapping[str, str]) -> World:
    """The world of two variables. A SLURM array may start at any index and have any step.

    Raises RecipeError if one of them is not set or not an integer.
    """
    found = environment.get(size_name)
    if found is None or rank_name not in environment:
        present, missing = (rank_name, size_name) if found is None else (size_name, rank_name)
        raise RecipeError(f"{present} is set but {missing} is not; set it, or give --rank and --world")
    array = environment if rank_name == SLURM_ARRAY[0] else {}
    try:
        first, step = int(array.get("SLURM_ARRAY_TASK_MIN", "0")), int(array.get("SLURM_ARRAY_TASK_STEP", "1"))
        return World((int(environment[rank_name]) - first) // step, int(found))
    except ValueError:
        raise RecipeError(
            f"{rank_name} = '{environment[rank_name]}' and {size_name} = '{found}' must be integers; "
            "correct them, or give --rank and --world"
        ) from None
