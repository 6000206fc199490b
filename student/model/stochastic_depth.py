"""Stochastic depth drawn from a named generator: the same views skip the same blocks for any number of processes.

timm's DropPath draws from torch's global generator, so the result depends on how a batch is divided into
micro-batches and processes.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers.drop import DropPath
from torch import Tensor, nn

from teacher_cache.rng import generator


class SeededDropPath(nn.Module):
    """timm's DropPath with factors that the caller sets. factor: (B,) float32, 0 or 1 / (1 - drop_prob)."""

    def __init__(self, drop_prob: float, scale_by_keep: bool) -> None:
        super().__init__()
        self.drop_prob, self.scale_by_keep = drop_prob, scale_by_keep
        self.factor = torch.ones(1)  # not a buffer: it is neither saved nor broadcast

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * self.factor.to(x.dtype).view(-1, *[1] * (x.ndim - 1))

    def set(self, uniform: NDArray[np.float32], device: torch.device) -> None:
        """Compute the factors. uniform: (B,) numbers in [0, 1), one for each view."""
        scale = np.float32(1 / (1 - self.drop_prob) if self.scale_by_keep and self.drop_prob < 1 else 1)
        factor = torch.from_numpy((uniform >= self.drop_prob) * scale)
        self.factor = factor.to(device)


class StochasticDepth:
    """Replaces the DropPath modules of a network by SeededDropPath modules, and sets their factors."""

    def __init__(self, network: nn.Module, batch: int, seed: int) -> None:
        """batch: views in a global batch. seed: train.seed of the run."""
        self._batch, self._seed = batch, seed
        self._layers: list[SeededDropPath] = []
        for parent in list(network.modules()):
            for name, child in parent.named_children():
                if isinstance(child, DropPath):
                    layer = SeededDropPath(child.drop_prob or 0.0, child.scale_by_keep)
                    setattr(parent, name, layer)
                    self._layers.append(layer)

    def draw(self, step: int) -> NDArray[np.float32]:
        """(layers, B) uniform numbers for the global batch of a step."""
        return generator("depth", self._seed, step).random((len(self._layers), self._batch), dtype=np.float32)

    def set(self, uniform: NDArray[np.float32], rows: NDArray[np.int64], device: torch.device) -> None:
        """Set the factors for a forward pass. uniform: from `draw`. rows: the views' rows in the global batch."""
        for layer, layer_uniform in zip(self._layers, uniform, strict=True):
            layer.set(layer_uniform[rows], device)
