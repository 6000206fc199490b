"""The same rotation, shear and translation as teacher_cache/views/geometry.py, with NumPy and OpenCV alone."""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from teacher_cache.views.decode import Pixels

Fill = tuple[int, ...]
"""RGB in 0..255 of pixels from outside the image."""
Floats = NDArray[np.floating]

_WEIGHT_BITS = 7  # fraction bits of a kernel weight: with pixels in -128..127, sums of four taps fit in 16 bits
_FRACTION_BITS = 15  # fraction bits of a coordinate
_REMAP_BITS = 5  # fraction bits that cv2.remap uses
_BORDER = 2  # pixels: the edge is repeated, so that coordinates up to half a pixel outside are sampled, not filled
_FAR_OUTSIDE = -1000  # a column outside every padded image
_SHARPEN = np.array([[0, -1, 0], [-1, 12, -1], [0, -1, 0]], dtype=np.float32) / 8  # exact in floating point


def shear_x(pixels: Pixels, factor: float, interpolation: str, fill: Fill) -> Pixels:
    """Shear: pixel (x, y) shows the source at x + factor * (y + 0.5); outside pixels get `fill`."""
    return _shift_rows(pixels, factor * (np.arange(pixels.shape[0]) + 0.5), interpolation, fill)


def shear_y(pixels: Pixels, factor: float, interpolation: str, fill: Fill) -> Pixels:
    """Shear: pixel (x, y) shows the source at y + factor * (x + 0.5)."""
    return _transpose(shear_x(_transpose(pixels), factor, interpolation, fill))


def translate_x(pixels: Pixels, fraction: float, interpolation: str, fill: Fill) -> Pixels:
    """Translate: pixel x shows the source at x + fraction * width."""
    return _shift_rows(pixels, np.full(pixels.shape[0], fraction * pixels.shape[1]), interpolation, fill)


def translate_y(pixels: Pixels, fraction: float, interpolation: str, fill: Fill) -> Pixels:
    """Translate: pixel y shows the source at y + fraction * height."""
    return _transpose(translate_x(_transpose(pixels), fraction, interpolation, fill))


def rotate(pixels: Pixels, degrees: float, interpolation: str, fill: Fill) -> Pixels:
    """Rotate counterclockwise around the center."""
    if degrees % 360.0 == 0:
        return pixels.copy()
    if interpolation == "bicubic":
        pixels = np.asarray(cv2.filter2D(pixels, -1, _SHARPEN, borderType=cv2.BORDER_REPLICATE), dtype=np.uint8)
    columns, rows = _source_coordinates(pixels.shape[0], pixels.shape[1], degrees)
    whole = np.empty((*columns.shape, 2), dtype=np.int16)
    np.right_shift(columns, _FRACTION_BITS, out=whole[:, :, 0], casting="unsafe")
    np.right_shift(rows, _FRACTION_BITS, out=whole[:, :, 1], casting="unsafe")
    fractions = _remap_fractions(rows) << np.uint16(_REMAP_BITS) | _remap_fractions(columns)
    padded = _pad(pixels, _BORDER, _BORDER)
    result = cv2.remap(
        padded, whole, fractions, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=fill
    )
    return np.asarray(result, dtype=np.uint8)


def _remap_fractions(coordinates: NDArray[np.int32]) -> NDArray[np.uint16]:
    """The fractions of fixed-point coordinates in units of cv2.remap (1 / 32 pixel)."""
    return (coordinates >> (_FRACTION_BITS - _REMAP_BITS)).astype(np.uint16) & np.uint16(2**_REMAP_BITS - 1)


def _pad(pixels: Pixels, rows: int, columns: int) -> Pixels:
    """Repeat the edge outward by some rows and columns."""
    padded = cv2.copyMakeBorder(pixels, rows, rows, columns, columns, cv2.BORDER_REPLICATE)
    return np.asarray(padded, dtype=np.uint8)


