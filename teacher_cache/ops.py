"""RandAugment by timm's names and strings: how magnitudes become arguments, and what each operation does.

Table operations and blends give Pillow's pixels bit for bit. Geometry samples by fixed-point `cv2.remap`,
whose pixels, unlike `warpAffine`'s, do not change with the CPU.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import cv2
import numpy as np
from numpy.typing import NDArray

from teacher_cache.errors import RecipeError

Pixels = NDArray[np.uint8]
Fill = tuple[int, ...]
Op = Callable[[Pixels, float, str, Fill], Pixels]
Roll = Callable[[], float]

LEVELS = 10.0
_TRANSLATE = 0.45
_STEPS = 32  # fixed-point positions of cv2.remap per pixel
_RAMP = np.arange(256)
_normal = NormalDist()


@dataclass(frozen=True, slots=True)
class RandAugment:
    """timm's rand-m..-n..-p..-mstd..-mmax..-inc.. as numbers."""

    names: tuple[str, ...]
    magnitude: float = LEVELS
    layers: int = 2
    probability: float = 0.5
    std: float = 0.0
    maximum: float = LEVELS

    def draw(self, roll: Roll) -> tuple[str, float] | None:
        """One layer: an operation and its argument, or None where the layer is left out."""
        name = self.names[int(roll() * len(self.names))]
        applied, deviate, negative = roll() < self.probability, roll(), roll() > 0.5
        if not applied:
            return None
        level = self.magnitude
        if self.std == math.inf:
            level *= deviate
        elif self.std > 0:
            level += self.std * _normal.inv_cdf(max(deviate, 2**-53))
        level = max(0.0, min(level, self.maximum)) / LEVELS
        return name, ARGUMENTS[name](level, -1.0 if negative else 1.0)


@lru_cache
def parse_randaugment(string: str) -> RandAugment | None:
    """Read timm's string; "" means no RandAugment. Raises RecipeError for a section timm does not know."""
    if not string:
        return None
    kind, *sections = string.split("-")
    if kind != "rand":
        raise RecipeError(f"views.auto_augment = '{string}' does not begin with 'rand'; e.g. rand-m9-mstd0.5-inc1")
    values: dict[str, float] = {}
    for section in sections:
        found = re.fullmatch(r"(mstd)(\d+(?:\.\d*)?|inf)|(mmax|inc|m|n|p)(\d+(?:\.\d*)?)", section)
        if not found:
            raise RecipeError(
                f"views.auto_augment = '{string}': unknown section '{section}'; known are m, n, p, mstd, mmax, inc"
            )
        values[found[1] or found[3]] = float(found[2] or found[4])
    std = values.get("mstd", 0.0)
    return RandAugment(
        names=INCREASING if values.get("inc") else PLAIN,
        magnitude=values.get("m", LEVELS),
        layers=int(values.get("n", 2)),
        probability=values.get("p", 0.5),
        std=math.inf if std > 100 else std,
        maximum=values.get("mmax", LEVELS),
    )


def _table(pixels: Pixels, values: NDArray[np.integer] | NDArray[np.floating]) -> Pixels:
    return np.asarray(cv2.LUT(pixels, values.astype(np.uint8)), dtype=np.uint8)


def _invert(pixels: Pixels, _: float, _interpolation: str, _fill: Fill) -> Pixels:
    return np.asarray(cv2.bitwise_not(pixels), dtype=np.uint8)


def _solarize(pixels: Pixels, threshold: float, _interpolation: str, _fill: Fill) -> Pixels:
    return _table(pixels, np.where(threshold > _RAMP, _RAMP, 255 - _RAMP))


def _solarize_add(pixels: Pixels, added: float, _interpolation: str, _fill: Fill) -> Pixels:
    return _table(pixels, np.where(_RAMP < 128, np.minimum(_RAMP + int(added), 255), _RAMP))


def _posterize(pixels: Pixels, bits: float, _interpolation: str, _fill: Fill) -> Pixels:
    """Keeps the high bits; 0 bits give black, where timm with Pillow 13 raises."""
    return pixels if bits >= 8 else _table(pixels, _RAMP & ~(2 ** (8 - int(bits)) - 1))


