"""Views read by workers, each in its own order."""

import pytest
import torch
from views import Views

from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.loader import load


@pytest.mark.parametrize(
    ("workers", "places", "backwards", "threads"),
    [(0, (), True, 2), (1, (), False, 2), (2, (), True, 1), (1, ("s3://bucket/shards",), False, 2)],
)
def test_neither_worker_nor_order_nor_threads_change_a_pixel(
    shards: ShardIndex, cache: TargetCache, workers: int, places: tuple[str, ...], backwards: bool, threads: int
) -> None:
    loader = load(Views(shards.folder, cache.manifest.policy, backwards, threads), workers, *places)
    before = torch.get_num_threads()
    try:
        found = {tuple(map(int, line.split())) for line in loader}
    finally:
        torch.set_num_threads(before)
    assert len(found) == 80
    for seed, shard, row, value in found:
        assert cache.read(seed, shard).digest[row] == value & 0xFFFF