def _source_coordinates(height: int, width: int, degrees: float) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(H, W) source columns and rows in the padded image, in fixed point; outside pixels get _FAR_OUTSIDE."""
    angle = -math.radians(degrees % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = np.arange(width) + 0.5 - width / 2.0, np.arange(height) + 0.5 - height / 2.0
    # the border, then from edges to pixel centers, and half a remap step for rounding
    offset = (_BORDER << _FRACTION_BITS) - (1 << _FRACTION_BITS - 1) + (1 << _FRACTION_BITS - _REMAP_BITS - 1)
    columns = np.add.outer(_to_fixed_point(sin * y), _to_fixed_point(cos * x + width / 2.0) + offset)
    rows = np.add.outer(_to_fixed_point(cos * y), _to_fixed_point(height / 2.0 - sin * x) + offset)
    outside = columns < offset
    for beyond in (
        columns >= (width << _FRACTION_BITS) + offset,
        rows < offset,
        rows >= (height << _FRACTION_BITS) + offset,
    ):
        outside |= beyond
    columns[outside] = _FAR_OUTSIDE << _FRACTION_BITS
    return columns, rows


def _to_fixed_point(coordinates: Floats) -> NDArray[np.int32]:
    fixed_point: NDArray[np.int32] = np.rint(coordinates * 2**_FRACTION_BITS).astype(np.int32)
    return fixed_point


def _transpose(pixels: Pixels) -> Pixels:
    return np.asarray(cv2.transpose(pixels), dtype=np.uint8)


def _shift_rows(pixels: Pixels, shifts: Floats, interpolation: str, fill: Fill) -> Pixels:
    """Shift each row: pixel (x, y) shows the source at x + shifts[y].

    shifts: (H,) pixels. All pixels of a row have the same fraction, so each row needs only one set of weights.
    """
    width = pixels.shape[1]
    shifts = np.clip(shifts, -width, width)  # a larger shift also gives a row of fill
    whole = np.floor(shifts)
    taps = _cubic(shifts - whole) if interpolation == "bicubic" else _linear(shifts - whole)
    radius = taps.shape[1] // 2
    padded = _pad(pixels, 1, radius)
    rows = np.arange(1, len(shifts) + 1) * padded.shape[1]
    # windows may run into the next row; _fill_outside replaces those pixels
    samples = _windows(padded, rows + whole.astype(np.int64) + 1, width + taps.shape[1] - 1).astype(np.int16)
    samples -= 128
    total = samples[:, : 3 * width] * taps[:, :1]
    product = np.empty_like(total)
    for tap in range(1, taps.shape[1]):
        total += np.multiply(samples[:, 3 * tap : 3 * (tap + width)], taps[:, tap : tap + 1], out=product)
    total >>= _WEIGHT_BITS
    total += 128
    result = np.clip(total, 0, 255, out=total).astype(np.uint8).reshape(pixels.shape)
    return _fill_outside(result, np.ceil(-0.5 - shifts).astype(np.int64), fill)


def _windows(pixels: Pixels, start: NDArray[np.int64], width: int) -> Pixels:
    """(R, 3 * width) bytes: `width` pixels from each start (R,), in memory order."""
    flat = np.ascontiguousarray(pixels).reshape(-1)
    windows: Pixels = np.ndarray((flat.size - 3 * width + 1, 3 * width), np.uint8, flat, strides=(1, 1))
    return windows[start * 3]


def _fill_outside(result: Pixels, first: NDArray[np.int64], fill: Fill) -> Pixels:
    """Keep pixels first[y] <= x < first[y] + width of row y; the others get `fill`."""
    width = result.shape[1]
    mask, fill_rows = np.zeros((3, width, 3), np.uint8), np.full((3, width, 3), fill, np.uint8)
    mask[1], fill_rows[1] = 255, 0
    inside = cv2.bitwise_and(result, _windows(mask, width - first, width).reshape(result.shape))
    return np.asarray(
        cv2.bitwise_or(inside, _windows(fill_rows, width - first, width).reshape(result.shape)), dtype=np.uint8
    )


def _linear(fraction: Floats) -> NDArray[np.int16]:
    """(H, 2) linear weights that sum to 2^7. fraction: (H,) in [0, 1)."""
    right = np.rint(fraction * 2**_WEIGHT_BITS)
    return np.stack((2**_WEIGHT_BITS - right, right), axis=1).astype(np.int16)


def _cubic(t: Floats) -> NDArray[np.int16]:
    """(H, 4) weights of the cubic kernel with a = -1 that sum to 2^7. t: (H,) fractions in [0, 1).

    The rounding error is added to the weight of the nearest pixel.
    """
    square, cube = t * t, t * t * t
    taps = np.stack((2 * square - t - cube, 1 - 2 * square + cube, t + square - cube, cube - square))
    taps = np.rint(taps * 2**_WEIGHT_BITS)
    taps[np.where(t < 0.5, 1, 2), np.arange(len(t))] += 2**_WEIGHT_BITS - taps.sum(axis=0)
    weights: NDArray[np.int16] = taps.T.astype(np.int16)
    return weights
