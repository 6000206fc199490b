"""A training batch: views, mixing, true labels and the teacher's targets."""

from dataclasses import dataclass

import torch
from torch import Tensor

from teacher_cache.data.view_batch import ViewBatch
from teacher_cache.views.mix import mixed_labels


@dataclass(frozen=True)
class Truth:
    """The targets of the loss for B images.

    label: (B, C) float32 weights that sum to 1. hard: (B,) int64, the teacher's classes, or None without a
    teacher. soft: (B, C) float32, the teacher's distribution at the recipe's temperature, or
    None if the recipe needs none.
    """

    label: Tensor
    hard: Tensor | None
    soft: Tensor | None


@dataclass(frozen=True)
class Batch(ViewBatch):
    """The views of one step and the teacher's targets. hard: (N,) int64 or None. soft: (N, C) float32 or None."""

    hard: Tensor | None = None
    soft: Tensor | None = None

    def on(self, device: torch.device, classes: int) -> tuple[Tensor, Truth]:
        """Mixed pixels (N, 3, S, S) float32 in 0..255 and the targets of the loss, on a device."""
        batch = self.to(device)
        label = mixed_labels(batch.label, batch.partner_label, batch.lam, classes)
        return batch.mixed(device), Truth(label, batch.hard, batch.soft)

    def split(self, parts: int) -> list["Batch"]:
        """Split into micro-batches of equal size, in order; `parts` must divide N."""
        if parts == 1:
            return [self]
        size = len(self.label) // parts
        return [self.select(slice(start, start + size)) for start in range(0, size * parts, size)]
