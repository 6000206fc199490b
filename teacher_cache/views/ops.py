"""What each operation does to pixels, by timm's names. Tables, blends and the blur are Pillow's bit for bit."""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from teacher_cache.views import geometry
from teacher_cache.views.decode import Pixels
from teacher_cache.views.geometry import Fill

Op = Callable[[Pixels, float, str, Fill], Pixels]
"""(H, W, 3) uint8, the argument, the interpolation and the fill of geometry -> (H, W, 3) uint8, a new array."""

_RAMP = np.arange(256)
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13
_BYTES = _RAMP.astype(np.uint8)[None]


def _plain(change: Callable[[Pixels, float], Pixels]) -> Op:
    """An operation that knows neither interpolation nor fill."""

    def op(pixels: Pixels, argument: float, _interpolation: str, _fill: Fill) -> Pixels:
        return change(pixels, argument)

    return op


def _table(pixels: Pixels, values: NDArray[np.integer] | NDArray[np.floating]) -> Pixels:
    return np.asarray(cv2.LUT(pixels, values.astype(np.uint8)), dtype=np.uint8)


def _invert(pixels: Pixels, _: float) -> Pixels:
    return np.asarray(cv2.bitwise_not(pixels), dtype=np.uint8)


def _solarize(pixels: Pixels, threshold: float) -> Pixels:
    return _table(pixels, np.where(threshold > _RAMP, _RAMP, 255 - _RAMP))


def _solarize_add(pixels: Pixels, added: float) -> Pixels:
    return _table(pixels, np.where(_RAMP < 128, np.minimum(_RAMP + int(added), 255), _RAMP))


def _posterize(pixels: Pixels, bits: float) -> Pixels:
    """Keeps the high bits; 0 bits give black, where timm with Pillow 13 raises."""
    return pixels if bits >= 8 else _table(pixels, _RAMP & ~(2 ** (8 - int(bits)) - 1))


def _brightness(pixels: Pixels, factor: float) -> Pixels:
    return _table(pixels, _blend(np.zeros((1, 256), np.uint8), _BYTES, factor)[0])


def _contrast(pixels: Pixels, factor: float) -> Pixels:
    mean = int(int(_luminance(pixels).sum(dtype=np.int64)) / (pixels.shape[0] * pixels.shape[1]) + 0.5)
    return _table(pixels, _blend(np.full((1, 256), mean, np.uint8), _BYTES, factor)[0])


def _color(pixels: Pixels, factor: float) -> Pixels:
    return _blend(_grey(pixels), pixels, factor)


def _desaturate(pixels: Pixels, share: float) -> Pixels:
    return _grey(pixels) if share >= 1 else _color(pixels, 1.0 - max(share, 0.0))


def _sharpness(pixels: Pixels, factor: float) -> Pixels:
    smooth = pixels.copy()
    if min(pixels.shape[:2]) > 2:  # a 13th is never a half, so no rounding of floats can decide a pixel
        smooth[1:-1, 1:-1] = cv2.filter2D(pixels, -1, _SMOOTH)[1:-1, 1:-1]  # Pillow keeps the border
    return _blend(smooth, pixels, factor)


def _gaussian_blur(pixels: Pixels, radius: float) -> Pixels:
    return np.array(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def _autocontrast(pixels: Pixels, _: float) -> Pixels:
    return _by_channel(pixels, _stretch)


def _equalize(pixels: Pixels, _: float) -> Pixels:
    return _by_channel(pixels, _flatten)


def _by_channel(pixels: Pixels, table: Callable[[Pixels], NDArray[np.integer]]) -> Pixels:
    planes = [
        _table(np.asarray(plane, np.uint8), table(np.asarray(plane, np.uint8))) for plane in cv2.split(pixels)
    ]
    return np.asarray(cv2.merge(planes), dtype=np.uint8)


def _stretch(plane: Pixels) -> NDArray[np.integer]:
    low, high = int(plane.min()), int(plane.max())
    if high <= low:
        return _RAMP
    scale = 255.0 / (high - low)
    stretched: NDArray[np.int64] = np.clip(np.trunc(_RAMP * scale + -low * scale), 0, 255).astype(np.int64)
    return stretched


def _flatten(plane: Pixels) -> NDArray[np.integer]:
    histogram = np.rint(cv2.calcHist([plane], [0], None, [256], [0, 256]).reshape(-1)).astype(np.int64)
    present = histogram[histogram > 0]
    step = int(present.sum() - present[-1]) // 255
    if len(present) <= 1 or step == 0:
        return _RAMP
    before = np.concatenate(([0], np.cumsum(histogram)[:-1]))
    flat: NDArray[np.int64] = np.minimum((step // 2 + before) // step, 255)
    return flat


def _luminance(pixels: Pixels) -> Pixels:
    """Pillow's grey, (19595 R + 38470 G + 7471 B + 2^15) / 2^16; in 16 bits, the weights' bytes taken apart."""
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


def _grey(pixels: Pixels) -> Pixels:
    return np.asarray(cv2.cvtColor(_luminance(pixels), cv2.COLOR_GRAY2RGB), dtype=np.uint8)


def _blend(degenerate: Pixels, image: Pixels, factor: float) -> Pixels:
    """Pillow's own blend of two arrays of one shape; it takes any number of channels for one."""
    blended = Image.blend(_as_one_channel(degenerate), _as_one_channel(image), factor)
    return np.frombuffer(blended.tobytes(), np.uint8).reshape(image.shape)


def _as_one_channel(pixels: Pixels) -> Image.Image:
    """Shares the memory."""
    flat = np.ascontiguousarray(pixels)
    return Image.frombuffer("L", (flat.size // len(flat), len(flat)), flat, "raw", "L", 0, 1)


OPS: dict[str, Op] = {
    "AutoContrast": _plain(_autocontrast),
    "Equalize": _plain(_equalize),
    "Invert": _plain(_invert),
    "Rotate": geometry.rotate,
    "Posterize": _plain(_posterize),
    "PosterizeIncreasing": _plain(_posterize),
    "Solarize": _plain(_solarize),
    "SolarizeIncreasing": _plain(_solarize),
    "SolarizeAdd": _plain(_solarize_add),
    "Color": _plain(_color),
    "ColorIncreasing": _plain(_color),
    "Contrast": _plain(_contrast),
    "ContrastIncreasing": _plain(_contrast),
    "Brightness": _plain(_brightness),
    "BrightnessIncreasing": _plain(_brightness),
    "Sharpness": _plain(_sharpness),
    "SharpnessIncreasing": _plain(_sharpness),
    "ShearX": geometry.shear_x,
    "ShearY": geometry.shear_y,
    "TranslateXRel": geometry.translate_x,
    "TranslateYRel": geometry.translate_y,
    "Desaturate": _plain(_desaturate),
    "GaussianBlur": _plain(_gaussian_blur),
}
