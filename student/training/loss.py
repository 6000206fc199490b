"""The losses of DeiT and of "ResNet strikes back" (RSB), as pure functions of tensors."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from student.data.batch import Truth
from student.model.student import Heads
from student.recipe import LossSpec


@dataclass(frozen=True)
class Losses:
    """Scalars: the total, which is minimized, and its two parts before weighting."""

    total: Tensor
    on_class: Tensor
    on_distill: Tensor


def distill_loss(heads: Heads, truth: Truth, spec: LossSpec) -> Losses:
    """Class loss on the true label, distillation loss on the teacher's targets (DeiT, eq. 2 and 3).

    heads: two (B, C) float logits. truth: its label is (B, C) weights summing to 1, hard (B,) int64, soft (B, C)
    probabilities. With distillation = "none" there is only the class loss.
    """
    on_class = _label_loss(heads.class_logits, truth.label, spec)
    if spec.distillation == "none":
        return Losses(on_class, on_class, on_class.new_zeros(()))
    logits = heads.class_logits if spec.head == "class" else heads.distill_logits
    if spec.distillation == "soft":
        assert truth.soft is not None and spec.tau is not None and spec.balance is not None
        on_distill = _divergence(logits, truth.soft, spec.tau, spec.kl)
        return Losses((1 - spec.balance) * on_class + spec.balance * on_distill, on_class, on_distill)
    if spec.distillation == "truth":
        on_distill = _label_loss(logits, truth.label, spec)
    else:
        assert truth.hard is not None, "the recipe requires a cache or a teacher"
        on_distill = _hard_loss(logits, truth.hard, spec)
    return Losses((on_class + on_distill) / 2, on_class, on_distill)


def _label_loss(logits: Tensor, label: Tensor, spec: LossSpec) -> Tensor:
    """Loss on the smoothed true label. label: (B, C) weights; a mixed image has two that are not 0."""
    if spec.criterion == "cross-entropy":
        return F.cross_entropy(logits, _smooth(label, spec.smoothing))
    multi_label = spec.bce_targets == "multi-label"
    targets = _smooth((label > 0).to(logits.dtype) if multi_label else label, spec.smoothing)
    if spec.bce_threshold is not None:
        targets = (targets > spec.bce_threshold).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets)


def _hard_loss(logits: Tensor, hard: Tensor, spec: LossSpec) -> Tensor:
    """Loss on the teacher's classes (B,), which are not smoothed."""
    if spec.criterion == "cross-entropy":
        return F.cross_entropy(logits, hard)
    return F.binary_cross_entropy_with_logits(logits, F.one_hot(hard, logits.shape[1]).to(logits.dtype))


def _divergence(logits: Tensor, soft: Tensor, tau: float, reduction: str) -> Tensor:
    """tau^2 KL(teacher, student) at temperature tau. soft: (B, C) probabilities at that temperature."""
    log_probabilities = F.log_softmax(logits / tau, dim=1)
    count = len(logits) if reduction == "batchmean" else logits.numel()  # DeiT's code: images x classes
    return tau**2 * F.kl_div(log_probabilities, soft, reduction="sum") / count


def _smooth(label: Tensor, smoothing: float) -> Tensor:
    return label * (1 - smoothing) + smoothing / label.shape[1]
