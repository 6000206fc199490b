"""The order of classes that are named by number."""

import re
from collections.abc import Iterable

from teacher_cache.console import log_line


def sort_classes(names: Iterable[str], numeric: bool) -> list[str]:
    """The sorted class names: as text ("10" before "2"), or the numbers in them by value ("2" before "10")."""
    return sorted(names, key=_numeric_key) if numeric else sorted(names)


def log_number_order(names: tuple[str, ...]) -> None:
    """Log a line if the order of classes that are named by number may be unexpected."""
    by_number = sort_classes(names, numeric=True)
    if list(names) != sorted(names):
        if list(names) == by_number:
            first = next(place for place, name in enumerate(sorted(names)) if name != names[place])
            log_line(f"class folders are sorted by number: class {first} is '{names[first]}'; pack each split so")
            _log_values(names)
        return
    unlike = next((place for place, name in enumerate(names) if name != by_number[place]), None)
    if unlike is not None:
        log_line(
            f"warning: class folders are sorted as text: class {unlike} is '{names[unlike]}'; in the order of "
            f"their numbers, as in timm, it is '{by_number[unlike]}'; for a teacher with that order, add "
            "--numeric for every split"
        )
    else:
        _log_values(names)


def _log_values(names: tuple[str, ...]) -> None:
    """Log a line if all classes are whole numbers, and not in order, or not equal to the class numbers."""
    if not all(re.fullmatch(r"-?[0-9]+", name) for name in names):
        return
    values = [int(name) for name in names]
    place = next((place for place, value in enumerate(values) if value != place), None)
    if values != sorted(values):
        wrong = next(place for place in range(1, len(values)) if values[place] < values[place - 1])
        log_line(
            f"warning: class {wrong} is '{names[wrong]}', after '{names[wrong - 1]}': names are not sorted by "
            "value; for another order, name all classes with --classes FILE"
        )
    elif place is not None:
        log_line(f"class {place} is folder '{names[place]}': class numbers are places in the sorted names")


def _numeric_key(name: str) -> tuple[list[str | int], str]:
    """Text and numbers of a name in turn, then the name, which orders "1" and "01"."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)], name
