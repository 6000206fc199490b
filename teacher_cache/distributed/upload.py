"""Copy batches to a device while it computes."""

from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor


class DeviceBatch(Protocol):
    """Tensors that can be copied to a device together."""

    def to(self, device: torch.device) -> Self: ...

    def tensors(self) -> dict[str, Tensor]: ...


B = TypeVar("B", bound=DeviceBatch)


class Upload(Generic[B]):
    """A batch on its way to a device. To a GPU the copy runs on `stream`, beside the computation."""

    def __init__(self, batch: B, device: torch.device, stream: torch.cuda.Stream | None) -> None:
        """stream: from `copy_stream`; None on a device without streams."""
        self._device = device
        with torch.cuda.stream(stream):  # does nothing without a stream
            self._batch = batch.to(device)
        self._copied = stream.record_event() if stream else None

    def ready(self) -> B:
        """The batch on the device. The current stream waits for the copy, the host does not."""
        if self._copied:
            compute = torch.cuda.current_stream(self._device)
            compute.wait_event(self._copied)
            for tensor in self._batch.tensors().values():
                tensor.record_stream(compute)
        return self._batch

    def finish(self) -> None:
        """Wait until the copy is complete, so that the memory of the original may be used again."""
        if self._copied:
            self._copied.synchronize()


def copy_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A new stream of a GPU, for copies; None on another device."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None


def uploaded(batches: Iterator[B], device: torch.device) -> Iterator[B]:
    """Yield batches on a device; on a GPU, the next one is copied while the current one is used.

    A batch may be in memory that is used again for the second one after it.
    """
    stream = copy_stream(device)
    if stream is None:
        for batch in batches:
            yield batch.to(device)
        return
    pending: deque[Upload[B]] = deque()
    try:
        for batch in batches:
            pending.append(Upload(batch, device, stream))
            if len(pending) == 2:
                yield pending[0].ready()
                pending.popleft().finish()
        while pending:
            yield pending[0].ready()
            pending.popleft().finish()
    finally:
        for upload in pending:  # of memory that ends with the source
            upload.finish()
