"""Teacher targets from one or several caches, with the digest of every view checked."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from student.recipe import CacheRef
from teacher_cache.cache.target_cache import TargetCache, Targets
from teacher_cache.data.view_reader import ViewBatch
from teacher_cache.errors import ReplayError


def average(
    hards: Sequence[Tensor], softs: Sequence[Tensor], shares: Sequence[float], mean_of: str
) -> tuple[Tensor, Tensor]:
    """One class (B,) and one distribution (B, C) from each teacher's.

    hards: (B,) int64. softs: (B, C), at one temperature. shares: sum to one. mean_of: "probabilities", or
    "logits", of which a distribution lacks but a constant that softmax ignores. Of equally probable classes the
    one that an earlier teacher puts first wins.
    """
    if mean_of == "probabilities":
        mean = sum((share * soft for share, soft in zip(shares, softs, strict=True)), torch.zeros_like(softs[0]))
    else:
        least = torch.finfo(softs[0].dtype).tiny
        logits = (share * soft.clamp_min(least).log() for share, soft in zip(shares, softs, strict=True))
        mean = torch.softmax(sum(logits, torch.zeros_like(softs[0])), dim=1)
    top = mean.amax(dim=1) * (1 - 1e-6)  # two sums of the same shares may differ in their last bits
    hard = mean.argmax(dim=1)
    for told in reversed(hards):
        hard = torch.where(mean.gather(1, told[:, None]).squeeze(1) >= top, told, hard)
    return hard, mean


class Teachers:
    """What the caches of a recipe say of a view: the one teacher's own word, or the mean of several."""

    def __init__(self, caches: CacheRef, tau: float | None, streams: int) -> None:
        self._caches = caches
        alone = len(caches.paths) == 1
        self._replays = [Replay(path, tau if alone else tau or 1.0, streams) for path in caches.paths]

    def targets(self, examples: ViewBatch) -> tuple[Tensor, Tensor | None]:
        """hard (N,) int64 and, at a temperature, soft (N, C). Raises ReplayError for a view that differs."""
        told = [replay.targets(examples) for replay in self._replays]
        if len(told) == 1:
            return told[0]
        softs = [
            F.one_hot(hard, replay.classes).float() if soft is None else soft
            for replay, (hard, soft) in zip(self._replays, told, strict=True)
        ]
        return average([hard for hard, _ in told], softs, self._caches.normalized_weights, self._caches.mean_of)


class Replay:
    """Reads targets from a cache, a (seed, shard) at a time, and checks that each view is the teacher's."""

    def __init__(self, path: str, tau: float | None, streams: int) -> None:
        self._cache = TargetCache.open(path)
        self._tau = None if self._cache.encoding.kind == "hard" else tau
        self.classes = self._cache.encoding.classes
        self._kept: OrderedDict[tuple[int, int], Targets] = OrderedDict()
        self._most = 2 * streams * self._cache.manifest.policy.aug_repeats

    def targets(self, examples: ViewBatch) -> tuple[Tensor, Tensor | None]:
        """hard (N,) int64 and, at a temperature, soft (N, C), which a cache of hard labels lacks.

        Raises ReplayError for a view that differs.
        """
        targets = self._read(examples.seed, examples.shard)
        self._check(examples, targets)
        rows = examples.rows[: len(examples.label)]
        hard = torch.from_numpy(targets.hard[rows].astype(np.int64))
        if self._tau is None:
            return hard, None
        encoding = self._cache.encoding
        return hard, torch.from_numpy(encoding.expand(encoding.rows(targets.columns, rows), self._tau))

    def _read(self, seed: int, shard: int) -> Targets:
        if (seed, shard) not in self._kept:
            self._kept[seed, shard] = self._cache.read(seed, shard)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        self._kept.move_to_end((seed, shard))
        return self._kept[seed, shard]

    def _check(self, examples: ViewBatch, targets: Targets) -> None:
        wrong = targets.mismatches(examples.rows, examples.digest)
        if not len(wrong):
            return
        raise ReplayError(
            f"cache '{self._cache.where}': the view of '{examples.keys[wrong[0]]}' under seed {examples.seed} is "
            f"not the one the teacher judged ({len(wrong)} of {len(examples.rows)} views in this visit); "
            f"{self._cache.manifest.likely_cause()}; restore what changed or build a new cache"
        )
