"""Find the class folders of a data set: below wrapper folders and in one split."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from teacher_cache.console import join_first, log_line
from teacher_cache.errors import ShardError
from teacher_cache.packing.classes.image_folders import ImageFolders
from teacher_cache.packing.classes.split_names import TRAIN, is_part, is_series, split_role, split_roles
from teacher_cache.storage.file_name import escape

CLASSES_TOO = frozenset(("train", "valid", "extra"))
"""Names of splits that are also words for classes."""
FEW_CLASSES = 2
"""Up to this many other folders, a folder named like a split is not taken for a class."""


@dataclass(frozen=True)
class ClassRoot:
    """The folder of the class folders, and the class folders of its training split.

    prefix: "" for the source, else ending in "/". chosen: the prefix of the split; `prefix` is it, or below it.
    training: () without a training split next to this one.
    """

    prefix: str
    chosen: str
    training: tuple[str, ...]


def find_class_root(folders: ImageFolders, source: Path, split: str, classes: tuple[str, ...]) -> ClassRoot:
    """Find the class folders of a source, or of one split of it.

    classes: the given class names, or (); folders that all have such names are classes.
    Raises ShardError if the split does not exist, or if the folders are splits and none is chosen.
    """
    given = frozenset(classes)
    top = folders.below_wrappers("", given)
    chosen = _find_split(folders, source, top, split) if split else ""
    training = _training_classes(folders, chosen) if split else ()
    known = given or frozenset(training)
    prefix = folders.below_wrappers(chosen, known)
    if prefix != chosen:
        log_line(f"the class folders are in '{source / prefix}'")
    if not set(folders.children(prefix)) <= known:
        _require_classes(folders, source, prefix, split)
    return ClassRoot(prefix, chosen, training)


def _find_split(folders: ImageFolders, source: Path, top: str, split: str) -> str:
    name = split.strip("/")
    for prefix in (f"{name}/", f"{top}{name}/"):
        if prefix in folders:
            return prefix
    listed = _join(folders.children(top))
    raise ShardError(f"no images in split '{escape(split)}' of '{source}'; available folders: {listed or 'none'}")


def _training_classes(folders: ImageFolders, chosen: str) -> tuple[str, ...]:
    """The class folders of the training split next to this one, so that all splits have the same labels."""
    parent, _, name = chosen.rstrip("/").rpartition("/")
    parent = f"{parent}/" if parent else ""
    if split_role(name) == TRAIN:
        return ()
    siblings = split_roles(folders.children(parent))
    trains = [sibling for sibling, role in siblings.items() if role == TRAIN]
    found = (
        _class_folders(folders, f"{parent}{train}/") for train in sorted(trains, key=lambda one: (len(one), one))
    )
    return tuple(next((classes for classes in found if classes), ()))


def _class_folders(folders: ImageFolders, prefix: str) -> list[str]:
    """The class folders below the wrappers of a folder; [] if there are images next to them.

    A lone folder called "images", or like its parent ("seg_pred/seg_pred"), is not a class folder.
    """
    below = folders.below_wrappers(prefix)
    children = [] if folders.has_images(below) else folders.children(below)
    parent = prefix.rstrip("/").rpartition("/")[2]
    return [] if len(children) == 1 and (is_part(children[0]) or children[0] == parent) else children


def _require_classes(folders: ImageFolders, source: Path, prefix: str, split: str) -> None:
    """Raise ShardError if the folders under a prefix are splits or other parts of a data set, not classes."""
    names = folders.children(prefix)
    if len(names) < 2:
        return
    where = source / prefix
    inner = {name: _class_folders(folders, f"{prefix}{name}/") for name in names}
    nested = [name for name in names if inner[name]]
    example = f"{split.strip('/')}/" if split else ""
    advice = "if they are the classes, name all of them with --classes FILE"
    if _are_splits(names, inner):
        kind = "splits" if any(map(split_role, names)) else "parts"
        choice = f"--split {example}{_example(nested or names)}"
        raise ShardError(f"'{where}' contains the {kind} {_join(names)}; choose one, e.g. {choice}; {advice}")
    if common := _common_folders(inner[name] for name in nested) if 2 * len(nested) > len(names) else []:
        is_split = len(set(split_roles(common).values())) > 1
        if is_split or len(common) >= len(nested):
            choice = f"choose one, e.g. --split {example}{_example(nested)}"
            if is_split:
                advice = f"{choice}; {advice}"
            else:
                advice = f"{advice}; if {join_first(common)} are the classes, {choice}"
            raise ShardError(f"the folders {_join(names)} of '{where}' all contain {join_first(common)}; {advice}")
    roles = split_roles(names)
    suspects = [name for name in roles if name.casefold() not in CLASSES_TOO and not is_series(name)]
    if suspects and len(names) - len(roles) <= FEW_CLASSES:
        raise ShardError(
            f"folder '{suspects[0]}' of '{where}' is named like a split, but it is next to class folders "
            f"({_join(names)}); move it elsewhere, or, {advice}"
        )
    if roles:
        log_line(f"'{where}': {_join(list(roles))} is packed as a class, although it is named like a split")


def _example(names: list[str]) -> str:
    """The training split if there is one, else another split, else images before masks and other parts."""
    roles = split_roles(names)

    def order(name: str) -> tuple[bool, bool, bool, int, str]:
        is_image = "im" in name.casefold()
        is_train = roles.get(name) == TRAIN
        return not is_train, name not in roles, is_part(name) and not is_image, is_train * len(name), name

    return min(names, key=order)


def _are_splits(names: list[str], inner: dict[str, list[str]]) -> bool:
    """Whether some of the folders are splits or parts. inner: the class folders in each."""
    splits = split_roles(names)
    parts = splits.keys() | set(filter(is_part, names))
    others = [name for name in names if name not in parts]
    if parts and not others:
        return True
    if any(inner[name] for name in parts) and not any(inner[name] for name in others):
        return True  # class folders are in the splits only
    if len(set(splits.values())) > 1:
        return 2 * len(splits) >= len(names) or bool(_common_folders(inner[name] for name in splits))
    roles = {split_role(name) for name in names}
    return "" not in roles and len(roles) > 1 and any(inner.values())


def _common_folders(groups: Iterable[list[str]]) -> list[str]:
    """The names that are in every group; [] if fewer than two, or than half of the smallest group."""
    sets = [set(group) for group in groups if group]
    common = sorted(set.intersection(*sets)) if len(sets) > 1 else []
    return common if len(common) >= 2 and 2 * len(common) >= min(map(len, sets)) else []


def _join(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
