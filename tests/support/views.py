"""A data set of views; in a module, so that spawned workers can import it."""

from collections.abc import Iterator

import torch

from teacher_cache.data.index import load_index
from teacher_cache.data.view_reader import ViewReader
from teacher_cache.views.policy import ViewPolicy


class Views:
    """ "seed shard row digest" of every view, read by a worker in its own order."""

    def __init__(self, folder: str, policy: ViewPolicy, backwards: bool, threads: int) -> None:
        self._folder, self._policy, self._backwards, self._threads = folder, policy, backwards, threads

    def items(self, worker: int, workers: int) -> Iterator[str]:
        torch.set_num_threads(self._threads)
        index = load_index(self._folder)
        requests = [(seed, shard) for seed in range(2) for shard in range(3)]
        requests = requests[worker::workers]
        reader = ViewReader(index, self._policy)
        for seed, shard in reversed(requests) if self._backwards else requests:
            rows = list(range(index.shards[shard].rows))
            for examples in reader.read(shard, rows[::-1] if self._backwards else rows, [seed]):
                for row, value in zip(examples.rows.tolist(), examples.digest.tolist(), strict=True):
                    yield f"{seed} {shard} {row} {value}"
