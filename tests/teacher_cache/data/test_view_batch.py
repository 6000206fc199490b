"""Tests of batches of views: what they hold, and how they are cut."""

import numpy as np
import torch

from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.view_reader import ViewReader

CPU = torch.device("cpu")


def test_selected_samples_are_mixed_as_in_the_whole_batch(shards: ShardIndex, cache: TargetCache) -> None:
    (views,) = ViewReader(shards, cache.manifest.policy).read(1, [2, 0, 3, 5, 7, 8, 9], [1])
    whole = views.batch
    assert len(whole.pixels) > len(whole.label) == 7
    for samples in (slice(0, 3), slice(3, 7), slice(3, 4)):
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
