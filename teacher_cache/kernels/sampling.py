"""Compiled loops of shear, translation and rotation, in integer arithmetic.

An image is passed as its rows, (H, 3 * W) uint8.
"""

import math
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from teacher_cache.kernels.compiled import ROWS, ROWS_OUT, inline, kernel

Bytes = NDArray[np.uint8]
Floats = NDArray[np.floating]
Number = np.integer[Any]
Words = NDArray[np.int32]
"""Fixed-point coordinates, or RGBA pixels."""

FRACTION_BITS = 15  # fraction bits of a coordinate
BORDER = 2  # pixels: the edge is repeated, so that coordinates up to half a pixel outside are sampled, not filled
_WEIGHT_BITS = 7  # fraction bits of a kernel weight: with pixels in -128..127, sums of four taps fit in 16 bits
_STEP_BITS = 5  # fraction bits of a coordinate in linear sampling
_I, _S, _U = np.int32, np.int16, np.uint8  # without them numba computes in 64 bits


@inline
def _write_taps(fraction: float, cubic: bool, taps: Floats) -> None:
    """Write the four weights, which sum to 2^7: of the cubic kernel with a = -1, or linear with two zeros.

    fraction: in [0, 1). The rounding error is added to the weight of the nearest pixel.
    """
    one = 2**_WEIGHT_BITS
    if cubic:
        square, cube = fraction * fraction, fraction * fraction * fraction
        taps[0] = np.rint((2 * square - fraction - cube) * one)
        taps[1] = np.rint((1 - 2 * square + cube) * one)
        taps[2] = np.rint((fraction + square - cube) * one)
        taps[3] = np.rint((cube - square) * one)
        taps[1 if fraction < 0.5 else 2] += one - (taps[0] + taps[1] + taps[2] + taps[3])
    else:
        taps[2] = np.rint(fraction * one)
        taps[0], taps[1], taps[3] = 0.0, one - taps[2], 0.0


@kernel(ROWS, types.float64, types.float64, types.boolean, ROWS, ROWS_OUT)
def shift_rows(image: Bytes, slope: float, offset: float, cubic: bool, fill: Bytes, out: Bytes) -> None:
    """Shift row y by slope * (y + 0.5) + offset. All its pixels have the same fraction, so one set of weights."""
    width = image.shape[1] // 3
    padded = np.empty(3 * (width + 4), np.int16)  # with 2 pixels of the edge at both sides
    taps = np.empty(4, np.float64)
    for y in range(image.shape[0]):
        row, to = image[y], out[y]
        shift = min(max(slope * (y + 0.5) + offset, -float(width)), float(width))  # or more: a row of fill
        whole = math.floor(shift)
        _write_taps(shift - whole, cubic, taps)
        first = math.ceil(-0.5 - shift)  # pixels first <= x < first + width are inside
        start, stop = max(first, 0), min(first + width, width)
        for x in range(start):
            to[3 * x], to[3 * x + 1], to[3 * x + 2] = fill[0]
        for x in range(max(stop, 0), width):
            to[3 * x], to[3 * x + 1], to[3 * x + 2] = fill[0]
        middle = padded[6 : 6 + row.size]
        for x in range(row.size):
            middle[x] = _S(row[x]) - _S(128)
        for x in range(6):
            padded[x], padded[6 + row.size + x] = middle[x % 3], middle[row.size - 3 + x % 3]
        count, begin = 3 * max(stop - start, 0), 3 * (start + whole + 1)
        inside = to[3 * start : 3 * start + count]
        a, b = padded[begin : begin + count], padded[begin + 3 : begin + 3 + count]
        c, d = padded[begin + 6 : begin + 6 + count], padded[begin + 9 : begin + 9 + count]
        p, q, r, s = _S(taps[0]), _S(taps[1]), _S(taps[2]), _S(taps[3])
        for x in range(count):
            value = _S((_S(a[x] * p + b[x] * q + c[x] * r + d[x] * s) >> _WEIGHT_BITS) + 128)
            inside[x] = _U(min(max(value, _S(0)), _S(255)))


