"""Sources of labeled images in a fixed order: class folders, archives of them, IDX files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from teacher_cache.errors import ShardError
from teacher_cache.packing.class_folders import ClassFolders
from teacher_cache.packing.file_tree import open_tree
from teacher_cache.packing.idx_files import IdxFiles, idx_splits


class Images(Protocol):
    """Labeled images, numbered in a fixed order of their source."""

    paths: list[str]
    labels: list[int]
    classes: tuple[str, ...]
    fingerprint: str
    """sha256 of the listing: changes if an image, its size, its time or its sidecar changes."""

    def read(self, number: int) -> tuple[str, bytes, bytes | None]:
        """Suffix without dot ("jpg"), encoded bytes, JSON metadata. Raises ImageError if the image is damaged."""


@contextmanager
def open_images(
    source: Path, split: str, classes: tuple[str, ...], scratch: Path, numeric: bool = False, sidecar: str = ""
) -> Iterator[Images]:
    """Open the images of a folder, an archive or IDX files.

    split: the subfolder, or "train" / "test" for IDX files.
    classes: class names by label; (): the sorted folder names (of the training split if it is in the same
    folder), or the numbers in IDX files.
    scratch: a folder with enough space for an unpacked .tar.gz.
    numeric: sort the folder names by the numbers in them.
    sidecar: suffix of the files beside images whose fields become metadata ("json"); "" reads none.
    Raises ShardError if the source is missing, damaged or empty, or contains several splits and `split` is "".
    """
    if len(set(classes)) < len(classes):
        raise ShardError(
            f"class name '{max(classes, key=classes.count)}' occurs twice; give each class another name"
        )
    if not source.exists():
        raise ShardError(f"source '{source}' does not exist; check the path")
    if idx_splits(source):
        if sidecar:
            raise ShardError(f"the IDX files in '{source}' have no sidecars; omit --sidecar")
        yield IdxFiles(source, split, classes)
        return
    with open_tree(source, scratch) as tree:
        yield ClassFolders(source, tree, split, classes, numeric, sidecar)
