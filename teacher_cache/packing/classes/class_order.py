"""The order of classes that are named by number."""

import re
from collections.abc import Iterable

from teacher_cache.console import log_line


def sort_classes(names: Iterable[str], numeric: bool) -> list[str]:
    """The sorted class names: as text ("10" before "2"), or the numbers in them by value ("2" before "10")."""
    return sorted(names, key=_numeric_key) if numeric else sorted(names)


def log_number_order(names: tuple[str, ...]) -> None:
    """Log a line if classes sorted as text are in another order by number. Zero-padded names are not."""
    if list(names) != sorted(names):
        return
    by_number = sort_classes(names, numeric=True)
    place = next((place for place, name in enumerate(names) if name != by_number[place]), None)
    if place is not None:
        log_line(
            f"warning: class folders are sorted as text: class {place} is '{names[place]}'; in the order of their "
            f"numbers, as in timm, it is '{by_number[place]}'; for a teacher with that order, add --numeric"
        )


def _numeric_key(name: str) -> tuple[list[str | int], str]:
    """Text and numbers of a name in turn, then the name, which orders "1" and "01"."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)], name
