"""Files that are on disk wholly or not at all, whatever is killed."""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block ends well, its file becomes `path`, durably and in one step."""
    temporary = _beside(path)
    try:
        with _named(path):
            yield temporary
            sync_file(temporary)
            temporary.replace(path)
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Gives an OSError that names no file this one's name: a full disk is told by its number alone."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder; when the block ends well, it becomes `path` in one step.

    Raises FileExistsError where `path` holds something by then: nothing is ever replaced.
    """
    temporary = _beside(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            sync_file(file)
        sync_folder(temporary)
        try:
            temporary.rename(path)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise FileExistsError(f"'{path}' is there already") from None
            raise
        sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(path: Path) -> Path:
    """A name that no other process, on this machine or another, will choose."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that it is there wholly or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write a value as an indented JSON file, as `write_atomic` does."""
    write_atomic(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Indented JSON with a final newline."""
    return (json.dumps(value, indent=1) + "\n").encode()


def create_exclusive(path: Path, data: bytes) -> bool:
    """Write a new file wholly or not at all; False, and nothing changed, where there is one already."""
    temporary = _beside(path)
    try:
        with _named(path):
            temporary.write_bytes(data)
            sync_file(temporary)
            return _link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _link(temporary: Path, path: Path) -> bool:
    """Give a whole file its name, where nothing bears it yet; returns whether that was so."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        return _created(path, temporary.read_bytes())
    sync_folder(path.parent)
    return True


def _created(path: Path, data: bytes) -> bool:
    """On a file system without links: the first is the first, but a kill may leave the file cut short."""
    try:
        file = path.open("xb")
    except FileExistsError:
        return False
    with file:
        file.write(data)
    sync_file(path)
    sync_folder(path.parent)
    return True


def make_folder(path: Path) -> None:
    """Make a folder and those above it, durably."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in new:
        sync_folder(folder.parent)


def sync_file(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


sync_folder = sync_file  # a folder is synced, its renames with it, just as a file is
