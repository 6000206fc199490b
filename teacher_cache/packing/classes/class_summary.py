"""Log which classes a source has, and which of them have few images or none."""

from collections import Counter
from statistics import median

from teacher_cache.console import count_of, join_first, log_line
from teacher_cache.packing.classes.class_order import log_number_order

FEW = 0.1
"""Classes with at most this ratio of the median number of images are reported."""
DISTRACTORS = frozenset(("background_google", "257.clutter"))
"""Folders of Caltech-101 and Caltech-256, in lower case, with images of no class."""


def log_classes(classes: tuple[str, ...], labels: list[int]) -> None:
    """Log the classes, and the smallest, median and largest number of images of those that have any."""
    found = Counter(labels)
    counts = {name: found[number] for number, name in enumerate(classes)}
    present = {name: count for name, count in counts.items() if count}
    middle = median(present.values())
    log_line(
        f"{count_of(len(classes), 'class', 'classes')}: {join_first(classes, 5)}; images per class: "
        f"min {min(present.values()):,}, median {middle:,g}, max {max(present.values()):,}"
    )
    if absent := [name for name, count in counts.items() if not count]:
        log_line(f"warning: {count_of(len(absent), 'class', 'classes')} without images: {join_first(absent)}")
    limit = max(FEW * middle, 1)
    if few := [f"{name} ({count:,})" for name, count in present.items() if count <= limit and count < middle]:
        log_line(
            f"warning: {count_of(len(few), 'class', 'classes')} with few images, next to a median of {middle:,g}: "
            f"{join_first(few)}; check the folders"
        )
    if extra := [name for name in present if name.casefold() in DISTRACTORS]:
        log_line(f"warning: '{extra[0]}' is packed as a class; remove the folder if it is not one")
    log_number_order(classes)
