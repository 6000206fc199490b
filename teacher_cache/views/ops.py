"""Pixel operations by timm's names. All except rotation, shear and translation equal Pillow bit for bit."""

import math
from collections.abc import Callable

import cv2
import numpy as np

from teacher_cache.kernels import operations
from teacher_cache.views import geometry
from teacher_cache.views.decode import Pixels
from teacher_cache.views.geometry import Fill, rows_of

Op = Callable[[Pixels, float, str, Fill], Pixels]
"""(H, W, 3) uint8 pixels, argument, interpolation, fill -> (H, W, 3) uint8, the input is unchanged."""

_BLUR_PASSES = 3


def _ignore_geometry(function: Callable[[Pixels, float], Pixels]) -> Op:
    """Make an operation that ignores interpolation and fill."""

    def op(pixels: Pixels, argument: float, _interpolation: str, _fill: Fill) -> Pixels:
        return function(pixels, argument)

    return op


def apply(kernel: Callable[..., None], pixels: Pixels, *arguments: object) -> Pixels:
    """Call a kernel with the rows of (H, W, 3) pixels, its arguments and the rows of the result."""
    result = np.empty(pixels.shape, np.uint8)
    kernel(rows_of(pixels), *arguments, rows_of(result))
    return result


def _invert(pixels: Pixels, _: float) -> Pixels:
    return np.asarray(cv2.bitwise_not(pixels), dtype=np.uint8)


def _solarize(pixels: Pixels, threshold: float) -> Pixels:
    if threshold <= 0:
        return _invert(pixels, 0.0)
    return apply(operations.solarize, pixels, min(math.ceil(threshold) - 1, 255))


def _solarize_add(pixels: Pixels, added: float) -> Pixels:
    return apply(operations.solarize_add, pixels, int(added))


def _posterize(pixels: Pixels, bits: float) -> Pixels:
    """Keep the high bits. 0 bits give black; timm with Pillow 13 raises an error."""
    return pixels if bits >= 8 else pixels & np.uint8(256 - 2 ** (8 - max(int(bits), 0)))


def _brightness(pixels: Pixels, factor: float) -> Pixels:
    return apply(operations.blend_constant, pixels, 0, factor)


def _contrast(pixels: Pixels, factor: float) -> Pixels:
    height, width = pixels.shape[:2]
    total = operations.luminance_sum(rows_of(pixels))
    return apply(operations.blend_constant, pixels, int(total / (height * width) + 0.5), factor)


def _color(pixels: Pixels, factor: float) -> Pixels:
    return apply(operations.blend_gray, pixels, factor)


def _desaturate(pixels: Pixels, amount: float) -> Pixels:
    return _color(pixels, 1.0 - min(max(amount, 0.0), 1.0))


def _sharpness(pixels: Pixels, factor: float) -> Pixels:
    return apply(operations.blend_smooth, pixels, factor)


def _gaussian_blur(pixels: Pixels, radius: float) -> Pixels:
    """Pillow's: three box blurs of the rows, then three of the columns."""
    box = _box_radius(np.float32(radius))
    whole = int(box)
    weight = int(np.float32(2**24) / (box * 2 + 1))
    far_weight = (2**24 - (2 * whole + 1) * weight) // 2
    for _ in range(2):
        pixels = np.asarray(cv2.transpose(pixels), dtype=np.uint8)
        for _ in range(_BLUR_PASSES):
            pixels = apply(operations.box_blur, pixels, whole, weight, far_weight)
    return pixels


def _box_radius(radius: np.float32) -> np.float32:
    """Radius of a box blur whose repetition equals a Gaussian (Gwosdek et al. 2011, equations 7, 11 and 14)."""
    variance = radius * radius / np.float32(_BLUR_PASSES)
    length = np.float32(math.sqrt(12.0 * float(variance) + 1.0))
    whole = np.float32(math.floor((float(length) - 1.0) / 2.0))
    part = np.float32(float(2 * whole + 1) * (float(whole * (whole + 1)) - float(variance) * 3.0))
    return np.float32(whole + part / (6 * (variance - (whole + 1) * (whole + 1))))


def _autocontrast(pixels: Pixels, _: float) -> Pixels:
    return _apply_tables(operations.autocontrast_tables, pixels)


def _equalize(pixels: Pixels, _: float) -> Pixels:
    return _apply_tables(operations.equalize_tables, pixels)


def _apply_tables(find: Callable[..., None], pixels: Pixels) -> Pixels:
    """Replace each value by its entry in its channel's table. find: writes an image's tables, (3, 256)."""
    tables = np.empty((3, 256), np.uint8)
    find(rows_of(pixels), tables)
    return apply(operations.apply_tables, pixels, tables)


OPS: dict[str, Op] = {
    "AutoContrast": _ignore_geometry(_autocontrast),
    "Equalize": _ignore_geometry(_equalize),
    "Invert": _ignore_geometry(_invert),
    "Rotate": geometry.rotate,
    "Posterize": _ignore_geometry(_posterize),
    "PosterizeIncreasing": _ignore_geometry(_posterize),
    "Solarize": _ignore_geometry(_solarize),
    "SolarizeIncreasing": _ignore_geometry(_solarize),
    "SolarizeAdd": _ignore_geometry(_solarize_add),
    "Color": _ignore_geometry(_color),
    "ColorIncreasing": _ignore_geometry(_color),
    "Contrast": _ignore_geometry(_contrast),
    "ContrastIncreasing": _ignore_geometry(_contrast),
    "Brightness": _ignore_geometry(_brightness),
    "BrightnessIncreasing": _ignore_geometry(_brightness),
    "Sharpness": _ignore_geometry(_sharpness),
    "SharpnessIncreasing": _ignore_geometry(_sharpness),
    "ShearX": geometry.shear_x,
    "ShearY": geometry.shear_y,
    "TranslateXRel": geometry.translate_x,
    "TranslateYRel": geometry.translate_y,
    "Desaturate": _ignore_geometry(_desaturate),
    "GaussianBlur": _ignore_geometry(_gaussian_blur),
}
