"""What is left out at the import of timm and torch is there for whoever needs it; each in a process of its own."""

import subprocess
import sys

LIGHT = """
import sys
from teacher_cache import light
from teacher_cache.light import COMPILER, HUB, SHAPES, TRACKER, import_lightly, import_shapes, import_torch

def imported(*names):
    return [name for name in names if name in sys.modules]
"""
COMPILED = """
import torch
network = timm.create_model("resnet10t", num_classes=3).eval()
pixels = torch.rand(2, 3, 32, 32)
exported = torch.export.export(network, (pixels,)).module()
compiled = torch.compile(network, backend="aot_eager")
wanted = network(pixels)
assert torch.allclose(exported(pixels), wanted, atol=1e-5) and torch.allclose(compiled(pixels), wanted, atol=1e-5)
"""


def runs(*parts: str) -> None:
    done = subprocess.run([sys.executable, "-c", "".join((LIGHT, *parts))], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_network_can_be_compiled_and_exported_after_a_light_import() -> None:
    runs(
        """
import_torch()
import_lightly(HUB)
import timm
assert not imported(COMPILER, HUB, SHAPES, TRACKER)
import huggingface_hub
import_shapes()
""",
        COMPILED,
    )


def test_a_version_of_timm_or_torchvision_that_asks_for_more_gets_the_real_ones() -> None:
    runs(
        """
from contextlib import contextmanager
from types import ModuleType

@contextmanager
def too_little(unused):
    sys.modules[COMPILER] = ModuleType(COMPILER)
    try:
        yield
    finally:
        del sys.modules[COMPILER]

light._stand_ins = too_little
import_lightly()
import timm
assert imported(COMPILER) and timm.create_model("resnet10t", num_classes=3)
"""
    )
