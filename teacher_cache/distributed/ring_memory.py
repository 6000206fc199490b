"""The shared memory of a loader's batches, compared with the memory of the machine."""

from teacher_cache.console import log_line
from teacher_cache.distributed.machine import local_processes, memory_bytes
from teacher_cache.errors import RecipeError

NOTABLE_BYTES = 2**28
"""Size above which the memory is logged."""
GIB = 2**30


def check_ring_memory(nbytes: int, batches: str, advice: str) -> None:
    """Log the shared memory of this process's batches if it is notable. batches: what is in it.

    Raises RecipeError if the processes of the run on this machine need more memory than the machine has.
    """
    processes, memory = local_processes(), memory_bytes()
    if nbytes * processes > memory:
        times = f" in each of {processes} processes" * (processes > 1)
        raise RecipeError(
            f"{batches} need {nbytes / GIB:,.2f} GiB of shared memory{times}, and this machine or container has "
            f"{memory / GIB:,.2f} GiB; {advice}"
        )
    if nbytes >= NOTABLE_BYTES:
        log_line(f"{batches} take up to {nbytes / GIB:,.2f} GiB of shared memory, which is used again and again")
