"""timm without what takes most of its time: torch's compiler, for one name in torchvision, and wandb for a log."""

import importlib
import sys
from types import ModuleType
from typing import Any

COMPILER, TRACKER = "torch._dynamo", "wandb"


def import_networks() -> None:
    """Import timm, and leave the compiler to be imported by whoever compiles.

    A stand-in answers meanwhile: torchvision asks whether compiling is supported, timm marks what should not be.
    """
    if COMPILER in sys.modules:
        return
    compiler, about = ModuleType(COMPILER), ModuleType(f"{COMPILER}.utils")
    stand_in: dict[str, Any] = {
        "__path__": [],
        "utils": about,
        "disable": lambda function=None, *_, **__: function,
    }
    vars(compiler).update(stand_in)
    vars(about).update(is_compile_supported=lambda device: False)
    names = {COMPILER: compiler, f"{COMPILER}.utils": about}
    sys.modules.update(names)
    # Of a module that is None the import fails, and timm goes without it.
    absent: dict[str, Any] = {} if TRACKER in sys.modules else {TRACKER: None}
    sys.modules.update(absent)
    try:
        importlib.import_module("timm")
    except (AttributeError, ImportError):  # a version that asks for more gets the real one
        for name in [name for name in sys.modules if name.partition(".")[0] in ("timm", "torchvision")]:
            del sys.modules[name]
    finally:
        for name in [*names, *absent]:
            sys.modules.pop(name, None)
