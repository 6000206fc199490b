"""Labeled test sets: shards with their own labels, or with labels from a JSON file next to the index."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from teacher_cache.console import join_first
from teacher_cache.data.index import ShardIndex, includes_classes, load_index
from teacher_cache.data.shards import read_shard
from teacher_cache.errors import RecipeError, ShardError
from teacher_cache.models.card import Card
from teacher_cache.storage.download import read_url
from teacher_cache.text import decode_text

Labels = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class LabeledSet:
    """Shards and their true classes. labels: class indices by key; None means the labels in the shards."""

    name: str
    index: ShardIndex
    labels: Labels | None

    def truth(self, keys: Sequence[str], label: Tensor, classes: int) -> Tensor:
        """(B, C) bool: the true classes of each image. An image without a true class has a row of False.

        label: (B,) int64, the labels in the shards.
        """
        truth = torch.zeros(len(keys), classes, dtype=torch.bool)
        if self.labels is None:
            truth[torch.arange(len(keys)), label] = True
        else:
            for row, key in enumerate(keys):
                truth[row, list(self.labels[key])] = True
        return truth


def open_test_set(source: str, card: Card) -> LabeledSet:
    """Open "SHARDS", or "SHARDS@FILE.json" with labels from a file next to the shards' index.

    FILE is an object {key: label or labels}, or a list of labels in the order of the images' file names (the last
    part of their keys), as in ReaL. A label is a class index or name; an empty list leaves the image out.
    Raises RecipeError if the shards have other classes and no label file, ShardError if the file is invalid.
    """
    shards, separator, file = source.rpartition("@")
    if not separator or "/" in file or not file.endswith(".json"):
        index = load_index(source)
        check_classes(card, index)
        return LabeledSet(source, index, None)
    index = load_index(shards)
    path = f"{index.folder}/{file}"
    return LabeledSet(source, index, _by_key(_read(path), path, _keys(index), card.classes))


def check_classes(card: Card, index: ShardIndex) -> None:
    """Raise RecipeError if a network and a set of shards have different classes."""
    if not includes_classes(tuple(card.classes), index.classes):
        raise RecipeError(
            f"the model has {len(card.classes)} classes ({join_first(card.classes)}), the shards "
            f"in '{index.folder}' have {len(index.classes)} ({join_first(index.classes)}); "
            "use shards with the model's classes"
        )


def _keys(index: ShardIndex) -> list[str]:
    return [record.key for number in range(len(index.shards)) for record in read_shard(index, number)]


def _read(path: str) -> Any:
    try:
        return json.loads(decode_text(read_url(path), f"labels '{path}'", ShardError))
    except FileNotFoundError:
        raise ShardError(f"labels '{path}' do not exist; put the file next to the shards' index") from None
    except (OSError, ValueError) as error:
        raise ShardError(f"labels '{path}' cannot be read: {error}; give a JSON object or list") from None


def _by_key(entries: Any, path: str, keys: list[str], classes: tuple[str, ...]) -> Labels:
    if isinstance(entries, list):
        by_file_name = sorted(keys, key=lambda key: key.rpartition("/")[2])
        if len({key.rpartition("/")[2] for key in keys}) < len(keys):
            raise ShardError(
                f"labels '{path}' are a list, but some file names occur twice; give an object {{key: labels}}"
            )
        if len(entries) != len(by_file_name):
            raise ShardError(
                f"labels '{path}' has {len(entries)} entries for {len(keys)} images; give one entry per image"
            )
        entries = dict(zip(by_file_name, entries, strict=True))
    if not isinstance(entries, dict):
        raise ShardError(f"labels '{path}' is a {type(entries).__name__}; give a JSON object or list")
    if missing := [key for key in keys if key not in entries]:
        raise ShardError(
            f"labels '{path}' has no entry for {len(missing)} of {len(keys)} images, the first is '{missing[0]}'; "
            "add them ([] leaves an image out)"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    labels = {
        key: tuple(_class_number(label, numbers, path, key) for label in _as_list(entries[key])) for key in keys
    }
    if not any(labels.values()):
        raise ShardError(f"labels '{path}' has no label for any image; add labels")
    return labels


def _as_list(entry: Any) -> list[Any]:
    return entry if isinstance(entry, list) else [entry]


def _class_number(label: Any, numbers: Mapping[str, int], path: str, key: str) -> int:
    number = numbers.get(label, -1) if isinstance(label, str) else label
    if type(number) is not int or not 0 <= number < len(numbers):
        raise ShardError(
            f"labels '{path}': image '{key}' has the label {label!r}, the model's classes are 0 to "
            f"{len(numbers) - 1}; give a class index or name"
        )
    return number
