"""Compiled loops of the pixel operations: integers, and blends in float32 without fused operations.

An image is passed as its rows, (H, 3 * W) uint8.
"""

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from teacher_cache.kernels.compiled import ROWS, ROWS_OUT, inline, kernel

Bytes = NDArray[np.uint8]
Number = np.integer[Any]
_F, _I, _S, _U = np.float32, np.int32, np.int16, np.uint8  # without them numba computes in 64 bits


@inline
def _blended(degenerate: Number | int, value: Number, factor: float) -> Number:
    """Pillow's Image.blend of two values: float32, truncated, clipped to 0..255."""
    blended = _I(_F(_I(degenerate)) + factor * _F(_I(_I(value) - _I(degenerate))))
    return _U(min(max(blended, _I(0)), _I(255)))


@inline
def _luminance(red: Number, green: Number, blue: Number) -> Number:
    """Pillow's gray: (19595 R + 38470 G + 7471 B + 2^15) / 2^16."""
    return _I(_I(_I(19595) * _I(red) + _I(38470) * _I(green) + _I(7471) * _I(blue) + _I(32768)) >> 16)


@kernel(ROWS, types.uint8, ROWS_OUT)
def solarize(image: Bytes, last: int, out: Bytes) -> None:
    """Invert the values above `last`."""
    for y in range(image.shape[0]):
        row, to = image[y], out[y]
        for x in range(row.size):
            to[x] = row[x] if row[x] <= last else _U(255) - row[x]


@kernel(ROWS, types.uint8, ROWS_OUT)
def solarize_add(image: Bytes, added: int, out: Bytes) -> None:
    """Add to the values below 128."""
    for y in range(image.shape[0]):
        row, to = image[y], out[y]
        for x in range(row.size):
            to[x] = _U(min(_I(_I(row[x]) + _I(added)), _I(255))) if row[x] < 128 else row[x]


@kernel(ROWS, types.uint8, types.float32, ROWS_OUT)
def blend_constant(image: Bytes, degenerate: int, factor: float, out: Bytes) -> None:
    """Blend a constant and the image: degenerate + factor * (image - degenerate)."""
    for y in range(image.shape[0]):
        row, to = image[y], out[y]
        for x in range(row.size):
            to[x] = _blended(degenerate, row[x], factor)


