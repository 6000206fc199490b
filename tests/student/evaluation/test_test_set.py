import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from facts import assert_facts

from student.evaluation.predict import eval_batches
from student.evaluation.test_set import open_test_set
from teacher_cache.data.index import ShardIndex, load_index, save_index
from teacher_cache.data.shards import read_shard
from teacher_cache.errors import RecipeError, ShardError
from teacher_cache.models.card import Card, load_card
from teacher_cache.models.run_folder import FINAL


@pytest.fixture
def card(student_run: Path) -> Card:
    return load_card(student_run / FINAL)


@pytest.fixture
def keys(shards: ShardIndex) -> list[str]:
    return [record.key for shard in range(len(shards.shards)) for record in read_shard(shards, shard)]


@pytest.fixture
def place(shards: ShardIndex, tmp_path: Path) -> Callable[[Any], str]:
    """Write labels beside a copy of the shards; return the set's name on the command line."""
    folder = tmp_path / "test"
    shutil.copytree(shards.folder, folder)

    def lay(labels: Any) -> str:
        (folder / "real.json").write_text(json.dumps(labels))
        return f"{folder}@real.json"

    return lay


def truths(where: str, card: Card) -> dict[str, list[int]]:
    """The true classes of each image, by key."""
    images = open_test_set(where, card)
    found = {}
    for shown in eval_batches(images.index, card.eval, 7, 0):
        truth = images.truth(shown.keys, shown.label, len(card.classes))
        found |= {key: row.nonzero()[:, 0].tolist() for key, row in zip(shown.keys, truth, strict=True)}
    return found


def test_plain_shards_have_the_labels_they_were_packed_with(shards: ShardIndex, card: Card) -> None:
    expected = {record.key: [record.label] for shard in range(3) for record in read_shard(shards, shard)}
    assert truths(shards.folder, card) == expected


def test_labels_by_key_can_be_numbers_names_lists_or_empty(
    place: Callable[[Any], str], keys: list[str], card: Card
) -> None:
    labels: dict[str, Any] = dict.fromkeys(keys, 2) | {keys[0]: [2, 0], keys[1]: [], keys[2]: "logo"}
    found = truths(place(labels), card)
    assert [found[key] for key in keys[:4]] == [[0, 2], [], [1], [2]]


def test_a_list_of_labels_is_in_the_order_of_the_file_names(
    place: Callable[[Any], str], keys: list[str], card: Card
) -> None:
    ordered = sorted(keys)
    assert ordered != keys
    found = truths(place([[number % 3] for number in range(len(keys))]), card)
    assert [found[key] for key in ordered] == [[number % 3] for number in range(len(keys))]


def test_a_relabeled_set_can_have_its_own_classes_and_a_plain_one_cannot(
    place: Callable[[Any], str], keys: list[str], card: Card
) -> None:
    where = place(dict.fromkeys(keys, 1))
    folder = Path(where.partition("@")[0])
    save_index(replace(load_index(folder), classes=("0", "1", "10", "2")), folder / "index.json")
    assert set(map(tuple, truths(where, card).values())) == {(1,)}
    with pytest.raises(RecipeError) as raised:
        open_test_set(str(folder), card)
    assert_facts(raised.value, folder, "3 classes", "hopper", "logo", "parcel", 4, "0, 1, 10")


@pytest.mark.parametrize(
    ("labels", "facts"),
    [
        ({}, (40, "'000")),
        ("none", ("str", "JSON")),
        ([[0], [1]], (2, 40)),
    ],
)
def test_labels_that_do_not_match_the_images_are_refused_in_one_line(
    place: Callable[[Any], str], card: Card, labels: Any, facts: tuple[object, ...]
) -> None:
    with pytest.raises(ShardError) as raised:
        open_test_set(place(labels), card)
    assert_facts(raised.value, "real.json", *facts)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("label", [3, -1, "cat", 1.0, True, None])
def test_an_invalid_label_is_reported_with_its_image(
    place: Callable[[Any], str], keys: list[str], card: Card, label: Any
) -> None:
    with pytest.raises(ShardError) as raised:
        open_test_set(place(dict.fromkeys(keys, 0) | {keys[5]: [0, label]}), card)
    assert_facts(raised.value, keys[5], repr(label), 0, 2)


def test_labels_for_no_image_at_all_are_refused(place: Callable[[Any], str], keys: list[str], card: Card) -> None:
    with pytest.raises(ShardError, match=r"real\.json"):
        open_test_set(place({key: [] for key in keys}), card)


def test_a_missing_or_invalid_label_file_is_reported_with_its_path(
    place: Callable[[Any], str], card: Card
) -> None:
    where = place({})
    with pytest.raises(ShardError, match=r"/none\.json"):
        open_test_set(where.replace("real", "none"), card)
    Path(where.replace("@", "/")).write_text("{", encoding="utf-8")
    with pytest.raises(ShardError, match=r"/real\.json.*JSON"):
        open_test_set(where, card)


def test_labels_are_found_by_key_in_any_order(place: Callable[[Any], str], keys: list[str], card: Card) -> None:
    images = open_test_set(place({key: number % 3 for number, key in enumerate(keys)}), card)
    truth = images.truth([keys[7], keys[3]], torch.tensor([0, 0]), 3)
    assert truth.int().argmax(dim=1).tolist() == [7 % 3, 0]
