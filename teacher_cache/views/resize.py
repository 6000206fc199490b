"""Resize an image with antialiasing."""

import numpy as np
import torch
import torch.nn.functional as F

from teacher_cache.views.decode import Pixels


def resize(image: Pixels, height: int, width: int, interpolation: str) -> Pixels:
    """Resize (H, W, 3) uint8 with antialiasing; the same pixels on every CPU and thread count."""
    if image.shape[:2] == (height, width):
        return image
    batch = torch.from_numpy(np.require(image, requirements=["C", "W"]))[None]  # torch warns of read-only arrays
    planes = batch.permute(0, 3, 1, 2)  # channels last in memory: the result is too, so no copy follows
    resized = F.interpolate(planes, size=(height, width), mode=interpolation, antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())
