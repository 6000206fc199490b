"""Calls in a process of another user, and a folder that all users share."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

OTHER_USER = 65534


@contextmanager
def shared_folder() -> Iterator[Path]:
    """A folder in which every user may write, inside a folder that every user may list."""
    with TemporaryDirectory(dir="/tmp") as folder:
        for path in (Path(folder), Path(folder, "shared")):
            path.mkdir(exist_ok=True)
            path.chmod(0o777)
        yield Path(folder, "shared")


def by_another_user(act: Callable[[], object]) -> str:
    """Result, or exception, of a call in another process; if this user is root, it is one of another user."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(OTHER_USER)
                os.setuid(OTHER_USER)
            os.write(writing, str(act()).encode())
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as result:
        return result.read()
