"""The precision of a teacher's forward pass."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.backends import cudnn

from teacher_cache.distributed.device import backend_flags
from teacher_cache.models.spec import MEAN, STD, TeacherSpec
from teacher_cache.models.teacher import Teacher, load_teacher

CLASSES = ("hopper", "logo", "parcel")


class Watched(nn.Module):
    """Records the flags of each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, bool, bool]] = []

    def forward(self, pixels: Tensor) -> Tensor:
        self.seen.append((torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark))
        return pixels.mean(dim=(2, 3))


def test_teachers_of_several_dtypes_take_turns_each_with_its_own_flags() -> None:
    networks = {dtype: Watched() for dtype in ("float32", "tf32", "bfloat16")}
    teachers = [Teacher(network, "it", 3, MEAN, STD, dtype) for dtype, network in networks.items()]
    teachers[2].cudnn_benchmark = True
    with backend_flags("tf32"):
        for teacher in teachers * 2:
            teacher(torch.zeros(2, 3, 4, 4))
            assert (torch.get_float32_matmul_precision(), cudnn.allow_tf32) == ("high", True)
    assert {dtype: network.seen for dtype, network in networks.items()} == {
        "float32": [("highest", False, False)] * 2,
        "tf32": [("high", True, False)] * 2,
        "bfloat16": [("highest", False, True)] * 2,
    }


def test_tf32_changes_no_bit_on_a_cpu_and_bfloat16_does(teacher_run: Path) -> None:
    pixels = torch.arange(2 * 3 * 32 * 32).remainder(251).view(2, 3, 32, 32).to(torch.uint8)
    exact, tf32, rounded = (
        load_teacher(TeacherSpec(run=str(teacher_run), dtype=dtype), CLASSES, 32)(pixels)
        for dtype in ("float32", "tf32", "bfloat16")
    )
    assert torch.equal(exact, tf32)
    assert not torch.equal(exact, rounded) and rounded.numpy() == pytest.approx(exact.numpy(), abs=0.1)
