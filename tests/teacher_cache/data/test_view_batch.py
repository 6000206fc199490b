"""Tests of joining and cutting batches of views."""

import numpy as np
import pytest
import torch

from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.view_batch import ViewBatch
from teacher_cache.data.view_reader import ViewReader

CPU = torch.device("cpu")


@pytest.fixture
def batches(shards: ShardIndex, cache: TargetCache) -> list[ViewBatch]:
    """Batches of 1, 3 and 8 samples from two shards; single rows have a partner outside the batch."""
    reader = ViewReader(shards, cache.manifest.policy)
    requests = [(0, [2], 0), (1, [0, 3, 5], 1), (0, list(range(8)), 2)]
    return [reader.read(shard, rows, [seed])[0].batch for shard, rows, seed in requests]


def test_a_joined_batch_is_mixed_as_its_parts_are(batches: list[ViewBatch]) -> None:
    whole = ViewBatch.concatenate(batches)
    assert torch.equal(whole.mixed(CPU), torch.cat([batch.mixed(CPU) for batch in batches]))
    assert torch.equal(whole.label, torch.cat([batch.label for batch in batches]))
    assert torch.equal(whole.partner_label, torch.cat([batch.partner_label for batch in batches]))
    assert len(whole.label) == 12 < len(whole.pixels) == sum(len(batch.pixels) for batch in batches)


def test_selected_samples_are_mixed_as_in_the_whole_batch(batches: list[ViewBatch]) -> None:
    whole = ViewBatch.concatenate(batches)
    for samples in (slice(0, 5), slice(5, 12), slice(3, 4)):
        part = whole.select(samples)
        assert torch.equal(part.mixed(CPU), whole.mixed(CPU)[samples])
        assert torch.equal(part.box, whole.box[samples]) and len(part.pixels) == 2 * len(part.label)


def test_a_batch_holds_the_views_of_its_rows_and_of_their_partners(shards: ShardIndex, cache: TargetCache) -> None:
    reader = ViewReader(shards, cache.manifest.policy)
    (views,) = reader.read(0, [2, 4], [1])
    (every,) = reader.read(0, list(range(shards.shards[0].rows)), [1])
    assert np.array_equal(views.batch.pixels.numpy(), every.batch.pixels.numpy()[views.rows])
    assert views.keys == tuple(every.keys[row] for row in views.rows)
    assert np.array_equal(views.rows[views.batch.partner], every.rows[every.batch.partner[[2, 4]]])
