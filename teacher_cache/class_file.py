"""Class files (--classes): text files with one class name per line; the first line is class 0."""

import re
import unicodedata
from pathlib import Path

from teacher_cache.console import log_line
from teacher_cache.errors import ShardError
from teacher_cache.storage.file_name import UNWRITABLE
from teacher_cache.text import decode_text


def read_class_names(path: Path | None) -> tuple[str, ...]:
    """Class names from a file with one per line; () without a file. Raises ShardError.

    Names are normalized to Unicode NFC, like names of class folders. Spaces around a name and empty lines at the
    end of the file are ignored.
    """
    if path is None:
        return ()
    try:
        text = decode_text(path.read_bytes(), f"class names '{path}'", ShardError)
    except OSError as error:
        raise ShardError(f"class names '{path}' cannot be read: {error.strerror}; check the path") from None
    names = [unicodedata.normalize("NFC", line.strip()) for line in text.rstrip().split("\n")]
    if names == [""]:
        raise ShardError(f"class names '{path}' is empty; write one name per line")
    lines: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        where = f"class names '{path}': line {number}"
        if not name:
            raise ShardError(f"{where} is empty; every class needs a name")
        if UNWRITABLE.search(name):
            raise ShardError(
                f"{where} has a tab, control character or line break: {name!r}; write one name per line"
            )
        if name in lines:  # as in lists of ImageNet: two birds and machines are called "crane"
            log_line(f"{where} has the name of line {lines[name]}: '{name}'; both are classes of their own")
        lines.setdefault(name, number)
    _report_numbered_names(path, names)
    return tuple(names)


def _report_numbered_names(path: Path, names: list[str]) -> None:
    """Log a line if every name begins with a number or a synset id, e.g. "n01440764 tench" or "0: tench"."""
    if all(re.match(r"(n\d{8}|\d+)[\s:,;]+\S", name) for name in names):
        log_line(
            f"class names '{path}': every line begins with a number or an id, such as '{names[0]}'; "
            "the whole line is the name of the class"
        )
