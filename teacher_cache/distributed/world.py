"""Where the work runs: this process's rank among its peers, its device, and what the peers tell each other."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from teacher_cache.errors import RecipeError

LAUNCHERS = (
    ("RANK", "WORLD_SIZE"),  # torchrun
    ("JOB_COMPLETION_INDEX", "WORLD_SIZE"),  # a Kubernetes indexed job; its manifest must name the size
)
"""The environment variables by which launchers tell rank and size, the first pair that is there counts."""
SLURM_ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
SLURM_STEP = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
"""Of srun; in sbatch's own script only the first is set."""


@dataclass(frozen=True)
class World:
    """This process among `size` that share one job; rank in 0..size-1."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
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
            return read_world(rank_name, size_name, environment)
    in_array, in_step = SLURM_ARRAY[0] in environment, SLURM_STEP[1] in environment
    array = read_world(*SLURM_ARRAY, environment) if in_array else World()
    step = read_world(*SLURM_STEP, environment) if in_step else World()
    world = World(array.rank * step.size + step.rank, array.size * step.size)
    return world if in_array or in_step else None


def read_world(rank_name: str, size_name: str, environment: Mapping[str, str]) -> World:
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
            f"{rank_name} = '{environment[rank_name]}' and {size_name} = '{found}' should be numbers; "
            "give --rank and --world"
        ) from None
