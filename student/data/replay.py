"""Teacher targets from one or several caches, with the digest of every view checked."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from cachetools import LRUCache
from torch import Tensor

from student.recipe import CacheRef
from teacher_cache.cache.target_cache import TargetCache, Targets
from teacher_cache.data.view_reader import ShardViews
from teacher_cache.errors import ReplayError


def average(
    hards: Sequence[Tensor], softs: Sequence[Tensor], weights: Sequence[float], mean_of: str
) -> tuple[Tensor, Tensor]:
    """One class (B,) and one distribution (B, C) from each teacher's.

    hards: (B,) int64. softs: (B, C), at one temperature. shares: sum to one. mean_of: "probabilities", or
    "logits", of which a distribution lacks but a constant that softmax ignores. Of equally probable classes the
    one that an earlier teacher puts first wins.
    """
    if mean_of == "probabilities":
        mean = sum(
            (weight * soft for weight, soft in zip(weights, softs, strict=True)), torch.zeros_like(softs[0])
        )
    else:
        smallest = torch.finfo(softs[0].dtype).tiny
        logits = (weight * soft.clamp_min(smallest).log() for weight, soft in zip(weights, softs, strict=True))
        mean = torch.softmax(sum(logits, torch.zeros_like(softs[0])), dim=1)
    top = mean.amax(dim=1) * (1 - 1e-6)  # two sums of the same shares may differ in their last bits
    hard = mean.argmax(dim=1)
    for label in reversed(hards):
        hard = torch.where(mean.gather(1, label[:, None]).squeeze(1) >= top, label, hard)
    return hard, mean


class CombinedReplay:
    """What the caches of a recipe say of a view: the one teacher's own word, or the mean of several."""

    def __init__(self, caches: CacheRef, tau: float | None, streams: int) -> None:
        self._caches = caches
        single = len(caches.paths) == 1
        self._replays = [Replay(path, tau if single else tau or 1.0, streams) for path in caches.paths]

    def targets(self, views: ShardViews) -> tuple[Tensor, Tensor | None]:
        """hard (N,) int64 and, at a temperature, soft (N, C). Raises ReplayError for a view that differs."""
        results = [replay.targets(views) for replay in self._replays]
        if len(results) == 1:
            return results[0]
        softs = [
            F.one_hot(hard, replay.classes).float() if soft is None else soft
            for replay, (hard, soft) in zip(self._replays, results, strict=True)
        ]
        return average([hard for hard, _ in results], softs, self._caches.normalized_weights, self._caches.mean_of)


class Replay:
    """Reads targets from a cache, a (seed, shard) at a time, and checks that each view is the teacher's."""

    def __init__(self, path: str, tau: float | None, streams: int) -> None:
        self._cache = TargetCache.open(path)
        self._tau = None if self._cache.encoding.kind == "hard" else tau
        self.classes = self._cache.encoding.classes
        size = 2 * streams * self._cache.manifest.policy.aug_repeats
        self._targets: LRUCache[tuple[int, int], Targets] = LRUCache(size)

    def targets(self, views: ShardViews) -> tuple[Tensor, Tensor | None]:
        """hard (N,) int64 and, at a temperature, soft (N, C), which a cache of hard labels lacks.

        Raises ReplayError for a view that differs.
        """
        targets = self._read(views.seed, views.shard)
        self._check(views, targets)
        rows = views.rows[: len(views.batch.label)]
        hard = torch.from_numpy(targets.hard[rows].astype(np.int64))
        if self._tau is None:
            return hard, None
        encoding = self._cache.encoding
        return hard, torch.from_numpy(encoding.expand(encoding.select_rows(targets.columns, rows), self._tau))

    def _read(self, seed: int, shard: int) -> Targets:
        if (seed, shard) not in self._targets:
            self._targets[seed, shard] = self._cache.read(seed, shard)
        return self._targets[seed, shard]

    def _check(self, views: ShardViews, targets: Targets) -> None:
        wrong = targets.mismatches(views.rows, views.digest)
        if not len(wrong):
            return
        raise ReplayError(
            f"cache '{self._cache.where}': the view of '{views.keys[wrong[0]]}' under seed {views.seed} is "
            f"not the one the teacher judged ({len(wrong)} of {len(views.rows)} views in this visit); "
            f"{self._cache.manifest.likely_cause()}; restore what changed or build a new cache"
        )
