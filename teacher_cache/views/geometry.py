"""Rotation, shear and translation in whole numbers: the same pixels on every CPU, and nearly Pillow's.

Pillow samples with the cubic kernel of a = -1 (its resizing has -0.5, OpenCV -0.75), in floating point, and cuts
off what is behind the point. Shear and translation do so too, to 2 of 255. For a rotation that would cost three
times as much as to sharpen and to sample linearly, as OpenCV does alike on every CPU (its cubic it does not).
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from teacher_cache.views.decode import Pixels

Fill = tuple[int, ...]
Floats = NDArray[np.floating]

_WEIGHT_BITS = 7  # of a tap's weight: with the bytes centred on zero, sums of the cubic's taps stay within 16 bits
_FRACTION_BITS = 15  # bits of a place behind the point
_REMAP_BITS = 5  # of them, those that cv2.remap looks at
_BORDER = 2  # the edge is repeated: what lies half a pixel outside is sampled, not filled
_FAR_OUTSIDE = -1000
_SHARPEN = np.array([[0, -1, 0], [-1, 12, -1], [0, -1, 0]], dtype=np.float32) / 8  # exact in floating point


def shear_x(pixels: Pixels, factor: float, interpolation: str, fill: Fill) -> Pixels:
    """Row y samples factor * y further right; the new corners show `fill`."""
    return _shift_rows(pixels, factor * (np.arange(pixels.shape[0]) + 0.5), interpolation, fill)


def shear_y(pixels: Pixels, factor: float, interpolation: str, fill: Fill) -> Pixels:
    """Column x samples factor * x further down."""
    return _transpose(shear_x(_transpose(pixels), factor, interpolation, fill))


def translate_x(pixels: Pixels, share: float, interpolation: str, fill: Fill) -> Pixels:
    """Samples a share of the width further right."""
    return _shift_rows(pixels, np.full(pixels.shape[0], share * pixels.shape[1]), interpolation, fill)


def translate_y(pixels: Pixels, share: float, interpolation: str, fill: Fill) -> Pixels:
    """Samples a share of the height further down."""
    return _transpose(translate_x(_transpose(pixels), share, interpolation, fill))


def rotate(pixels: Pixels, degrees: float, interpolation: str, fill: Fill) -> Pixels:
    """Turns counter-clockwise about the middle.

    Against Pillow's bicubic at 224 px, of 255, over 40 photos and angles of 1 to 30 degrees: a mean of 1.2 (2.8 in
    the most detailed photo) and 42 at most; white noise, which has nothing but detail: 12 and 79.
    """
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
    """The part behind the point, in the steps of cv2.remap."""
    return (coordinates >> (_FRACTION_BITS - _REMAP_BITS)).astype(np.uint16) & np.uint16(2**_REMAP_BITS - 1)


def _pad(pixels: Pixels, rows: int, columns: int) -> Pixels:
    """With the edge repeated outwards."""
    padded = cv2.copyMakeBorder(pixels, rows, rows, columns, columns, cv2.BORDER_REPLICATE)
    return np.asarray(padded, dtype=np.uint8)


def _source_coordinates(height: int, width: int, degrees: float) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Where each pixel comes from in the framed image: (H, W) columns and rows; far off for corners."""
    angle = -math.radians(degrees % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = np.arange(width) + 0.5 - width / 2.0, np.arange(height) + 0.5 - height / 2.0
    offset = (
        (_BORDER << _FRACTION_BITS) - (1 << _FRACTION_BITS - 1) + (1 << _FRACTION_BITS - _REMAP_BITS - 1)
    )  # edges to centres, and to round
    columns = np.add.outer(_to_fixed_point(sin * y), _to_fixed_point(cos * x + width / 2.0) + offset)
    rows = np.add.outer(_to_fixed_point(cos * y), _to_fixed_point(height / 2.0 - sin * x) + offset)
    outside = columns < offset
    for is_beyond in (
        columns >= (width << _FRACTION_BITS) + offset,
        rows < offset,
        rows >= (height << _FRACTION_BITS) + offset,
    ):
        outside |= is_beyond
    columns[outside] = _FAR_OUTSIDE << _FRACTION_BITS
    return columns, rows


def _to_fixed_point(coordinates: Floats) -> NDArray[np.int32]:
    fixed_point: NDArray[np.int32] = np.rint(coordinates * 2**_FRACTION_BITS).astype(np.int32)
    return fixed_point


def _transpose(pixels: Pixels) -> Pixels:
    return np.asarray(cv2.transpose(pixels), dtype=np.uint8)


def _shift_rows(pixels: Pixels, shifts: Floats, interpolation: str, fill: Fill) -> Pixels:
    """Row y at x shows what lies at x + shift[y]; as one row has one fraction, four taps with weights a row do."""
    width = pixels.shape[1]
    shifts = np.clip(shifts, -width, width)  # from there on a row is all fill
    whole = np.floor(shifts)
    taps = _cubic(shifts - whole) if interpolation == "bicubic" else _linear(shifts - whole)
    radius = taps.shape[1] // 2
    padded = _pad(pixels, 1, radius)
    rows = np.arange(1, len(shifts) + 1) * padded.shape[1]
    # what runs over a row's end shows its neighbour, and is filled in the end
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
    """(R, 3 width): so many pixels from each start on, in the order they lie in memory."""
    flat = np.ascontiguousarray(pixels).reshape(-1)
    windows: Pixels = np.ndarray((flat.size - 3 * width + 1, 3 * width), np.uint8, flat, strides=(1, 1))
    return windows[start * 3]


def _fill_outside(result: Pixels, first: NDArray[np.int64], fill: Fill) -> Pixels:
    """Row y keeps its pixels from first[y] on, as many as a row has; before and behind them stands `fill`."""
    width = result.shape[1]
    mask, fill_rows = np.zeros((3, width, 3), np.uint8), np.full((3, width, 3), fill, np.uint8)
    mask[1], fill_rows[1] = 255, 0
    inside = cv2.bitwise_and(result, _windows(mask, width - first, width).reshape(result.shape))
    return np.asarray(
        cv2.bitwise_or(inside, _windows(fill_rows, width - first, width).reshape(result.shape)), dtype=np.uint8
    )


def _linear(fraction: Floats) -> NDArray[np.int16]:
    """(H, 2) weights that sum to 2^7."""
    right = np.rint(fraction * 2**_WEIGHT_BITS)
    return np.stack((2**_WEIGHT_BITS - right, right), axis=1).astype(np.int16)


def _cubic(t: Floats) -> NDArray[np.int16]:
    """(H, 4) weights that sum to 2^7, of the cubic with a = -1; what rounding leaves goes to the nearer pixel."""
    square, cube = t * t, t * t * t
    taps = np.stack((2 * square - t - cube, 1 - 2 * square + cube, t + square - cube, cube - square))
    taps = np.rint(taps * 2**_WEIGHT_BITS)
    taps[np.where(t < 0.5, 1, 2), np.arange(len(t))] += 2**_WEIGHT_BITS - taps.sum(axis=0)
    weights: NDArray[np.int16] = taps.T.astype(np.int16)
    return weights
