"""A batch of rendered views, with the numbers by which they are mixed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from teacher_cache.views.mix import blend


@dataclass(frozen=True)
class ViewBatch:
    """N samples: views, true labels, and each sample's mixing partner.

    pixels: (N + E, S, S, 3) uint8. The first N are the samples; the last E are partners that are not samples.
    label, partner_label: (N,) int64. partner: (N,) int64, the index of each sample's partner in pixels.
    lam: (N,) float32, cutmix: (N,) bool, box: (N, 4) int64, as in `teacher_cache.views.mix.Mix`.
    """

    pixels: Tensor
    label: Tensor
    partner_label: Tensor
    partner: Tensor
    lam: Tensor
    cutmix: Tensor
    box: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are tensors, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def to(self, device: torch.device) -> Self:
        """Copy to a device; from pinned memory, the copy runs asynchronously."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """Copy to pinned memory; `load` calls this."""
        return self._map(Tensor.pin_memory)

    def mixed(self, device: torch.device) -> Tensor:
        """Blend each sample with its partner on a device: (N, 3, S, S) float32 in 0..255."""
        batch = self.to(device)
        return blend(batch.pixels, batch.partner, batch.lam, batch.cutmix, batch.box)

    def select(self, samples: slice) -> Self:
        """Some of the samples, each followed by a copy of its own partner: E equals the new N."""
        chosen = {name: tensor[samples] for name, tensor in self.tensors().items()}
        count = len(chosen["label"])
        chosen["pixels"] = torch.cat((self.pixels[samples], self.pixels[chosen["partner"]]))
        chosen["partner"] = torch.arange(count, 2 * count)
        return self._with(chosen)

    @classmethod
    def concatenate(cls, batches: Sequence[Self]) -> Self:
        """Join batches that have the same fields: the samples of all batches in order, then all other partners."""
        counts = [len(batch.label) for batch in batches]
        sample, extra = 0, sum(counts)
        partner = []
        for batch, count in zip(batches, counts, strict=True):
            place = batch.partner
            partner.append(torch.where(place < count, place + sample, place - count + extra))
            sample, extra = sample + count, extra + len(batch.pixels) - count
        names = batches[0].tensors().keys() - {"pixels", "partner"}
        joined = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in names}
        joined["partner"] = torch.cat(partner)
        samples = [batch.pixels[:count] for batch, count in zip(batches, counts, strict=True)]
        extras = [batch.pixels[count:] for batch, count in zip(batches, counts, strict=True)]
        return batches[0]._with(joined | {"pixels": torch.cat(samples + extras)})

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        return self._with({name: change(tensor) for name, tensor in self.tensors().items()})

    def _with(self, tensors: dict[str, Any]) -> Self:
        return replace(self, **tensors)
