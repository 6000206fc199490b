"""Views read by DataLoader workers, each in its own order."""

import pytest
import torch
from torch.utils.data import DataLoader
from views import Views

from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.data.index import ShardIndex


@pytest.mark.parametrize(
    ("workers", "method", "backwards", "threads"),
    [(0, None, True, 2), (1, "fork", False, 2), (2, "fork", True, 1), (1, "spawn", False, 2)],
)
def test_neither_worker_nor_order_nor_threads_change_a_pixel(
    shards: ShardIndex, cache: TargetCache, workers: int, method: str | None, backwards: bool, threads: int
) -> None:
    loader = DataLoader(
        Views(shards.folder, cache.manifest.policy, backwards, threads),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=method,
    )
    before = torch.get_num_threads()
    try:
        found = {tuple(map(int, line.split())) for line in loader}
    finally:
        torch.set_num_threads(before)
    assert len(found) == 80
    for seed, shard, row, value in found:
        assert cache.read(seed, shard).digest[row] == value & 0xFFFF
