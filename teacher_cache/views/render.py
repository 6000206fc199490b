"""Render a view: crop, resize, operations and erasing on uint8 pixels."""

import math
from statistics import NormalDist

import cv2
import numpy as np
import xxhash

from teacher_cache.kernels import operations
from teacher_cache.models.spec import MEAN, STD
from teacher_cache.rng import random_bytes
from teacher_cache.views.decode import Pixels
from teacher_cache.views.ops import OPS, apply
from teacher_cache.views.resize import resize
from teacher_cache.views.view import Erase, View

FILL = tuple(round(255 * mean) for mean in MEAN)
"""RGB fill of erased and outside pixels: the mean color, which is 0 after normalization."""
_QUANTILES = np.array([NormalDist().inv_cdf((step + 0.5) / 256) for step in range(256)])
_NOISE = np.rint(255 * (np.outer(_QUANTILES, STD) + MEAN)).clip(0, 255)
_NOISE_TABLES = np.ascontiguousarray(_NOISE.T.astype(np.uint8))
"""(3, 256): map a random byte to a normal deviate of the channel, like timm's noise in normalized space."""


def render(image: Pixels, view: View, size: int) -> Pixels:
    """Render the pixels of a view: (size, size, 3) uint8, a new array. A pure function of its arguments.

    image: (H, W, 3) uint8. Order of steps as in timm: crop and resize, flips, operations, erasing.
    """
    top, left, height, width = view.box
    crop = image[top : top + height, left : left + width]
    pixels = resize(crop, size, size, view.interpolation) if crop.shape[:2] != (size, size) else crop.copy()
    if view.hflip or view.vflip:
        cv2.flip(pixels, -1 if view.hflip and view.vflip else int(view.hflip), pixels)
    for name, argument, interpolation in view.ops:
        pixels = OPS[name](pixels, argument, interpolation, FILL)
    for erase in view.erase:
        _erase(pixels, erase)
    return pixels


def _erase(pixels: Pixels, erase: Erase) -> None:
    top, left, height, width = erase.box
    region = pixels[top : top + height, left : left + width]
    if erase.mode == "const":
        region[:] = FILL
        return
    shape = (1, 1, 3) if erase.mode == "rand" else (height, width, 3)
    noise = random_bytes(math.prod(shape), "erase", erase.noise).reshape(shape)
    region[:] = apply(operations.apply_tables, noise, _NOISE_TABLES)


def digest(pixels: Pixels, bits: int = 64) -> int:
    """The low `bits` bits of the xxh3 hash of a view's pixels."""
    return xxhash.xxh3_64_intdigest(pixels.data) & ((1 << bits) - 1)
