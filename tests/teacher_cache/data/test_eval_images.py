"""Every image of an index is evaluated once."""

from collections.abc import Iterator
from typing import Any

import pytest
from facts import assert_facts

from teacher_cache.data import eval_images
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.loader import load
from teacher_cache.data.shards import read_shard
from teacher_cache.errors import LoaderError
from teacher_cache.models.spec import EvalSpec

SPEC = EvalSpec(size=32, crop=0.9)


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_every_image_is_in_one_batch(shards: ShardIndex, workers: int) -> None:
    found = [key for images in eval_images.eval_batches(shards, SPEC, 5, workers) for key in images.keys]
    expected = [record.key for number in range(len(shards.shards)) for record in read_shard(shards, number)]
    assert sorted(found) == sorted(expected)
    assert workers > 1 or found == expected


def test_fewer_images_than_in_the_index_are_an_error(shards: ShardIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_all_but_last(*arguments: Any) -> Iterator[Any]:
        return iter(list(load(*arguments))[:-1])

    monkeypatch.setattr(eval_images, "load", load_all_but_last)
    with pytest.raises(LoaderError) as raised:
        list(eval_images.eval_batches(shards, SPEC, 16, workers=1))
    assert_facts(raised.value, shards.folder, shards.rows - 8, shards.rows)
