"""Labeled images in class folders, in a folder or an archive."""

import json
import posixpath
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from teacher_cache.console import count_of, join_first, log_line
from teacher_cache.data.index import IMAGE_SUFFIXES
from teacher_cache.errors import ImageError, ShardError
from teacher_cache.packing.file_tree import FileTree, is_image
from teacher_cache.packing.listing_digest import listing_digest

TRAIN_SPLITS = frozenset(("train", "training"))
SPLITS = TRAIN_SPLITS | {"val", "valid", "validation", "test", "testing", "dev", "eval"}


class ClassFolders:
    """Class folders: the first folder level is the class; deeper levels are ignored."""

    def __init__(self, source: Path, tree: FileTree, split: str, classes: tuple[str, ...]) -> None:
        images = [name for name in tree.fingerprints if is_image(name)]
        root = _class_root(source, images, split)
        self._tree, self._prefix = tree, root
        self.paths = sorted(_names_below(images, root))
        if not self.paths:
            raise ShardError(
                f"no images in '{source / root}' (looked for {', '.join(IMAGE_SUFFIXES)}); "
                "give a folder with one folder of images per class"
            )
        if flat := next((path for path in self.paths if "/" not in path), None):
            raise ShardError(
                f"image '{source / root / flat}' is not in a class folder; create one folder per class"
            )
        reference = (_training_classes(images, root) if split else set()) or _top_folders(self.paths)
        self.classes = classes or tuple(sorted(reference))
        numbers = {name: number for number, name in enumerate(self.classes)}
        if unknown := sorted(_top_folders(self.paths) - numbers.keys()):
            close_matches = get_close_matches(unknown[0], numbers, n=1)
            hint = f", did you mean '{close_matches[0]}'" if close_matches else ""
            origin = "given" if classes else "of the training split"
            raise ShardError(
                f"class folder '{unknown[0]}' of '{source / root}' is not among the {len(numbers)} classes "
                f"{origin} ({join_first(self.classes)}){hint}; rename it, or name all classes with --classes FILE"
            )
        if source.is_dir() and (empty := sorted(_folders(source / root) - _top_folders(self.paths))):
            log_line(
                f"no images in class folder '{source / root}/{empty[0]}': "
                f"{count_of(len(empty), 'folder')} left out"
            )
        self.labels = [numbers[path.partition("/")[0]] for path in self.paths]
        fingerprints = [
            (tree.fingerprints[root + path], tree.fingerprints.get(_sidecar(root + path))) for path in self.paths
        ]
        self.fingerprint = listing_digest([self.paths, fingerprints])

    def read(self, number: int) -> tuple[str, bytes, bytes | None]:
        path = self.paths[number]
        name = self._prefix + path
        fields = self._sidecar_fields(_sidecar(name)) | {"filename": path, "class": path.partition("/")[0]}
        suffix = posixpath.splitext(path)[1][1:].lower().replace("jpeg", "jpg")
        return suffix, self._tree.read(name), json.dumps(fields).encode()

    def _sidecar_fields(self, sidecar: str) -> dict[str, object]:
        if sidecar not in self._tree.fingerprints:
            return {}
        try:
            fields = json.loads(self._tree.read(sidecar))
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            raise ImageError(f"its sidecar '{sidecar}' is not a JSON object; fix or remove it")
        return fields


def _class_root(source: Path, images: list[str], split: str) -> str:
    """The parent of the class folders, as a prefix ending in "/"; "" if it is the source itself.

    Raises ShardError if the split does not exist, or there are several and none is chosen.
    """
    parent = "" if source.is_dir() else _wrapper_folder(images)
    top_folders = sorted(_top_folders(_names_below(images, parent)))
    listed = ", ".join(top_folders[:5]) + (" ..." if len(top_folders) > 5 else "")
    if split:
        root = f"{parent}{split.strip('/')}/"
        if not _names_below(images, root):
            raise ShardError(f"no images in split '{split}' of '{source}'; available folders: {listed or 'none'}")
        return root
    if top_folders and all(top.lower() in SPLITS for top in top_folders):
        raise ShardError(f"'{source}' contains the splits {listed}; choose one, e.g. --split {top_folders[0]}")
    return parent


def _wrapper_folder(images: list[str]) -> str:
    """The single top folder of an archive that contains all class folders or splits, with "/"; or ""."""
    top = images[0].partition("/")[0] if images else ""
    is_wrapped = all(name.startswith(f"{top}/") and name.count("/") >= 2 for name in images)
    return f"{top}/" if top and is_wrapped and top.lower() not in SPLITS else ""


def _training_classes(images: list[str], root: str) -> set[str]:
    """The class folders of the training split next to this one, so that all splits have the same labels."""
    parent = root[: root.rstrip("/").rfind("/") + 1]
    splits = sorted(_top_folders(_names_below(images, parent)))
    train = next((top for top in splits if top.lower() in TRAIN_SPLITS), None)
    return _top_folders(_names_below(images, f"{parent}{train}/")) if train else set()


def _folders(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}


def _top_folders(paths: Iterable[str]) -> set[str]:
    return {path.partition("/")[0] for path in paths if "/" in path}


def _names_below(names: list[str], root: str) -> list[str]:
    return [name.removeprefix(root) for name in names if name.startswith(root)]


def _sidecar(name: str) -> str:
    return posixpath.splitext(name)[0] + ".json"
