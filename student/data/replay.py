"""Read teacher targets from one or several caches, and check the digest of every view."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from cachetools import LRUCache
from torch import Tensor

from student.recipe import CacheRef
from teacher_cache.cache.target_cache import TargetCache, Targets
from teacher_cache.data.view_reader import ViewIdentity
from teacher_cache.errors import ReplayError


def average(
    hards: Sequence[Tensor], softs: Sequence[Tensor], weights: Sequence[float], mean_of: str
) -> tuple[Tensor, Tensor]:
    """Average the targets of several teachers: hard (B,) int64 and soft (B, C).

    hards: (B,) int64 for each teacher. softs: (B, C), all at the same temperature. weights: sum to 1. mean_of:
    "probabilities", or "logits": their logarithms, which equal the logits up to a constant per image.
    If several classes have the largest mean, hard is the label of the first teacher whose label is one of them.
    """
    if mean_of == "probabilities":
        mean = sum(
            (weight * soft for weight, soft in zip(weights, softs, strict=True)), torch.zeros_like(softs[0])
        )
    else:
        smallest = torch.finfo(softs[0].dtype).tiny
        logits = (weight * soft.clamp_min(smallest).log() for weight, soft in zip(weights, softs, strict=True))
        mean = torch.softmax(sum(logits, torch.zeros_like(softs[0])), dim=1)
    top = mean.amax(dim=1) * (1 - 1e-6)  # equal means may differ by rounding
    hard = mean.argmax(dim=1)
    for label in reversed(hards):
        hard = torch.where(mean.gather(1, label[:, None]).squeeze(1) >= top, label, hard)
    return hard, mean


class CombinedReplay:
    """The targets of a recipe's caches: those of the only cache, or the weighted mean of several."""

    def __init__(self, caches: CacheRef, tau: float | None, streams: int) -> None:
        self._caches, self._tau = caches, tau
        single = len(caches.paths) == 1
        self._replays = [Replay(path, tau if single else tau or 1.0, streams) for path in caches.paths]

    @property
    def has_soft(self) -> bool:
        """Whether `targets` returns soft targets."""
        return self._tau is not None and (len(self._replays) > 1 or self._replays[0].has_soft)

    def targets(self, views: ViewIdentity) -> tuple[Tensor, Tensor | None]:
        """Return hard (N,) int64 and soft (N, C) float32, or None without a temperature.

        Raises ReplayError for a view that differs from the teacher's.
        """
        results = [replay.targets(views) for replay in self._replays]
        if len(results) == 1:
            return results[0]
        softs = [
            F.one_hot(hard, replay.classes).float() if soft is None else soft
            for replay, (hard, soft) in zip(self._replays, results, strict=True)
        ]
        weights, mean_of = self._caches.normalized_weights, self._caches.mean_of
        hard, mean = average([hard for hard, _ in results], softs, weights, mean_of)
        return hard, None if self._tau is None else mean


class Replay:
    """Reads the targets of one cache, and checks that each view equals the one that the teacher labeled."""

    def __init__(self, path: str, tau: float | None, streams: int) -> None:
        self._cache = TargetCache.open(path)
        self._tau = None if self._cache.encoding.kind == "hard" else tau
        self.classes, self.has_soft = self._cache.encoding.classes, self._tau is not None
        size = 2 * streams * self._cache.manifest.policy.aug_repeats
        self._targets: LRUCache[tuple[int, int], Targets] = LRUCache(size)

    def targets(self, views: ViewIdentity) -> tuple[Tensor, Tensor | None]:
        """Return hard (N,) int64 and soft (N, C) float32, or None without a temperature or logits.

        Raises ReplayError for a view that differs from the teacher's.
        """
        targets = self._read(views.seed, views.shard)
        self._check(views, targets)
        rows = views.rows[: views.samples]
        hard = torch.from_numpy(targets.hard[rows].astype(np.int64))
        if self._tau is None:
            return hard, None
        encoding = self._cache.encoding
        return hard, torch.from_numpy(encoding.expand(encoding.select_rows(targets.columns, rows), self._tau))

    def _read(self, seed: int, shard: int) -> Targets:
        if (seed, shard) not in self._targets:
            self._targets[seed, shard] = self._cache.read(seed, shard)
        return self._targets[seed, shard]

    def _check(self, views: ViewIdentity, targets: Targets) -> None:
        wrong = targets.mismatches(views.rows, views.digest)
        if not len(wrong):
            return
        raise ReplayError(
            f"cache '{self._cache.where}': the view of '{views.keys[wrong[0]]}' under seed {views.seed} differs "
            f"from the one the teacher labeled ({len(wrong)} of {len(views.rows)} views in this request); "
            f"{self._cache.manifest.likely_cause()}; restore what changed or build a new cache"
        )
