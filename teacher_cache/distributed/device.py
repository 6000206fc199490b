"""Torch devices: selection, precision, out-of-memory errors, and copies to the CPU."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor
from torch.backends import cudnn

from teacher_cache.console import count_of
from teacher_cache.errors import RecipeError

_OUT_OF_MEMORY = re.compile(
    "out of memory|bad_alloc|alloc_failed|allocate memory|fail(ed|ure) to allocate"
    "|could not create a (memory|primitive)(?! desc)",
    re.IGNORECASE,
)
"""What CUDA, cuBLAS, C++, the allocators of torch and ONNX Runtime, and oneDNN report."""


def local_device(name: str, environment: Mapping[str, str] = os.environ) -> torch.device:
    """Like pick_device, but give each process of a machine its own GPU, by LOCAL_RANK.

    Raises RecipeError if the machine has more processes than GPUs.
    """
    device = pick_device(name)
    if device.type != "cuda" or device.index is not None:
        return device
    local_rank, gpus = environment.get("LOCAL_RANK", "0"), torch.cuda.device_count()
    if local_rank.isdigit() and int(local_rank) >= gpus:
        available = count_of(gpus, "GPU")
        raise RecipeError(
            f"this machine has {available}; start at most {gpus} processes (--nproc-per-node {gpus})"
        )
    own_device = pick_device(f"cuda:{local_rank}")
    torch.cuda.set_device(own_device)
    return own_device


def pick_device(name: str) -> torch.device:
    """The torch device of a name; "auto" is the first GPU if the machine has one, else the CPU.

    Raises RecipeError if torch does not know the device or cannot use it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except Exception as error:  # torch's backends raise different classes
        reason = str(error).partition("\n")[0]
        raise RecipeError(f"device '{name}' cannot be used on this machine ({reason}); use auto or cpu") from None
    return device


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library could not allocate memory on some device."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(_OUT_OF_MEMORY.search(str(error)))


def autocast(device: torch.device, dtype: str) -> AbstractContextManager[object]:
    """The context of a forward pass. dtype: "bfloat16" uses torch.autocast, any other name changes nothing."""
    return torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext()


@contextmanager
def backend_flags(dtype: str, cudnn_benchmark: bool = False) -> Iterator[None]:
    """Set how GPUs compute float32 in the block, then restore the previous flags.

    dtype: "tf32" allows TF32 in convolutions and matrix products, any other name does not. (torch's default allows
    it in convolutions.) cudnn_benchmark: cuDNN times its convolutions for each new shape and uses the fastest.
    """
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark
    _set_flags("high" if dtype == "tf32" else "highest", dtype == "tf32", cudnn_benchmark)
    try:
        yield
    finally:
        _set_flags(*before)


def _set_flags(matmul_precision: str, allow_tf32: bool, benchmark: bool) -> None:
    torch.set_float32_matmul_precision(matmul_precision)
    cudnn.allow_tf32, cudnn.benchmark = allow_tf32, benchmark


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device. To a GPU the copy is asynchronous, from pinned memory."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


class HostCopy:
    """A copy of a tensor to the CPU. From a GPU it runs asynchronously, into pinned memory."""

    def __init__(self, tensor: Tensor) -> None:
        """tensor: a CPU tensor is not copied; later changes of it are visible in `wait()`."""
        self._copied = None
        self._tensor = tensor
        if tensor.is_cuda:
            self._tensor = torch.empty_like(tensor, device="cpu", pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.current_stream(tensor.device).record_event()

    def wait(self) -> Tensor:
        """Return the CPU tensor when the copy is complete."""
        if self._copied:
            self._copied.synchronize()
        return self._tensor