@kernel(ROWS)
def luminance_sum(image: Bytes) -> int:
    """Sum of the gray values of all pixels."""
    total = 0
    for y in range(image.shape[0]):
        row, of_row = image[y], _I(0)
        for x in range(row.size // 3):
            of_row += _luminance(row[3 * x], row[3 * x + 1], row[3 * x + 2])
        total += int(of_row)
    return total


@kernel(ROWS, types.float32, ROWS_OUT)
def blend_gray(image: Bytes, factor: float, out: Bytes) -> None:
    """Blend the gray image and the image."""
    gray = np.empty(image.shape[1], np.uint8)
    for y in range(image.shape[0]):
        row, to = image[y], out[y]
        for x in range(row.size // 3):
            value = _U(_luminance(row[3 * x], row[3 * x + 1], row[3 * x + 2]))
            gray[3 * x] = value
            gray[3 * x + 1] = value
            gray[3 * x + 2] = value
        for x in range(row.size):
            to[x] = _blended(gray[x], row[x], factor)


@kernel(ROWS, types.float32, ROWS_OUT)
def blend_smooth(image: Bytes, factor: float, out: Bytes) -> None:
    """Blend the image smoothed by ((1, 1, 1), (1, 5, 1), (1, 1, 1)) / 13 and the image; keep the border."""
    height, width = image.shape
    columns, smooth = np.empty(width, np.int16), np.empty(width, np.uint8)
    for y in range(height):
        row, to = image[y], out[y]
        for x in range(width):
            smooth[x] = row[x]
        if 0 < y < height - 1 and width > 6:
            above, below = image[y - 1], image[y + 1]
            for x in range(width):
                columns[x] = _S(above[x]) + _S(row[x]) + _S(below[x])
            left, middle, right = columns[: width - 6], columns[3 : width - 3], columns[6:]
            inner, inner_row = smooth[3 : width - 3], row[3 : width - 3]
            for x in range(width - 6):
                total = _S(left[x] + middle[x] + right[x] + 4 * _S(inner_row[x]) + 6)
                inner[x] = _U(_I(_I(total) * _I(5042)) >> 16)  # total / 13
        for x in range(width):
            to[x] = _blended(smooth[x], row[x], factor)


@kernel(ROWS, ROWS_OUT)
def autocontrast_tables(image: Bytes, tables: Bytes) -> None:
    """Write the table of each channel, (3, 256), that stretches its values to 0..255."""
    low, high = np.empty(image.shape[1], np.uint8), np.empty(image.shape[1], np.uint8)
    for x in range(image.shape[1]):
        low[x] = high[x] = image[0, x]
    for y in range(1, image.shape[0]):
        row = image[y]
        for x in range(row.size):
            low[x] = min(low[x], row[x])
            high[x] = max(high[x], row[x])
    for x in range(3, low.size):
        low[x % 3] = min(low[x % 3], low[x])
        high[x % 3] = max(high[x % 3], high[x])
    for channel in range(3):
        smallest, largest = float(low[channel]), float(high[channel])
        scale = 255.0 / (largest - smallest) if largest > smallest else 1.0
        offset = -smallest * scale if largest > smallest else 0.0
        for value in range(256):
            tables[channel, value] = min(max(int(value * scale + offset), 0), 255)


@kernel(ROWS, ROWS_OUT)
def equalize_tables(image: Bytes, tables: Bytes) -> None:
    """Write the table of each channel, (3, 256), that makes its values equally frequent, as Pillow does."""
    counts = np.empty((6, 256), np.int64)  # two sets: an increment need not wait for the one before
    for place in range(6):
        for value in range(256):
            counts[place, value] = 0
    for y in range(image.shape[0]):
        row = image[y]
        for start in range(0, row.size - 5, 6):
            six = row[start : start + 6]
            for place in range(6):
                counts[place, six[place]] += 1
        for x in range(row.size - row.size % 6, row.size):
            counts[x % 3, row[x]] += 1
    for channel in range(3):
        total, last = 0, 0
        for value in range(256):
            count = counts[channel, value] + counts[channel + 3, value]
            counts[channel, value] = count
            total += count
            last = count if count > 0 else last
        step = (total - last) // 255
        below = step // 2
        for value in range(256):
            tables[channel, value] = value if step == 0 else min(below // step, 255)
            below += counts[channel, value]


@kernel(ROWS, ROWS, ROWS_OUT)
def apply_tables(image: Bytes, tables: Bytes, out: Bytes) -> None:
    """Replace each value by its entry in the table of its channel, (3, 256)."""
    red, green, blue = tables[0], tables[1], tables[2]
    for y in range(image.shape[0]):
        row, to = image[y], out[y]
        for x in range(row.size // 3):
            to[3 * x] = red[row[3 * x]]
            to[3 * x + 1] = green[row[3 * x + 1]]
            to[3 * x + 2] = blue[row[3 * x + 2]]


@kernel(ROWS, types.int64, types.uint32, types.uint32, ROWS_OUT)
def box_blur(image: Bytes, radius: int, weight: int, far_weight: int, out: Bytes) -> None:
    """Average each value and those up to `radius` rows away; the two rows beyond them have `far_weight`.

    Weights are in units of 2^-24. The edge rows are repeated.
    """
    height, size = image.shape
    sums = np.empty(size, np.uint32)
    for y in range(height):
        to, middle = out[y], image[y]
        for x in range(size):
            sums[x] = middle[x]
        for distance in range(1, radius + 1):
            above, below = image[max(y - distance, 0)], image[min(y + distance, height - 1)]
            for x in range(size):
                sums[x] += _I(above[x]) + _I(below[x])
        above, below = image[max(y - radius - 1, 0)], image[min(y + radius + 1, height - 1)]
        for x in range(size):
            sums[x] = sums[x] * weight + _I(_I(above[x]) + _I(below[x])) * far_weight + (1 << 23)
        for x in range(size):
            to[x] = sums[x] >> 24
