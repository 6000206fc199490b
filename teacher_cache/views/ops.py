"""Pixel operations by timm's names. All except rotation, shear and translation equal Pillow bit for bit."""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from teacher_cache.views import geometry
from teacher_cache.views.decode import Pixels
from teacher_cache.views.geometry import Fill

Op = Callable[[Pixels, float, str, Fill], Pixels]
"""(H, W, 3) uint8 pixels, argument, interpolation, fill -> (H, W, 3) uint8, the input is unchanged."""

_IDENTITY = np.arange(256)
_SMOOTH_KERNEL = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13
_IDENTITY_IMAGE = _IDENTITY.astype(np.uint8)[None]


def _ignore_geometry(function: Callable[[Pixels, float], Pixels]) -> Op:
    """Make an operation that ignores interpolation and fill."""

    def op(pixels: Pixels, argument: float, _interpolation: str, _fill: Fill) -> Pixels:
        return function(pixels, argument)

    return op


def _apply_table(pixels: Pixels, values: NDArray[np.integer] | NDArray[np.floating]) -> Pixels:
    """Replace each byte by its entry in a table (256,) with values in 0..255."""
    return np.asarray(cv2.LUT(pixels, values.astype(np.uint8)), dtype=np.uint8)


def _invert(pixels: Pixels, _: float) -> Pixels:
    return np.asarray(cv2.bitwise_not(pixels), dtype=np.uint8)


def _solarize(pixels: Pixels, threshold: float) -> Pixels:
    return _apply_table(pixels, np.where(threshold > _IDENTITY, _IDENTITY, 255 - _IDENTITY))


def _solarize_add(pixels: Pixels, added: float) -> Pixels:
    return _apply_table(pixels, np.where(_IDENTITY < 128, np.minimum(_IDENTITY + int(added), 255), _IDENTITY))


def _posterize(pixels: Pixels, bits: float) -> Pixels:
    """Keep the high bits. 0 bits give black; timm with Pillow 13 raises an error."""
    return pixels if bits >= 8 else _apply_table(pixels, _IDENTITY & ~(2 ** (8 - int(bits)) - 1))


def _brightness(pixels: Pixels, factor: float) -> Pixels:
    return _apply_table(pixels, _blend(np.zeros((1, 256), np.uint8), _IDENTITY_IMAGE, factor)[0])


def _contrast(pixels: Pixels, factor: float) -> Pixels:
    mean = int(int(_luminance(pixels).sum(dtype=np.int64)) / (pixels.shape[0] * pixels.shape[1]) + 0.5)
    return _apply_table(pixels, _blend(np.full((1, 256), mean, np.uint8), _IDENTITY_IMAGE, factor)[0])


def _color(pixels: Pixels, factor: float) -> Pixels:
    return _blend(_gray(pixels), pixels, factor)


def _desaturate(pixels: Pixels, amount: float) -> Pixels:
    return _gray(pixels) if amount >= 1 else _color(pixels, 1.0 - max(amount, 0.0))


def _sharpness(pixels: Pixels, factor: float) -> Pixels:
    smoothed = pixels.copy()
    if min(pixels.shape[:2]) > 2:  # a multiple of 1/13 is never at .5, so float rounding cannot change a pixel
        smoothed[1:-1, 1:-1] = cv2.filter2D(pixels, -1, _SMOOTH_KERNEL)[1:-1, 1:-1]  # not the border, like Pillow
    return _blend(smoothed, pixels, factor)


def _gaussian_blur(pixels: Pixels, radius: float) -> Pixels:
    return np.array(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def _autocontrast(pixels: Pixels, _: float) -> Pixels:
    return _per_channel(pixels, _autocontrast_table)


def _equalize(pixels: Pixels, _: float) -> Pixels:
    return _per_channel(pixels, _equalize_table)


def _per_channel(pixels: Pixels, table: Callable[[Pixels], NDArray[np.integer]]) -> Pixels:
    planes = [
        _apply_table(np.asarray(plane, np.uint8), table(np.asarray(plane, np.uint8)))
        for plane in cv2.split(pixels)
    ]
    return np.asarray(cv2.merge(planes), dtype=np.uint8)


def _autocontrast_table(plane: Pixels) -> NDArray[np.integer]:
    low, high = int(plane.min()), int(plane.max())
    if high <= low:
        return _IDENTITY
    scale = 255.0 / (high - low)
    table: NDArray[np.int64] = np.clip(np.trunc(_IDENTITY * scale + -low * scale), 0, 255).astype(np.int64)
    return table


def _equalize_table(plane: Pixels) -> NDArray[np.integer]:
    histogram = np.rint(cv2.calcHist([plane], [0], None, [256], [0, 256]).reshape(-1)).astype(np.int64)
    present = histogram[histogram > 0]
    step = int(present.sum() - present[-1]) // 255
    if len(present) <= 1 or step == 0:
        return _IDENTITY
    below = np.concatenate(([0], np.cumsum(histogram)[:-1]))
    table: NDArray[np.int64] = np.minimum((step // 2 + below) // step, 255)
    return table


def _luminance(pixels: Pixels) -> Pixels:
    """(H, W) uint8, Pillow's gray: (19595 R + 38470 G + 7471 B + 2^15) / 2^16.

    Computed in 16 bits: high and low bytes of the weights are summed separately.
    """
    red, green, blue = (np.asarray(plane, dtype=np.uint16) for plane in cv2.split(pixels))
    high = red * np.uint16(76)
    high += green * np.uint16(150)
    high += blue * np.uint16(29)
    red *= np.uint16(139)
    green *= np.uint16(70)
    blue *= np.uint16(47)
    red += green
    red += blue
    red >>= np.uint16(8)
    high += red
    high += np.uint16(128)
    high >>= np.uint16(8)
    return high.astype(np.uint8)


def _gray(pixels: Pixels) -> Pixels:
    return np.asarray(cv2.cvtColor(_luminance(pixels), cv2.COLOR_GRAY2RGB), dtype=np.uint8)


def _blend(degenerate: Pixels, image: Pixels, factor: float) -> Pixels:
    """Pillow's Image.blend of two arrays with the same shape, passed as one-channel images."""
    blended = Image.blend(_as_one_channel(degenerate), _as_one_channel(image), factor)
    return np.frombuffer(blended.tobytes(), np.uint8).reshape(image.shape)


def _as_one_channel(pixels: Pixels) -> Image.Image:
    """A one-channel view of an array of any shape; shares the memory if contiguous."""
    flat = np.ascontiguousarray(pixels)
    return Image.frombuffer("L", (flat.size // len(flat), len(flat)), flat, "raw", "L", 0, 1)


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
