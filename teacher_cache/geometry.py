"""Rotation, shear and translation in whole numbers: the same pixels on every CPU, and all but Pillow's.

Pillow samples with the cubic kernel of a = -1 (its resizing has -0.5, OpenCV -0.75), in floating point, and cuts
off what is behind the point.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Fill = tuple[int, ...]
Rows = NDArray[np.floating]
Places = NDArray[np.int16]
Parts = NDArray[np.uint16]

_STEPS = 32  # fixed-point positions of cv2.remap per pixel
_BITS = 7  # of a tap's weight: with the bytes centred on zero, sums of the cubic's taps stay within 16 bits
_FINE = 2**15  # fixed-point positions per pixel before they are rounded to those
_FRAME = 2  # the cubic's taps reach over the edge
_FAR = -1000 * _STEPS
_LAST = np.uint16(_STEPS - 1)
_TICKS = np.arange(_STEPS)
_WEIGHTS = (_TICKS * (_STEPS - _TICKS)).astype(np.int16)  # 1024 t(1 - t)
_EASED = np.rint(_TICKS + _WEIGHTS * (_STEPS - 2 * _TICKS) / 1024).astype(np.uint16)
_SECOND = np.array([[0.25, -0.5, 0.25]], dtype=np.float32)  # a quarter of the second difference fits in a byte
_ZERO = 128  # where it is 0


def shear_x(pixels: Pixels, factor: float, interpolation: str, fill: Fill) -> Pixels:
    """Row y samples factor * y further right; the new corners show `fill`."""
    return _slide(pixels, factor * (np.arange(pixels.shape[0]) + 0.5), interpolation, fill)


def shear_y(pixels: Pixels, factor: float, interpolation: str, fill: Fill) -> Pixels:
    """Column x samples factor * x further down."""
    return _turned(shear_x(_turned(pixels), factor, interpolation, fill))


def translate_x(pixels: Pixels, share: float, interpolation: str, fill: Fill) -> Pixels:
    """Samples a share of the width further right."""
    return _slide(pixels, np.full(pixels.shape[0], share * pixels.shape[1]), interpolation, fill)


def translate_y(pixels: Pixels, share: float, interpolation: str, fill: Fill) -> Pixels:
    """Samples a share of the height further down."""
    return _turned(translate_x(_turned(pixels), share, interpolation, fill))


def rotate(pixels: Pixels, degrees: float, interpolation: str, fill: Fill) -> Pixels:
    """Turns counter-clockwise about the middle.

    OpenCV's cubic sampling differs from CPU to CPU, its linear sampling does not. At a fraction t Pillow's cubic
    is, along one axis, linear sampling at t + t(1 - t)(1 - 2t) less t(1 - t) times the linearly sampled second
    difference; of the product of both axes' differences nothing is kept.
    """
    if degrees % 360.0 == 0:
        return pixels.copy()
    columns, rows = _sources(pixels.shape[0], pixels.shape[1], degrees)
    framed = _framed(pixels, _FRAME, _FRAME)
    whole = np.empty((*columns.shape, 2), dtype=np.int16)
    whole[:, :, 0], whole[:, :, 1] = columns >> 5, rows >> 5
    across, down = columns.astype(np.uint16) & _LAST, rows.astype(np.uint16) & _LAST
    if interpolation == "bilinear":
        return _remap(framed, whole, across, down, fill)
    mixed = _remap(framed, whole, _EASED[across], _EASED[down], fill).astype(np.int16)
    mixed *= 16
    mixed -= _bend(framed, _SECOND, whole, across, _EASED[down], across)
    mixed -= _bend(framed, _SECOND.T, whole, _EASED[across], down, down)
    mixed >>= 4
    return np.clip(mixed, 0, 255, out=mixed).astype(np.uint8)


def _bend(
    framed: Pixels, kernel: NDArray[np.float32], whole: Places, across: Parts, down: Parts, along: Parts
) -> NDArray[np.int16]:
    """16 t(1 - t) times the second difference, t being the fraction `along` its axis."""
    second = np.asarray(cv2.filter2D(framed, -1, kernel, delta=_ZERO), dtype=np.uint8)
    sampled = _remap(second, whole, across, down, (_ZERO,) * 3).astype(np.int16)
    sampled -= _ZERO
    weight = _WEIGHTS[along]
    sampled *= np.asarray(cv2.merge([weight] * 3), dtype=np.int16)
    sampled >>= 4
    return sampled


def _remap(framed: Pixels, whole: Places, across: Parts, down: Parts, fill: Fill) -> Pixels:
    part = across | down << np.uint16(5)
    moved = cv2.remap(framed, whole, part, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=fill)
    return np.asarray(moved, dtype=np.uint8)


def _framed(pixels: Pixels, lines: int, columns: int) -> Pixels:
    """With the edge repeated outwards."""
    framed = cv2.copyMakeBorder(pixels, lines, lines, columns, columns, cv2.BORDER_REPLICATE)
    return np.asarray(framed, dtype=np.uint8)


def _sources(height: int, width: int, degrees: float) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Where each pixel comes from in the framed image: (H, W) columns and rows in 32nds; far away for corners."""
    angle = -math.radians(degrees % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = np.arange(width) + 0.5 - width / 2.0, np.arange(height) + 0.5 - height / 2.0
    columns = np.add.outer(_fine(sin * y), _fine(cos * x + width / 2.0))
    rows = np.add.outer(_fine(cos * y), _fine(height / 2.0 - sin * x))
    outside = columns < 0
    for beyond in (columns >= width * _FINE, rows < 0, rows >= height * _FINE):
        outside |= beyond
    for places in (columns, rows):
        places += (2 * _FRAME - 1) * _FINE // 2 + _FINE // (2 * _STEPS)  # from edges to centres, and to round
        places //= _FINE // _STEPS
    columns[outside] = _FAR
    return columns, rows


def _fine(places: Rows) -> NDArray[np.int32]:
    return np.rint(places * _FINE).astype(np.int32)


def _turned(pixels: Pixels) -> Pixels:
    return np.asarray(cv2.transpose(pixels), dtype=np.uint8)


def _slide(pixels: Pixels, shift: Rows, interpolation: str, fill: Fill) -> Pixels:
    """Row y at x shows what lies at x + shift[y]; as one row has one fraction, four taps with weights a row do."""
    width = pixels.shape[1]
    shift = np.clip(shift, -width, width)  # from there on a row is all fill
    whole = np.floor(shift)
    taps = _cubic(shift - whole) if interpolation == "bicubic" else _linear(shift - whole)
    reach = taps.shape[1] // 2
    framed = _framed(pixels, 1, reach)
    rows = np.arange(1, len(shift) + 1) * framed.shape[1]
    # what runs over a row's end shows its neighbour, and is filled in the end
    near = _runs(framed, rows + whole.astype(np.int64) + 1, width + taps.shape[1] - 1).astype(np.int16)
    near -= 128
    mixed = near[:, : 3 * width] * taps[:, :1]
    part = np.empty_like(mixed)
    for tap in range(1, taps.shape[1]):
        mixed += np.multiply(near[:, 3 * tap : 3 * (tap + width)], taps[:, tap : tap + 1], out=part)
    mixed >>= _BITS
    mixed += 128
    moved = np.clip(mixed, 0, 255, out=mixed).astype(np.uint8).reshape(pixels.shape)
    return _filled(moved, np.ceil(-0.5 - shift).astype(np.int64), fill)


def _runs(pixels: Pixels, start: NDArray[np.int64], width: int) -> Pixels:
    """(R, 3 width): so many pixels from each start on, in the order they lie in memory."""
    flat = np.ascontiguousarray(pixels).reshape(-1)
    windows: Pixels = np.ndarray((flat.size - 3 * width + 1, 3 * width), np.uint8, flat, strides=(1, 1))
    return windows[start * 3]


def _filled(moved: Pixels, first: NDArray[np.int64], fill: Fill) -> Pixels:
    """Row y keeps its pixels from first[y] on, as many as a row has; before and behind them stands `fill`."""
    width = moved.shape[1]
    stencil, colour = np.zeros((3, width, 3), np.uint8), np.full((3, width, 3), fill, np.uint8)
    stencil[1], colour[1] = 255, 0
    kept = cv2.bitwise_and(moved, _runs(stencil, width - first, width).reshape(moved.shape))
    return np.asarray(
        cv2.bitwise_or(kept, _runs(colour, width - first, width).reshape(moved.shape)), dtype=np.uint8
    )


def _linear(fraction: Rows) -> NDArray[np.int16]:
    """(H, 2) weights that sum to 2^7."""
    right = np.rint(fraction * 2**_BITS)
    return np.stack((2**_BITS - right, right), axis=1).astype(np.int16)


def _cubic(t: Rows) -> NDArray[np.int16]:
    """(H, 4) weights that sum to 2^7, of the cubic with a = -1; what rounding leaves goes to the nearer pixel."""
    square, cube = t * t, t * t * t
    taps = np.stack((2 * square - t - cube, 1 - 2 * square + cube, t + square - cube, cube - square))
    taps = np.rint(taps * 2**_BITS)
    taps[np.where(t < 0.5, 1, 2), np.arange(len(t))] += 2**_BITS - taps.sum(axis=0)
    weights: NDArray[np.int16] = taps.T.astype(np.int16)
    return weights