def _brightness(pixels: Pixels, factor: float, _interpolation: str, _fill: Fill) -> Pixels:
    return _table(pixels, _blend(np.zeros(256, np.int32), _RAMP, factor))


def _contrast(pixels: Pixels, factor: float, _interpolation: str, _fill: Fill) -> Pixels:
    mean = int(_luminance(pixels).mean() + 0.5)
    return _table(pixels, _blend(np.full(256, mean), _RAMP, factor))


def _color(pixels: Pixels, factor: float, _interpolation: str, _fill: Fill) -> Pixels:
    return _blend(_luminance(pixels)[:, :, None], pixels, factor)


def _sharpness(pixels: Pixels, factor: float, _interpolation: str, _fill: Fill) -> Pixels:
    smooth = pixels.astype(np.int32)
    if min(pixels.shape[:2]) > 2:
        around = cv2.boxFilter(pixels, cv2.CV_32S, (3, 3), normalize=False)
        smooth[1:-1, 1:-1] = ((2 * (around + 4 * smooth) + 13) // 26)[1:-1, 1:-1]  # Pillow keeps the border
    return _blend(smooth, pixels, factor)


def _autocontrast(pixels: Pixels, _: float, _interpolation: str, _fill: Fill) -> Pixels:
    return _by_channel(pixels, _stretch)


def _equalize(pixels: Pixels, _: float, _interpolation: str, _fill: Fill) -> Pixels:
    return _by_channel(pixels, _flatten)


def _by_channel(pixels: Pixels, table: Callable[[NDArray[np.int64]], NDArray[np.int64]]) -> Pixels:
    histograms = [np.bincount(pixels[:, :, channel].ravel(), minlength=256) for channel in range(3)]
    tables = np.stack([table(histogram) for histogram in histograms], axis=1)
    return np.asarray(cv2.LUT(pixels, tables.astype(np.uint8)[None]), dtype=np.uint8)


def _stretch(histogram: NDArray[np.int64]) -> NDArray[np.int64]:
    present = np.flatnonzero(histogram)
    low, high = int(present[0]), int(present[-1])
    if high <= low:
        return _RAMP
    scale = 255.0 / (high - low)
    stretched: NDArray[np.int64] = np.clip(np.trunc(_RAMP * scale + -low * scale), 0, 255).astype(np.int64)
    return stretched


def _flatten(histogram: NDArray[np.int64]) -> NDArray[np.int64]:
    present = histogram[histogram > 0]
    step = int(present.sum() - present[-1]) // 255
    if len(present) <= 1 or step == 0:
        return _RAMP
    before = np.concatenate(([0], np.cumsum(histogram)[:-1]))
    flat: NDArray[np.int64] = np.minimum((step // 2 + before) // step, 255)
    return flat


def _luminance(pixels: Pixels) -> NDArray[np.int32]:
    """Pillow's fixed-point conversion to grey."""
    red, green, blue = (pixels[:, :, channel].astype(np.int32) for channel in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def _blend(degenerate: NDArray[np.integer], image: NDArray[np.integer], factor: float) -> Pixels:
    """Pillow's blend, in its float32 and with its truncation."""
    base = np.asarray(degenerate, dtype=np.float32)
    mixed = base + np.float32(factor) * (np.asarray(image, dtype=np.float32) - base)
    return np.clip(mixed, 0, 255).astype(np.uint8)


def _affine(pixels: Pixels, matrix: tuple[float, ...], interpolation: str, fill: Fill) -> Pixels:
    """out(x, y) = in(a x + b y + c, d x + e y + f) at pixel centres; outside it is `fill`, as in Pillow."""
    a, b, c, d, e, f = matrix
    height, width = pixels.shape[:2]
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    across, down = a * x + b * y + c, d * x + e * y + f
    outside = (across < 0) | (across >= width) | (down < 0) | (down >= height)
    columns = np.rint((across - 0.5) * _STEPS).astype(np.int32)
    rows = np.rint((down - 0.5) * _STEPS).astype(np.int32)
    whole = np.stack((columns >> 5, rows >> 5), axis=2).astype(np.int16)
    part = ((rows & 31) << 5 | columns & 31).astype(np.uint16)
    how = cv2.INTER_CUBIC if interpolation == "bicubic" else cv2.INTER_LINEAR
    moved = np.asarray(cv2.remap(pixels, whole, part, how, borderMode=cv2.BORDER_REPLICATE), dtype=np.uint8)
    moved[outside] = fill
    return moved


def _rotate(pixels: Pixels, degrees: float, interpolation: str, fill: Fill) -> Pixels:
    angle = -math.radians(degrees % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    middle_y, middle_x = pixels.shape[0] / 2.0, pixels.shape[1] / 2.0
    across = middle_x - cos * middle_x - sin * middle_y
    down = middle_y + sin * middle_x - cos * middle_y
    return _affine(pixels, (cos, sin, across, -sin, cos, down), interpolation, fill)


def _shear_x(pixels: Pixels, factor: float, interpolation: str, fill: Fill) -> Pixels:
    return _affine(pixels, (1, factor, 0, 0, 1, 0), interpolation, fill)


def _shear_y(pixels: Pixels, factor: float, interpolation: str, fill: Fill) -> Pixels:
    return _affine(pixels, (1, 0, 0, factor, 1, 0), interpolation, fill)


def _translate_x(pixels: Pixels, share: float, interpolation: str, fill: Fill) -> Pixels:
    return _affine(pixels, (1, 0, share * pixels.shape[1], 0, 1, 0), interpolation, fill)


def _translate_y(pixels: Pixels, share: float, interpolation: str, fill: Fill) -> Pixels:
    return _affine(pixels, (1, 0, 0, 0, 1, share * pixels.shape[0]), interpolation, fill)


def _constant(level: float, sign: float) -> float:
    return 0.0


def _enhance(level: float, sign: float) -> float:
    return level * 1.8 + 0.1


def _enhance_more(level: float, sign: float) -> float:
    return max(0.1, 1.0 + sign * level * 0.9)


Argument = Callable[[float, float], float]

_FAMILY: dict[str, tuple[Op, Argument]] = {
    "AutoContrast": (_autocontrast, _constant),
    "Equalize": (_equalize, _constant),
    "Invert": (_invert, _constant),
    "Rotate": (_rotate, lambda level, sign: sign * level * 30.0),
    "Posterize": (_posterize, lambda level, sign: int(level * 4)),
    "PosterizeIncreasing": (_posterize, lambda level, sign: 4 - int(level * 4)),
    "Solarize": (_solarize, lambda level, sign: min(256, int(level * 256))),
    "SolarizeIncreasing": (_solarize, lambda level, sign: 256 - min(256, int(level * 256))),
    "SolarizeAdd": (_solarize_add, lambda level, sign: min(128, int(level * 110))),
    "Color": (_color, _enhance),
    "ColorIncreasing": (_color, _enhance_more),
    "Contrast": (_contrast, _enhance),
    "ContrastIncreasing": (_contrast, _enhance_more),
    "Brightness": (_brightness, _enhance),
    "BrightnessIncreasing": (_brightness, _enhance_more),
    "Sharpness": (_sharpness, _enhance),
    "SharpnessIncreasing": (_sharpness, _enhance_more),
    "ShearX": (_shear_x, lambda level, sign: sign * level * 0.3),
    "ShearY": (_shear_y, lambda level, sign: sign * level * 0.3),
    "TranslateXRel": (_translate_x, lambda level, sign: sign * level * _TRANSLATE),
    "TranslateYRel": (_translate_y, lambda level, sign: sign * level * _TRANSLATE),
}
"""timm's names: what the operation does, and how a level in [0, mmax / 10] and a sign become its argument."""

OPS: dict[str, Op] = {name: op for name, (op, _) in _FAMILY.items()}
ARGUMENTS: dict[str, Argument] = {name: argument for name, (_, argument) in _FAMILY.items()}

_GROWING = {"Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness"}
PLAIN = tuple(name for name in _FAMILY if not name.endswith("Increasing"))
INCREASING = tuple(f"{name}Increasing" if name in _GROWING else name for name in PLAIN)
