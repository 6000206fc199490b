"""Files at paths that users name: a file is replaced only by the command and the inputs that made it.

A file of Limbeck has its origin near its start: as a JSON key, a comment or PNG metadata.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from teacher_cache.errors import RecipeError

HEAD_BYTES = 65536
"""Bytes at the start of a file that are searched for its origin."""
ADVICE = "choose another path, or add --overwrite"


def origin_of(command: str, *inputs: object) -> str:
    """Text that identifies a command and its inputs, for the files it writes. inputs: JSON values and paths."""
    resolved = json.dumps(inputs, sort_keys=True, default=lambda path: str(Path(path).resolve()))
    return f"limbeck {command} {hashlib.sha256(resolved.encode()).hexdigest()[:16]}"


def check_outputs(files: Mapping[str, Path | None], origin: str, overwrite: bool) -> None:
    """Check before a long job that its files can be written.

    files: path by option; None is not written. Raises RecipeError if a file has another origin (unless overwrite),
    is not a file, is given twice, or cannot be created.
    """
    options: dict[Path, str] = {}
    for option, path in files.items():
        if path is None:
            continue
        where = f"{option} '{path}'"
        if other := options.get(path.resolve()):
            raise RecipeError(f"{where} is also the path of {other}; choose two paths")
        options[path.resolve()] = option
        if path.is_dir():
            raise RecipeError(f"{where} is a folder; give the path of a file")
        if path.exists() and not path.is_file():
            raise RecipeError(f"{where} is a device or pipe; give the path of a file")
        if not overwrite and path.exists() and not has_origin(path, origin):
            raise RecipeError(f"{where} exists, and not from this command with the same inputs; {ADVICE}")
        if not path.parent.is_dir():
            raise RecipeError(f"{where}: the folder '{path.parent}' does not exist; create it")
        _check_writable(path.parent, where)


def check_output_folder(folder: Path, option: str, main_file: str, origin: str, overwrite: bool) -> None:
    """Check before a long job that its folder, whose main file has the origin, can be written.

    Raises RecipeError if the folder is not empty and has another origin (unless overwrite), or cannot be created.
    """
    where, page = f"{option} '{folder}'", folder / main_file
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"{where} is a file; give the path of a folder")
    used = folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir())
    if used and not overwrite and not (page.is_file() and has_origin(page, origin)):
        raise RecipeError(f"{where} has files, and not from this command with the same inputs; {ADVICE}")
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise RecipeError(f"{where}: '{existing}' is a file; choose another path")
    _check_writable(existing, where)


def has_origin(path: Path, origin: str) -> bool:
    """Whether a file has been written with this origin."""
    with path.open("rb") as file:
        return origin.encode() in file.read(HEAD_BYTES)


def _check_writable(folder: Path, where: str) -> None:
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".limbeck-"):
            pass
    except OSError as error:
        raise RecipeError(f"{where}: cannot write in '{folder}': {error.strerror}; choose another path") from None
