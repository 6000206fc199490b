"""The losses of DeiT as pure functions of tensors."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from student.model import Heads
from student.recipe import LossSpec


@dataclass(frozen=True)
class Losses:
    """Scalars: what is minimised, and its two parts before they are weighed."""

    total: Tensor
    on_class: Tensor
    on_distill: Tensor


@dataclass(frozen=True)
class Truth:
    """What a batch should be taken for. label: (B, C) weights that sum to one.

    hard: (B,) int64, the teacher's classes, or None without a cache. soft: (B, C) the teacher's distribution
    at the recipe's temperature, or None where the recipe asks for none.
    """

    label: Tensor
    hard: Tensor | None
    soft: Tensor | None


def distill_loss(heads: Heads, truth: Truth, spec: LossSpec) -> Losses:
    """Class head on the true label, distillation head on the teacher's (DeiT, eq. 2 and 3).

    heads: two (B, C) float logits. With distillation "none" the class head alone is trained.
    """
    on_class = _cross_entropy(heads.class_logits, _smooth(truth.label, spec.smoothing))
    if spec.distillation == "none":
        return Losses(on_class, on_class, on_class.new_zeros(()))
    if spec.distillation == "hard":
        assert truth.hard is not None, "the recipe's check gave a cache"
        on_distill = F.cross_entropy(heads.distill_logits, truth.hard)
        return Losses((on_class + on_distill) / 2, on_class, on_distill)
    assert truth.soft is not None and spec.tau is not None and spec.balance is not None
    cold = F.log_softmax(heads.distill_logits / spec.tau, dim=1)
    on_distill = spec.tau**2 * F.kl_div(cold, truth.soft, reduction="batchmean")
    return Losses((1 - spec.balance) * on_class + spec.balance * on_distill, on_class, on_distill)


def _smooth(label: Tensor, smoothing: float) -> Tensor:
    return label * (1 - smoothing) + smoothing / label.shape[1]


def _cross_entropy(logits: Tensor, weights: Tensor) -> Tensor:
    return -(weights * F.log_softmax(logits, dim=1)).sum(dim=1).mean()