@kernel(ROWS, types.boolean, ROWS_OUT)
def pad_four_channels(image: Bytes, sharpen: bool, out: Bytes) -> None:
    """Write RGB as RGBA with a border that repeats the edge, and sharpened. A is undefined.

    Sharpening: ((0, -1, 0), (-1, 12, -1), (0, -1, 0)) / 8, rounded half to even.
    """
    height, size = image.shape
    padded, sums = np.empty(size + 6, np.uint8), np.empty(size, np.int16)
    middle, left, right = padded[3 : size + 3], padded[:size], padded[6:]
    for y in range(height):
        row, above, below = image[y], image[max(y - 1, 0)], image[min(y + 1, height - 1)]
        for x in range(size):
            middle[x] = row[x]
        if sharpen:
            for x in range(3):
                padded[x], padded[size + 3 + x] = row[x], row[size - 3 + x]
            for x in range(size):
                sums[x] = 12 * _S(row[x]) - _S(left[x]) - _S(right[x]) - _S(above[x]) - _S(below[x])
            for x in range(size):
                total = _S(sums[x] + 3 + _S(_S(sums[x] >> 3) & 1))
                middle[x] = _U(min(max(_S(total >> 3), _S(0)), _S(255)))
        to = out[y + BORDER]
        inside = to[4 * BORDER :]
        for x in range(size // 3):
            inside[4 * x], inside[4 * x + 1], inside[4 * x + 2] = (
                middle[3 * x],
                middle[3 * x + 1],
                middle[3 * x + 2],
            )
        for x in range(4 * BORDER):
            to[x] = inside[x % 4]
            to[to.size - 1 - x] = to[to.size - 1 - 4 * BORDER - x % 4]
    for border in range(BORDER):
        for x in range(out.shape[1]):
            out[border, x] = out[BORDER, x]
            out[height + BORDER + border, x] = out[height + BORDER - 1, x]


@inline
def _between(a: Number, b: Number, c: Number, d: Number, u: Number, v: Number) -> Number:
    """The low byte of four pixels, linearly interpolated. u, v: fractions in 1/32 of column and row."""
    u, v = _I(u) & _I(31), _I(v) & _I(31)
    over = _I(_I(a & 255) * _I(_I(32) - u) + _I(b & 255) * u) & _I(8191)
    under = _I(_I(c & 255) * _I(_I(32) - u) + _I(d & 255) * u) & _I(8191)
    return _I(_I(over * _I(_I(32) - v) + under * v + _I(512)) >> 10)


@kernel(types.Array(types.int32, 2, "C", readonly=True), *[types.int32[::1]] * 4, types.int32, types.int32[:, ::1])
def sample(
    image: Words, column_of_y: Words, column_of_x: Words, row_of_y: Words, row_of_x: Words, fill: int, out: Words
) -> None:
    """Sample four-channel pixels linearly from a padded image; outside pixels get `fill`.

    Each row takes three loops, because the loop that gathers pixels is the only one that is not vectorized.
    """
    height, width = out.shape
    stride, flat = _I(image.shape[1]), image.reshape(image.size)
    right, bottom = _I(width << FRACTION_BITS), _I(height << FRACTION_BITS)
    # the border, then from edges to pixel centers, and half a step for rounding
    offset = _I((BORDER << FRACTION_BITS) - (1 << FRACTION_BITS - 1) + (1 << FRACTION_BITS - _STEP_BITS - 1))
    index, u, v = np.empty(width, np.int32), np.empty(width, np.uint8), np.empty(width, np.uint8)
    a, b = np.empty(width, np.int32), np.empty(width, np.int32)
    c, d = np.empty(width, np.int32), np.empty(width, np.int32)
    for y in range(height):
        to, column_0, row_0 = out[y], column_of_y[y], row_of_y[y]
        for x in range(width):
            column, row = _I(column_0 + column_of_x[x]), _I(row_0 + row_of_x[x])
            inside = (column >= 0) & (column < right) & (row >= 0) & (row < bottom)
            column, row = _I(column + offset), _I(row + offset)
            place = _I(_I(row >> FRACTION_BITS) * stride + _I(column >> FRACTION_BITS))
            index[x] = place if inside else _I(-1)
            u[x] = _I(column >> FRACTION_BITS - _STEP_BITS) & _I(31)
            v[x] = _I(row >> FRACTION_BITS - _STEP_BITS) & _I(31)
        for x in range(width):
            first = np.uint64(max(index[x], _I(0)))
            below = first + np.uint64(stride)
            a[x], b[x] = flat[first], flat[first + np.uint64(1)]
            c[x], d[x] = flat[below], flat[below + np.uint64(1)]
        for x in range(width):
            red = _between(a[x], b[x], c[x], d[x], u[x], v[x])
            green = _between(a[x] >> 8, b[x] >> 8, c[x] >> 8, d[x] >> 8, u[x], v[x])
            blue = _between(a[x] >> 16, b[x] >> 16, c[x] >> 16, d[x] >> 16, u[x], v[x])
            to[x] = _I(red | _I(green << 8) | _I(blue << 16)) if index[x] >= 0 else fill
