"""What the command line sets up before it runs a command: UTF-8, the standard streams, and warnings."""

import io
import locale
import os
import sys
import warnings
from pathlib import Path
from typing import TextIO

from teacher_cache.console import log_line

DEVELOPER_WARNINGS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning, ResourceWarning)
"""Categories of warnings that users cannot act on."""


def open_closed_streams() -> None:
    """Open each closed standard stream as /dev/null.

    Otherwise the next socket would get its file descriptor, and printed text would go to that socket.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def use_utf8() -> None:
    """Restart Python in UTF-8 mode if the locale has another encoding.

    File names, the text files of all libraries, and child processes then have UTF-8. The standard streams keep the
    locale's encoding; other characters are printed as escapes.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        streams = {"PYTHONIOENCODING": f"{locale.getencoding()}:backslashreplace"}
        environment = streams | os.environ | {"PYTHONUTF8": "1"}
        os.execve(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]], environment)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None if the stream was closed
            stream.reconfigure(errors="backslashreplace")


def show_plain_warnings() -> None:
    """Print warnings of libraries as plain lines, without the file and line of the library's source.

    Child processes print no warnings. Does nothing if -W or PYTHONWARNINGS is set.
    """
    os.environ.setdefault(
        "TORCH_CPP_LOG_LEVEL", "ERROR"
    )  # warnings of torch's C++ code have the path of a source file
    if sys.warnoptions:
        return
    os.environ["PYTHONWARNINGS"] = "ignore"
    warnings.showwarning = _print_warning
    for category in DEVELOPER_WARNINGS:
        warnings.simplefilter("ignore", category)
    warnings.filterwarnings("ignore", module="PIL")  # warnings about images with unusual metadata


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    first_line = str(message).strip().partition("\n")[0].partition(" (Triggered internally")[0]
    log_line(f"warning from {_library_of(filename)}: {first_line}")


def _library_of(filename: str) -> str:
    """The top-level package of a source file."""
    parts = Path(filename).parts
    folder = max((number for number, part in enumerate(parts) if part == "site-packages"), default=-1)
    return parts[folder + 1].removesuffix(".py") if folder >= 0 else Path(filename).stem
