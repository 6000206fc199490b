"""Compile kernels with numba. Machine code is cached on disk, so only the first process on a machine compiles."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import llvmlite.binding
import numba
from numba import config, types

from teacher_cache.console import log_line
from teacher_cache.errors import RecipeError

Function = TypeVar("Function", bound=Callable[..., Any])

SOURCES = Path(__file__).parent
FLAT = types.Array(types.uint8, 1, "C", readonly=True)
"""(N,) uint8, contiguous, read only."""
ROWS = types.Array(types.uint8, 2, "C", readonly=True)
"""(H, N) uint8, contiguous, read only."""
FLAT_OUT, ROWS_OUT = types.uint8[::1], types.uint8[:, ::1]


def kernel(*arguments: Any, returns: Any = types.void) -> Callable[[Function], Function]:
    """Make a decorator that compiles a function for one list of argument types, when its module is imported.

    The function and what it calls are in one folder, this one. It runs on one thread without the GIL. numba neither
    reorders nor fuses floating-point operations, so the result is the same on every CPU.
    """

    def decorate(function: Function) -> Function:
        signature, folder = returns(*arguments), cache_folder()
        if folder is None:
            return cast("Function", numba.njit(signature, nogil=True)(function))
        with _locked(folder):
            try:
                return _load(function, signature, folder)
            except Exception:  # an unreadable entry: unpickling raises anything
                shutil.rmtree(folder / "code", ignore_errors=True)
                return _load(function, signature, folder)

    return decorate


def _load(function: Function, signature: Any, folder: Path) -> Function:
    before, config.CACHE_DIR = config.CACHE_DIR, str(folder / "code")
    try:
        compiled = numba.njit(signature, nogil=True, cache=True)(function)
    finally:
        config.CACHE_DIR = before
    return cast("Function", compiled)


@cache
def cache_folder() -> Path | None:
    """Folder of the machine code of this source, CPU and numba; None if no folder is writable.

    It is in NUMBA_CACHE_DIR if that is set, otherwise in ~/.cache/limbeck, otherwise in the folder for temporary
    files. numba itself compares only the time and size of one source file.
    """
    if config.DISABLE_JIT:
        raise RecipeError("NUMBA_DISABLE_JIT is set, but views are rendered by compiled code; unset it")
    identity = hashlib.sha256(repr(_identity()).encode()).hexdigest()[:16]
    own = Path(tempfile.gettempdir(), f"limbeck-{os.getuid()}")
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "limbeck")
    for parent in (Path(chosen),) if chosen else (user, own):
        folder = parent / "kernels" / identity
        try:
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if parent.stat().st_uid == os.getuid() or chosen: 
                folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=folder).close()
                return folder
        except OSError:
            continue
    log_line("no writable folder for compiled kernels: every process compiles them; set NUMBA_CACHE_DIR")
    return None


def _identity() -> list[Any]:
    """All that the machine code depends on."""
    sources = [path.read_bytes() for path in sorted(SOURCES.glob("*.py"))]
    cpu = llvmlite.binding.get_host_cpu_name(), llvmlite.binding.get_host_cpu_features().flatten()
    settings = sorted(item for item in os.environ.items() if item[0].startswith("NUMBA_"))
    return [numba.__version__, llvmlite.__version__, cpu, settings, sources]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process compile while the others wait, where the file system has locks."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass
        yield
