"""Compile kernels with numba. Machine code is cached on disk, so only the first process on a machine compiles."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import llvmlite
import llvmlite.binding
import numba
from numba import config, types

from teacher_cache.console import log_line
from teacher_cache.errors import LimbeckError

Function = TypeVar("Function", bound=Callable[..., Any])

SOURCES = Path(__file__).parent
ROWS = types.Array(types.uint8, 2, "C", readonly=True)
"""Type of an argument: (H, N) uint8, contiguous, read only."""
ROWS_OUT = types.uint8[:, ::1]


def inline(function: Function) -> Function:
    """Make a function that kernels of the same file call."""
    compiled: Function = numba.njit(inline="always")(function)
    return compiled


def kernel(*arguments: Any) -> Callable[[Function], Function]:
    """Make a decorator that compiles a function for these types of arguments, when its module is imported.

    A kernel runs on one thread without the GIL and returns an integer or None. numba neither reorders nor fuses
    operations on floats, so the result is the same on every CPU.
    """

    def decorate(function: Function) -> Function:
        folder = cache_folder()
        if folder is None:
            compiled: Function = numba.njit(arguments, nogil=True)(function)
            return compiled
        with _locked(folder):
            try:
                return _load(function, arguments, folder)
            except Exception:  # a damaged file: unpickling may raise anything
                shutil.rmtree(folder / "code", ignore_errors=True)
                return _load(function, arguments, folder)

    return decorate


def _load(function: Function, arguments: tuple[Any, ...], folder: Path) -> Function:
    """Load the machine code of a function, or compile it and store the machine code."""
    before, config.CACHE_DIR = config.CACHE_DIR, str(folder / "code")
    try:
        compiled: Function = numba.njit(arguments, nogil=True, cache=True)(function)
    finally:
        config.CACHE_DIR = before
    return compiled


@cache
def cache_folder() -> Path | None:
    """Folder of the machine code for this source, numba and CPU; None if no folder is writable.

    numba itself compares the source of one file only, and stores the code for different CPUs under one name.
    Raises LimbeckError if numba's compiler is switched off.
    """
    if config.DISABLE_JIT:
        raise LimbeckError("NUMBA_DISABLE_JIT is set, but views are rendered by compiled code; unset the variable")
    name = hashlib.sha256(repr(_identity()).encode()).hexdigest()[:16]
    for parent in _parents():
        with suppress(OSError):
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = parent / "kernels" / name
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            return folder
    log_line(
        "no folder for compiled code is writable, so every process compiles for some seconds; "
        "set NUMBA_CACHE_DIR to a writable folder"
    )
    return None


def _identity() -> tuple[Any, ...]:
    """Everything that the machine code depends on."""
    sources = [path.read_bytes() for path in sorted(SOURCES.glob("*.py"))]
    cpu = llvmlite.binding.get_host_cpu_name(), llvmlite.binding.get_host_cpu_features().flatten()
    settings = sorted(item for item in os.environ.items() if item[0].startswith("NUMBA_"))
    return numba.__version__, llvmlite.__version__, cpu, settings, sources


def _parents() -> Iterator[Path]:
    """NUMBA_CACHE_DIR if set; otherwise the user's cache folder, then a folder for temporary files."""
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(chosen)
        return
    user = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "limbeck")  # noqa: PTH111
    if user.is_absolute():  # "~" stays if the user has no home
        yield user
    with suppress(OSError):
        temporary = Path(tempfile.gettempdir(), f"limbeck-{os.getuid()}")
        temporary.mkdir(mode=0o700, exist_ok=True)
        found = temporary.lstat()
        if found.st_uid == os.getuid() and not found.st_mode & 0o022:  # nobody else can put code into it
            yield temporary


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process compile while others wait, if the file system has locks."""
    with (folder / "lock").open("w", encoding="utf-8") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
