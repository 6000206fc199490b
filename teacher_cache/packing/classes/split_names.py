"""Names of folders that are not classes: splits ("train2017", "seg_test") and other parts ("images", "masks")."""

import re
from collections.abc import Iterable

TRAIN = "train"
ROLES = {
    **dict.fromkeys(("train", "training", "trainset", "traindata", "trn"), TRAIN),
    **dict.fromkeys(("val", "vals", "valid", "validation", "validate", "valset", "minival"), "val"),
    **dict.fromkeys(("test", "tests", "testing", "testset", "testdata", "tst"), "test"),
    **dict.fromkeys(("dev", "devel", "eval", "evaluate", "evaluation", "holdout", "heldout", "unseen"), "eval"),
    **dict.fromkeys(("pred", "predict", "prediction", "predictions", "infer", "inference"), "predict"),
    **dict.fromkeys(("unlabeled", "unlabelled", "unsup", "unsupervised"), "unlabeled"),
    **dict.fromkeys(("trainval", "extra", "hold", "submission"), "other"),
}
"""The role of each word that names a split."""
WEAK = frozenset(("hold", "unseen"))
"""Words that name a split only next to another split: they are also classes (hold and release)."""
FILLERS = frozenset(
    (
        *("data", "dataset", "datasets", "set", "sets", "split", "splits", "folder", "file", "files", "sample"),
        *("image", "images", "img", "imgs", "photo", "photos", "pic", "pics", "picture", "pictures", "digits"),
        *("class", "classes", "object", "objects", "jpeg", "jpg", "png", "raw", "resized", "original", "samples"),
        *("all", "final", "full", "large", "of", "out", "private", "public", "small", "standard", "the"),
    )
)
"""Words that a split's name may have too: "training_set", "test images"."""
PARTS = frozenset(
    (
        *("image", "images", "img", "imgs", "meta", "metadata", "label", "labels", "annotation", "annotations"),
        *("annos", "bbox", "bboxes", "gt", "groundtruth", "mask", "masks", "segmentation", "segmentations"),
        *("trimap", "trimaps"),
    )
)
"""Words that name a part of a data set."""


def split_roles(names: Iterable[str]) -> dict[str, str]:
    """The roles of the names that are splits: nothing but words of splits and fillers, digits and single letters.

    Other words are allowed if another name has the same ones and another role: "seg_train" and "seg_test".
    """
    found = {name: (role, rest) for name in names for role, rest in [_parse(name)] if role}
    roles_by_rest: dict[tuple[str, ...], set[str]] = {}
    for role, rest in found.values():
        roles_by_rest.setdefault(rest, set()).add(role)
    roles = {name: role for name, (role, rest) in found.items() if not rest or len(roles_by_rest[rest]) > 1}
    return {} if all(WEAK & set(_words(name)) for name in roles) else roles


def split_role(name: str) -> str:
    """The role of a name that begins or ends with a word of a split; "" if it does neither."""
    return _parse(name)[0]


def is_series(name: str) -> bool:
    """Whether a name has a single letter besides other words, such as "trainA" or "train_a"."""
    words = _words(name)
    return len(words) > 1 and any(len(word) == 1 for word in words)


def is_part(name: str) -> bool:
    """Whether a name has only words of parts, such as "images", "ground_truth" or "SegmentationClass"."""
    words = _words(name)
    is_numbered = any(character.isdigit() for character in name)
    joined = "".join(words)
    return not is_numbered and (
        joined in PARTS or (bool(PARTS & set(words)) and all(word in PARTS | FILLERS for word in words))
    )


def _parse(name: str) -> tuple[str, tuple[str, ...]]:
    """The role of a name, and its words that are neither of a split nor fillers."""
    words = _words(name)
    ends = [word for word in (*words[:1], *words[-1:]) if word in ROLES]
    inner = [word for word in words if word in ROLES]
    rest = tuple(word for word in words if word not in ROLES and word not in FILLERS and len(word) > 1)
    role = ROLES[ends[0]] if ends else ROLES[inner[0]] if inner and not rest else ""
    return role, rest


def _words(name: str) -> list[str]:
    """Lower-case words: "PublicTest_2" has the words public, test."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return re.findall(r"[^\W\d_]+", spaced.casefold())
