"""timm and torch without what takes most of the time that they are imported in, and is seldom used.

Of timm's 8.5 seconds torch's compiler takes 2.5, as torchvision asks it one question, and a tracker 0.9.
"""

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
TRACKER, HUB = "wandb", "huggingface_hub"
"""timm goes without either where it is not installed."""
SHAPES = "torch._meta_registrations"
"""What operations do to shapes alone, a second's import, by which torch compiles and exports."""
GARBAGE = 10_000
"""Objects made until garbage is looked for; imports make many and drop few."""


def import_lightly(*unused: str) -> None:
    """From now on timm is imported without compiler, tracker, and these; whoever compiles imports the compiler."""
    gc.set_threshold(GARBAGE)
    if "timm" not in sys.modules and not any(isinstance(finder, _Timm) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Timm((TRACKER, *unused)))


class _Timm(MetaPathFinder):
    """Finds timm, and has it and all that it imports find stand-ins, or nothing, for what is left out."""

    def __init__(self, unused: tuple[str, ...]) -> None:
        self._unused = unused

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """timm's own, whose loader does its work among stand-ins; None for all else."""
        spec = PathFinder.find_spec(name, path) if name == "timm" else None
        if spec is None or spec.loader is None:
            return None
        plain = spec.loader.exec_module

        def lightly(module: ModuleType) -> None:
            sys.meta_path.remove(self)
            try:
                with _stand_ins(self._unused):
                    plain(module)
            except (AttributeError, ImportError):  # a version that asks for more gets the real ones
                for name in [name for name in sys.modules if name.startswith(("timm.", "torchvision"))]:
                    del sys.modules[name]
                plain(module)

        vars(spec.loader)["exec_module"] = lightly
        return spec


@contextmanager
def _stand_ins(unused: tuple[str, ...]) -> Iterator[None]:
    from torch._compile import _disable_dynamo  # the compiler's mark for what it is to leave alone, for later

    compiler, about = ModuleType(COMPILER), ModuleType(f"{COMPILER}.utils")
    vars(about).update(is_compile_supported=lambda device: False)

    def disable(function: Any = None, recursive: bool = True, **_: Any) -> Any:
        return _disable_dynamo(function, recursive)

    vars(compiler).update(__path__=[], utils=about, disable=disable)
    # Of a module that is None the import fails.
    names: dict[str, Any] = {COMPILER: compiler, f"{COMPILER}.utils": about, **dict.fromkeys(unused)}
    names = {name: stand_in for name, stand_in in names.items() if name not in sys.modules}
    sys.modules.update(names)
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


class _Later(ModuleType):
    """Stands in for a module of torch until it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # whoever looks through all modules asks for these
            raise AttributeError(name)
        return getattr(import_shapes(), name)


def import_torch() -> None:
    """Import torch, and leave what only compilers need to be imported by `import_shapes`."""
    if "torch" not in sys.modules:
        sys.modules[SHAPES] = _Later(SHAPES)
        try:
            importlib.import_module("torch")
        finally:
            sys.modules.pop(SHAPES, None)


def import_shapes() -> ModuleType:
    """To be called before anything is compiled, traced or exported."""
    if isinstance(sys.modules.get(SHAPES), _Later):  # torch itself uses it as it is imported
        del sys.modules[SHAPES]
    return importlib.import_module(SHAPES)
