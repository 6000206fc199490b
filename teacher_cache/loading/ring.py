"""Arrays in shared memory that the workers of a loader fill in place, used again and again."""

import mmap
import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from teacher_cache.console import log_line
from teacher_cache.loading.messages import PREFETCH

HELD = 2
"""Items of a worker that the receiver may use at the same time: the last two that it has taken."""
SLOTS = PREFETCH + HELD
"""Slots of a writer. A worker begins an item only after the item PREFETCH before it was taken."""
ALIGNMENT = 64
"""Bytes: a cache line."""


@dataclass(frozen=True)
class ArraySpec:
    """The shape and dtype of an array."""

    shape: tuple[int, ...]
    dtype: DTypeLike


class SharedRing:
    """SLOTS sets of the same arrays for each writer.

    The memory has no name: the kernel frees it when the last process that uses it has ended, even by a signal. It
    does not count towards the size of /dev/shm.
    """

    def __init__(self, arrays: Mapping[str, ArraySpec], writers: int = 1) -> None:
        self._arrays, self._writers = dict(arrays), writers
        self._offsets, self._slot_bytes = _offsets(self._arrays)
        self._fd = os.memfd_create("limbeck-ring")
        os.ftruncate(self._fd, self.nbytes)
        self._map()

    @property
    def nbytes(self) -> int:
        """Size of the ring in bytes. Memory is taken as slots are used for the first time."""
        return ring_bytes(self._arrays, self._writers)

    def slot(self, number: int, writer: int = 0) -> dict[str, NDArray[Any]]:
        """The arrays of an item, by name. number: of the item, counted from 0 by writer."""
        start = self._slot_bytes * (writer * SLOTS + number % SLOTS)
        return {
            name: np.ndarray(spec.shape, spec.dtype, self._memory, start + self._offsets[name])
            for name, spec in self._arrays.items()
        }

    def tensors(self, number: int, writer: int = 0) -> dict[str, torch.Tensor]:
        """The arrays of an item as tensors in the same memory."""
        return {name: torch.from_numpy(array) for name, array in self.slot(number, writer).items()}

    def pin(self) -> None:
        """Register the memory with CUDA, so that copies from it to a GPU are asynchronous.

        Call it after the workers have been forked. If CUDA refuses, this is logged, and copies are synchronous.
        """
        cudart: Any = torch.cuda.cudart()
        address = np.frombuffer(self._memory, dtype=np.uint8).ctypes.data
        if error := int(cudart.cudaHostRegister(address, self.nbytes, 0)):
            log_line(f"CUDA cannot pin {self.nbytes:,} bytes (error {error}); copies to the GPU are synchronous")
            return
        unpin = weakref.finalize(self, _unpin, cudart, address)  # before a new ring has this address
        unpin.atexit = False

    def _map(self) -> None:
        self._memory = mmap.mmap(self._fd, self.nbytes)
        weakref.finalize(self, os.close, self._fd)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a worker that is started by "spawn". A forked worker has the memory already."""
        return vars(self) | {"_memory": None, "_fd": DupFd(self._fd)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"_fd": state["_fd"].detach()})
        self._map()


def _unpin(cudart: Any, address: int) -> None:
    torch.cuda.synchronize()  # a copy may still read the memory
    cudart.cudaHostUnregister(address)


def ring_bytes(arrays: Mapping[str, ArraySpec], writers: int = 1) -> int:
    """Size of a ring in bytes."""
    return _offsets(arrays)[1] * SLOTS * writers


def _offsets(arrays: Mapping[str, ArraySpec]) -> tuple[dict[str, int], int]:
    """The offset of each array in a slot, and the size of a slot in bytes."""
    offsets, end = dict[str, int](), 0
    for name, spec in arrays.items():
        offsets[name] = end
        size = int(np.prod(spec.shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, -(-end // mmap.PAGESIZE) * mmap.PAGESIZE
