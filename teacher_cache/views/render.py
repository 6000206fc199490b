"""Render a view: crop, resize, operations and erasing on uint8 pixels."""

import math
from statistics import NormalDist

import cv2
import numpy as np
import torch
import torch.nn.functional as F
import xxhash

from teacher_cache.models.spec import MEAN, STD
from teacher_cache.rng import random_bytes
from teacher_cache.views.decode import Pixels
from teacher_cache.views.ops import OPS
from teacher_cache.views.view import Erase, View

FILL = tuple(round(255 * mean) for mean in MEAN)
"""RGB fill of erased and outside pixels: the mean color, which is 0 after normalization."""
_QUANTILES = np.array([NormalDist().inv_cdf((step + 0.5) / 256) for step in range(256)])
_NOISE_TABLE = np.clip(np.rint(255 * (np.outer(_QUANTILES, STD) + MEAN)), 0, 255).astype(np.uint8)
"""(256, 3): maps a random byte to a normal deviate of the channel, like timm's noise in normalized space."""


def resize(image: Pixels, height: int, width: int, interpolation: str) -> Pixels:
    """Resize (H, W, 3) uint8 with antialiasing; the same pixels on every CPU and thread count."""
    if image.shape[:2] == (height, width):
        return image
    batch = torch.from_numpy(np.ascontiguousarray(image))[None]
    planes = batch.permute(0, 3, 1, 2)  # channels last in memory: the result is too, so no copy follows
    resized = F.interpolate(planes, size=(height, width), mode=interpolation, antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def render(image: Pixels, view: View, size: int) -> Pixels:
    """Render the pixels of a view: (size, size, 3) uint8. A pure function of its arguments.

    image: (H, W, 3) uint8. Order of steps as in timm: crop and resize, flips, operations, erasing.
    """
    top, left, height, width = view.box
    pixels = resize(image[top : top + height, left : left + width], size, size, view.interpolation)
    if view.hflip or view.vflip:
        pixels = np.asarray(cv2.flip(pixels, -1 if view.hflip and view.vflip else int(view.hflip)), np.uint8)
    for name, argument, interpolation in view.ops:
        pixels = OPS[name](pixels, argument, interpolation, FILL)
    if view.erase:
        pixels = np.array(pixels)
        for erase in view.erase:
            _erase(pixels, erase)
    return np.ascontiguousarray(pixels)


def _erase(pixels: Pixels, erase: Erase) -> None:
    top, left, height, width = erase.box
    region = pixels[top : top + height, left : left + width]
    if erase.mode == "const":
        region[:] = FILL
        return
    shape = (1, 1, 3) if erase.mode == "rand" else (height, width, 3)
    noise = random_bytes(math.prod(shape), "erase", erase.noise).reshape(shape)
    region[:] = cv2.LUT(noise, _NOISE_TABLE[None])


def digest(pixels: Pixels, bits: int = 64) -> int:
    """The low `bits` bits of the xxh3 hash of a view's pixels."""
    return xxhash.xxh3_64_intdigest(pixels.data) & ((1 << bits) - 1)
