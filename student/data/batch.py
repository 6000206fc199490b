"""One training batch: views, mixing, true labels and the teacher's targets."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from teacher_cache.views.mix import blend, mixed_labels


@dataclass(frozen=True)
class Truth:
    """What a batch should be taken for. label: (B, C) weights that sum to one.

    hard: (B,) int64, the teacher's classes, or None without a cache. soft: (B, C) the teacher's distribution
    at the recipe's temperature, or None where the recipe asks for none.
    """

    label: Tensor
    hard: Tensor | None
    soft: Tensor | None


@dataclass(frozen=True)
class Batch:
    """One step's views of B images; partners that are only mixed in stand behind them.

    pixels: (P, S, S, 3) uint8, P >= B. The rest as in Examples. hard: (B,) int64 and soft: (B, C) float32 of
    the teacher, or None.
    """

    pixels: Tensor
    label: Tensor
    partner_label: Tensor
    partner: Tensor
    lam: Tensor
    cutmix: Tensor
    box: Tensor
    hard: Tensor | None
    soft: Tensor | None

    def on(self, device: torch.device, classes: int) -> tuple[Tensor, Truth]:
        """Mixed pixels (B, 3, S, S) float32 in 0..255 and what they should be taken for, on a device."""
        pixels, partner, lam = self.pixels.to(device), self.partner.to(device), self.lam.to(device)
        mixed = blend(pixels, partner, lam, self.cutmix.to(device), self.box.to(device))
        label = mixed_labels(self.label.to(device), self.partner_label.to(device), lam, classes)
        hard, soft = (None if told is None else told.to(device) for told in (self.hard, self.soft))
        return mixed, Truth(label, hard, soft)

    def split(self, parts: int) -> list["Batch"]:
        """The images in equal parts, in order, each with its own partners behind it; parts must divide B."""
        if parts == 1:
            return [self]
        size = len(self.label) // parts
        return [self._cut(slice(start, start + size)) for start in range(0, size * parts, size)]

    def _cut(self, mine: slice) -> "Batch":
        pixels = torch.cat((self.pixels[mine], self.pixels[self.partner[mine]]))
        told = {name: tensor[mine] for name, tensor in vars(self).items() if tensor is not None}
        count = len(told["label"])
        return replace(self, **told | {"pixels": pixels, "partner": torch.arange(count, 2 * count)})
