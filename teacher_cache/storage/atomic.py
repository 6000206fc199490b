"""Atomic and durable writes: after a crash, a file or folder is complete or does not exist."""

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
    """Yield a temporary path. If the block succeeds, sync its file and rename it to `path` in one step."""
    temporary = _temporary_path(path)
    with _with_file_name(path, temporary):
        try:
            yield temporary
            sync_file(temporary)
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _with_file_name(path: Path, temporary: Path) -> Iterator[None]:
    """Name the final path in an OSError that names the temporary one, or none (as a write to a full disk)."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            name = str(error.filename or path)
            error.filename = name.replace(str(temporary), str(path), 1)
            error.filename2 = None
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder. If the block succeeds, sync it and rename it to `path` in one step.

    Raises FileExistsError if `path` is a file or a folder that is not empty; it is never replaced.
    """
    temporary = _temporary_path(path)
    try:
        with _with_file_name(path, temporary):
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.rglob("*"):
                sync_file(file)
            sync_folder(temporary)
            try:
                temporary.rename(path)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise FileExistsError(f"'{path}' already exists") from None
                raise
            sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary_path(path: Path) -> Path:
    """Hidden path in the same folder with a random name, so that no two writers share it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def write_atomic(path: Path, data: bytes) -> None:
    """Write or replace a file atomically and durably."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write a value as an indented JSON file, as `write_atomic` does."""
    write_atomic(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Indented JSON with a final newline."""
    return (json.dumps(value, indent=1) + "\n").encode()


def create_exclusive(path: Path, data: bytes) -> bool:
    """Write a new file atomically and durably; return False and change nothing if it exists."""
    temporary = _temporary_path(path)
    with _with_file_name(path, temporary):
        try:
            temporary.write_bytes(data)
            sync_file(temporary)
            return _link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _link(temporary: Path, path: Path) -> bool:
    """Link a complete file to `path`; return False if `path` exists."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        return _create_without_link(path, temporary.read_bytes())
    sync_folder(path.parent)
    return True


def _create_without_link(path: Path, data: bytes) -> bool:
    """Fallback for file systems without hard links. A killed process may leave an incomplete file."""
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
    """Create a folder and its missing parents durably."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in new:
        sync_folder(folder.parent)


def sync_file(path: Path) -> None:
    """Write a file's data to the disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


sync_folder = sync_file  # fsync of a folder makes its entries durable: new files and renames
