"""Several teachers as one: the weighted mean of what their caches say of the same views."""

from collections.abc import Sequence

import torch
from torch import Tensor


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
