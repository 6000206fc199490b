"""Labeled images in class folders, in a folder or an archive."""

import json
import posixpath
import re
from collections import Counter
from difflib import get_close_matches
from pathlib import Path

from teacher_cache.config import digest_of
from teacher_cache.console import count_of, join_first, log_line
from teacher_cache.data.index import IMAGE_SUFFIXES
from teacher_cache.errors import ShardError
from teacher_cache.packing.classes.class_order import sort_classes
from teacher_cache.packing.classes.folder_layout import find_class_root
from teacher_cache.packing.classes.image_folders import ImageFolders
from teacher_cache.packing.classes.split_names import is_part, split_role
from teacher_cache.packing.file_tree import FileTree
from teacher_cache.packing.folder_tree import FolderTree
from teacher_cache.packing.image_formats import describe_left_out, member_suffix, split_images, suffix_of

TABLE_SUFFIXES = frozenset(
    ("csv", "h5", "json", "jsonl", "lst", "mat", "npy", "parquet", "pkl", "tsv", "txt", "xml")
)
"""Suffixes of files that may contain labels."""


class ClassFolders:
    """Class folders: the first folder level is the class; deeper levels are ignored."""

    def __init__(
        self, source: Path, tree: FileTree, split: str, classes: tuple[str, ...], numeric: bool, sidecar: str
    ) -> None:
        if numeric and classes:
            raise ShardError("--numeric and --classes both set the order of the classes; give only one of them")
        self._tree, self._sidecar_suffix = tree, sidecar
        images, others = split_images(tree)
        if not images:
            raise ShardError(
                f"no images in '{source}' (found {describe_left_out(Counter(others.values())) or 'no files'}, "
                f"looked for {', '.join(IMAGE_SUFFIXES)}); give a folder with one folder of images per class"
            )
        root = find_class_root(ImageFolders(images), source, split, classes)
        where = source / root.prefix
        self._prefix = root.prefix
        self.paths = sorted(path.removeprefix(root.prefix) for path in images if path.startswith(root.prefix))
        folders = {path.partition("/")[0] for path in self.paths if "/" in path}
        names = classes or tuple(sort_classes(root.training or folders, numeric))
        _require_class_folders(where, self.paths, folders, names if classes or root.training else (), others)
        self.classes = names
        numbers = {name: number for number, name in enumerate(names)}
        if unknown := sorted(folders - numbers.keys()):
            close_matches = get_close_matches(unknown[0], numbers, n=1)
            hint = f", did you mean '{close_matches[0]}'" if close_matches else ""
            origin = "given" if classes else "of the training split"
            raise ShardError(
                f"class folder '{unknown[0]}' of '{where}' is not among the {len(numbers)} classes "
                f"{origin} ({join_first(names)}){hint}; rename it, or name all classes with --classes FILE"
            )
        self.labels = [numbers[path.partition("/")[0]] for path in self.paths]
        sidecars = {path: name for path in self.paths if (name := self._sidecar(path))}
        states = tree.fingerprints
        self.fingerprint = digest_of(
            [self.paths, [(states[root.prefix + path], states.get(sidecars.get(path, ""))) for path in self.paths]]
        )
        subfolders = tree.subfolders(root.prefix) if isinstance(tree, FolderTree) else set[str]()
        _log_left_out(where, folders, subfolders, others, root.chosen, set(sidecars.values()))
        if sidecar:
            log_line(f"{count_of(len(sidecars), 'image')} of {len(self.paths):,} have a .{sidecar} sidecar")

    def read(self, number: int) -> tuple[str, bytes, bytes | None]:
        path = self.paths[number]
        data = self._tree.read(self._prefix + path)
        fields = self._sidecar_fields(path) | {"filename": path, "class": path.partition("/")[0]}
        return member_suffix(path, data), data, json.dumps(fields).encode()

    def _sidecar(self, path: str) -> str:
        """The path in the tree of an image's sidecar: 1.json or 1.jpg.json for 1.jpg; "" if it has none."""
        if not self._sidecar_suffix:
            return ""
        name = self._prefix + path
        candidates = (f"{stem}.{self._sidecar_suffix}" for stem in (posixpath.splitext(name)[0], name))
        return next((candidate for candidate in candidates if candidate in self._tree.fingerprints), "")

    def _sidecar_fields(self, path: str) -> dict[str, object]:
        """The fields of an image's sidecar. Raises ShardError if it is not a JSON object."""
        sidecar = self._sidecar(path)
        if not sidecar:
            return {}
        try:
            fields = json.loads(self._tree.read(sidecar))
            reason = f"it is a JSON {type(fields).__name__}"
        except (ValueError, RecursionError) as error:
            fields, reason = None, f"it cannot be parsed: {error}"
        if not isinstance(fields, dict):
            raise ShardError(
                f"sidecar '{sidecar}' of image '{path}' is not a JSON object ({reason}); fix or remove it, "
                "or omit --sidecar"
            )
        return fields


def _require_class_folders(
    where: Path, paths: list[str], folders: set[str], known: tuple[str, ...], others: dict[str, str]
) -> None:
    """Raise ShardError if an image is not in a class folder, or all are in one folder that is not a class.

    known: the class names, if they are given or those of the training split.
    """
    flat = next((path for path in paths if "/" not in path), None)
    if flat is None and (len(folders) > 1 or known):
        only = next(iter(folders))
        if len(folders) > 1 or only in known or not (is_part(only) or split_role(only)):
            return
    hint = _label_hint(paths, others)
    if flat is not None:
        raise ShardError(f"image '{where / flat}' is not in a class folder; create one folder per class{hint}")
    raise ShardError(
        f"all {count_of(len(paths), 'image')} of '{where}' are in one folder, '{folders.pop()}', so all would "
        f"have class 0; create one folder per class{hint}"
    )


def _label_hint(paths: list[str], others: dict[str, str]) -> str:
    """The file names or tables that may contain the labels of images without class folders."""
    stems = {re.sub(r"[\W\d_]+$", "", posixpath.splitext(posixpath.basename(path))[0]) for path in paths}
    if "" not in stems and 1 < len(stems) <= len(paths) / 2:
        return f" (the file names begin with {join_first(sorted(stems))})"
    tables = sorted((path.count("/"), path) for path in others if suffix_of(path) in TABLE_SUFFIXES)
    return f" (the labels may be in {join_first([path for _, path in tables])})" if tables else ""


def _log_left_out(
    where: Path, folders: set[str], subfolders: set[str], others: dict[str, str], chosen: str, sidecars: set[str]
) -> None:
    kinds = Counter(kind for path, kind in others.items() if path.startswith(chosen) and path not in sidecars)
    if kinds:
        log_line(f"left out: {describe_left_out(kinds)}")
    if empty := sorted(subfolders - folders):
        log_line(f"no images in class folder '{where}/{empty[0]}': {count_of(len(empty), 'folder')} left out")
