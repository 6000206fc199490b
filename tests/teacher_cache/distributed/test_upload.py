"""Tests of copying batches to a device: what is done on a machine without a GPU, and in which order."""

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from teacher_cache.distributed import upload
from teacher_cache.distributed.upload import Upload, uploaded

CPU = torch.device("cpu")


class Numbered:
    """A batch that is only a number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def to(self, device: torch.device) -> "Numbered":
        return self

    def tensors(self) -> dict[str, Tensor]:
        return {}


def test_batches_pass_a_cpu_unchanged_and_one_at_a_time() -> None:
    taken: list[int] = []

    def source() -> Iterator[Numbered]:
        for number in range(4):
            taken.append(number)
            yield Numbered(number)

    for number, batch in enumerate(uploaded(source(), CPU)):
        assert batch.number == number and taken == [*range(number + 1)]


@pytest.mark.parametrize("left_after", [1, 3, 9])
def test_the_next_batch_is_on_its_way_and_a_copy_ends_before_its_memory_is_used_again(left_after: int) -> None:
    """With a recorded stream in place of a GPU's: batch n + 2 takes the memory of batch n."""
    events: list[tuple[str, int]] = []

    class Recorded(Upload[Numbered]):
        def __init__(self, batch: Numbered, device: torch.device, stream: Any) -> None:
            self._batch = batch
            events.append(("copy", batch.number))

        def ready(self) -> Numbered:
            events.append(("ready", self._batch.number))
            return self._batch

        def finish(self) -> None:
            events.append(("finish", self._batch.number))

    def source() -> Iterator[Numbered]:
        for number in range(5):
            events.append(("take", number))
            yield Numbered(number)

    with patch.object(upload, "copy_stream", lambda device: object()), patch.object(upload, "Upload", Recorded):
        batches = uploaded(source(), CPU)
        for count, batch in enumerate(batches, start=1):
            assert ("copy", min(batch.number + 1, 4)) in events
            if count == left_after:
                break
        batches.close()  # type: ignore[attr-defined]
    for number in range(2, 5):
        if ("take", number) in events:
            assert events.index(("finish", number - 2)) < events.index(("take", number))
    assert {number for kind, number in events if kind == "finish"} == {n for kind, n in events if kind == "copy"}
