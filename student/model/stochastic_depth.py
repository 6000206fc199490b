"""Stochastic depth drawn from a named generator: the same views skip the same blocks for any number of processes.

timm's DropPath draws from torch's global generator, so the result depends on how a batch is divided into
micro-batches and processes.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers.drop import DropPath
from torch import Tensor, nn

from teacher_cache.distributed.device import upload
from teacher_cache.rng import generator


class SeededDropPath(nn.Module):
    """timm's DropPath with factors that the caller sets. factor: (B,) float32, 0 or `scale`."""

    def __init__(self, drop_prob: float, scale_by_keep: bool) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.scale = 1 / (1 - drop_prob) if scale_by_keep and drop_prob < 1 else 1.0
        self.factor = torch.ones(1)  # not a buffer: it is neither saved nor broadcast

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * self.factor.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


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

    def draw(self, step: int, rows: NDArray[np.int64], device: torch.device) -> Tensor:
        """The factors of a step, (layers, N) float32 on the device. rows: of the N views in the global batch.

        One copy to the device for all layers and micro-batches: each copy would make the host wait for the device.
        """
        uniform = generator("depth", self._seed, step).random((len(self._layers), self._batch), dtype=np.float32)
        drop_prob = np.array([[layer.drop_prob] for layer in self._layers]).reshape(-1, 1)
        scale = np.array([[layer.scale] for layer in self._layers], dtype=np.float32).reshape(-1, 1)
        return upload(torch.from_numpy((uniform[:, rows] >= drop_prob) * scale), device)

    def set(self, factors: Tensor) -> None:
        """Set the factors for a forward pass of B views: (layers, B), from `draw`."""
        for layer, factor in zip(self._layers, factors, strict=True):
            layer.factor = factor
