"""Every image of an index is evaluated once."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from facts import assert_facts

from teacher_cache.data import eval_images
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.loader import load
from teacher_cache.data.shards import read_shard
from teacher_cache.distributed.world import World
from teacher_cache.errors import LoaderError
from teacher_cache.models.spec import EvalSpec

SPEC = EvalSpec(size=32, crop=0.9)


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_every_image_is_in_one_batch(shards: ShardIndex, workers: int) -> None:
    found = [key for images in eval_images.eval_batches(shards, SPEC, 5, workers) for key in images.keys]
    expected = [record.key for number in range(len(shards.shards)) for record in read_shard(shards, number)]
    assert sorted(found) == sorted(expected)
    assert workers > 1 or found == expected


@pytest.mark.parametrize(("processes", "workers"), [(2, 0), (3, 2), (7, 1), (64, 1)])
def test_processes_share_the_images_evenly_even_if_there_are_more_of_them_than_shards(
    shards: ShardIndex, processes: int, workers: int
) -> None:
    of_all = [key for images in eval_images.eval_batches(shards, SPEC, 5, 0) for key in images.keys]
    shares = [
        [key for images in eval_images.eval_batches(shards, SPEC, 5, workers, world) for key in images.keys]
        for world in (World(rank, processes) for rank in range(processes))
    ]
    assert sorted(key for keys in shares for key in keys) == sorted(of_all)
    assert {len(keys) for keys in shares} <= {len(of_all) // processes, -(-len(of_all) // processes)}


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_padded_batches_have_one_size_and_their_padding_no_label(shards: ShardIndex, workers: int) -> None:
    found, labels = set[int](), list[int]()
    for images in eval_images.eval_batches(shards, SPEC, 9, workers, padded=True):
        found |= {len(images.pixels), len(images.label)}
        assert torch.equal(
            images.label == eval_images.NO_LABEL, torch.arange(len(images.label)) >= len(images.keys)
        )
        labels += images.unpadded().label.tolist()
    expected = [record.label for number in range(len(shards.shards)) for record in read_shard(shards, number)]
    assert len(found) == 1 and found.pop() <= 9 and sorted(labels) == sorted(expected)


def test_fewer_images_than_in_the_index_are_an_error(shards: ShardIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_all_but_last(*arguments: Any, **options: Any) -> Iterator[Any]:
        return iter(list(load(*arguments, **options))[:-1])

    monkeypatch.setattr(eval_images, "load", load_all_but_last)
    with pytest.raises(LoaderError) as raised:
        list(eval_images.eval_batches(shards, SPEC, 16, workers=1))
    assert_facts(raised.value, shards.folder, shards.rows - 12, shards.rows)
