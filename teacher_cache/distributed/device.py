"""Choice of the compute device."""

import os
import re
from collections.abc import Mapping

import torch

from teacher_cache.console import count_of
from teacher_cache.errors import RecipeError

_OUT_OF_MEMORY = re.compile(
    "out of memory|bad_alloc|alloc_failed|allocate memory|fail(ed|ure) to allocate"
    "|could not create a (memory|primitive)(?! desc)",
    re.IGNORECASE,
)
"""What CUDA, cuBLAS, C++, the allocators of torch and ONNX Runtime, and oneDNN report."""


def local_device(name: str, environment: Mapping[str, str] = os.environ) -> torch.device:
    """As pick_device; of several processes on a machine, each takes a GPU of its own.

    Raises RecipeError where there are more processes than GPUs.
    """
    device = pick_device(name)
    if device.type != "cuda" or device.index is not None:
        return device
    place, gpus = environment.get("LOCAL_RANK", "0"), torch.cuda.device_count()
    if place.isdigit() and int(place) >= gpus:
        there = count_of(gpus, "GPU")
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library could not allocate memory on some device."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(_OUT_OF_MEMORY.search(str(error)))
