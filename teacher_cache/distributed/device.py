"""Choice of the compute device, and copies from it."""

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from teacher_cache.console import count_of
from teacher_cache.errors import RecipeError


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


class HostCopy:
    """A copy of a tensor to the CPU. From a GPU it runs asynchronously, into pinned memory."""

    def __init__(self, tensor: Tensor) -> None:
        """tensor: a CPU tensor is not copied; later changes of it are visible in `wait()`."""
        self._copied = None
        self._tensor = tensor
        if tensor.is_cuda:
            self._tensor = torch.empty_like(tensor, device="cpu", pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def wait(self) -> Tensor:
        """Return the CPU tensor when the copy is complete."""
        if self._copied:
            self._copied.synchronize()
        return self._tensor
