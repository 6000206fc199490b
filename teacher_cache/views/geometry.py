"""Rotation, shear and translation in integer arithmetic: the same pixels on every CPU, and close to Pillow's.

Pillow's transforms use the cubic kernel with a = -1 (its resizing uses -0.5, OpenCV -0.75) in floating point, and
truncate. Shear and translation use the same kernel here and differ from Pillow by at most 2 of 255. Rotation
sharpens and then samples linearly, in steps of 1/32 pixel, which takes a third of the time of cubic sampling.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from teacher_cache.kernels import sampling
from teacher_cache.kernels.sampling import BORDER, FRACTION_BITS, Words
from teacher_cache.views.decode import Pixels

Fill = tuple[int, ...]
"""RGB in 0..255 of pixels from outside the image."""
Floats = NDArray[np.floating]


def shear_x(pixels: Pixels, factor: float, interpolation: str, fill: Fill) -> Pixels:
    """Shear: pixel (x, y) shows the source at x + factor * (y + 0.5); outside pixels get `fill`."""
    return _shift(pixels, factor, 0.0, interpolation, fill)


def shear_y(pixels: Pixels, factor: float, interpolation: str, fill: Fill) -> Pixels:
    """Shear: pixel (x, y) shows the source at y + factor * (x + 0.5)."""
    return _transpose(shear_x(_transpose(pixels), factor, interpolation, fill))


def translate_x(pixels: Pixels, fraction: float, interpolation: str, fill: Fill) -> Pixels:
    """Translate: pixel x shows the source at x + fraction * width."""
    return _shift(pixels, 0.0, fraction * pixels.shape[1], interpolation, fill)


def translate_y(pixels: Pixels, fraction: float, interpolation: str, fill: Fill) -> Pixels:
    """Translate: pixel y shows the source at y + fraction * height."""
    return _transpose(translate_x(_transpose(pixels), fraction, interpolation, fill))


def rotate(pixels: Pixels, degrees: float, interpolation: str, fill: Fill) -> Pixels:
    """Rotate counterclockwise around the center.

    Difference from Pillow's bicubic at 224 px, 40 photos, 1 to 30 degrees, of 255: mean 1.2 (2.8 in the most
    detailed photo), maximum 42. White noise: mean 12, maximum 79.
    """
    if degrees % 360.0 == 0:
        return pixels.copy()
    height, width = pixels.shape[:2]
    padded = np.empty((height + 2 * BORDER, width + 2 * BORDER, 4), np.uint8)
    sampling.pad_four_channels(rows_of(pixels), interpolation == "bicubic", rows_of(padded))
    sampled = np.empty((height, width), np.int32)
    filled = int.from_bytes(bytes(fill), "little")
    sampling.sample(padded.view(np.int32)[:, :, 0], *_source_coordinates(height, width, degrees), filled, sampled)
    return np.asarray(cv2.cvtColor(sampled.view(np.uint8).reshape(height, width, 4), cv2.COLOR_RGBA2RGB), np.uint8)


def rows_of(pixels: Pixels) -> Pixels:
    """(H, W * C) bytes of (H, W, C) pixels; shares the memory if that is contiguous."""
    return np.ascontiguousarray(pixels).reshape(len(pixels), -1)


def _transpose(pixels: Pixels) -> Pixels:
    return np.asarray(cv2.transpose(pixels), dtype=np.uint8)


def _shift(pixels: Pixels, slope: float, offset: float, interpolation: str, fill: Fill) -> Pixels:
    """Shift each row: pixel (x, y) shows the source at x + slope * (y + 0.5) + offset."""
    shifted = np.empty(pixels.shape, np.uint8)
    fills, cubic = np.array([fill], dtype=np.uint8), interpolation == "bicubic"
    sampling.shift_rows(rows_of(pixels), slope, offset, cubic, fills, rows_of(shifted))
    return shifted


def _source_coordinates(height: int, width: int, degrees: float) -> tuple[Words, Words, Words, Words]:
    """Source coordinates in fixed point, as sums: (H,) and (W,) of the column, (H,) and (W,) of the row."""
    angle = -math.radians(degrees % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = np.arange(width) + 0.5 - width / 2.0, np.arange(height) + 0.5 - height / 2.0
    return (
        _to_fixed_point(sin * y),
        _to_fixed_point(cos * x + width / 2.0),
        _to_fixed_point(cos * y),
        _to_fixed_point(height / 2.0 - sin * x),
    )


def _to_fixed_point(coordinates: Floats) -> Words:
    fixed_point: Words = np.rint(coordinates * 2**FRACTION_BITS).astype(np.int32)
    return fixed_point
