"""timm's augmentation strings: draw the operations of a view and their arguments. Numbers only, no pixels."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

from teacher_cache.errors import RecipeError

Uniform = Callable[[], float]
"""Returns the next random number in [0, 1)."""
Operation = tuple[str, float, str]
"""Operation name (timm's), argument, interpolation ("" for operations that do not resample)."""

LEVEL_DENOMINATOR = 10.0
"""level = magnitude / 10 (timm's _LEVEL_DENOM)."""
GEOMETRIC = frozenset(("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"))
RANDOM_INTERPOLATION = ("bilinear", "bicubic")
BLUR_RADIUS = (0.1, 2.0)
_LEVEL_DIGITS = 6  # levels are rounded: the last bits of a logarithm differ between C libraries
_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
_JITTERED_PROPERTIES = ("Brightness", "Contrast", "Color")
_inverse_normal = NormalDist().inv_cdf

Argument = Callable[[float, float], float]


def _constant(level: float, sign: float) -> float:
    return 0.0


def _enhance(level: float, sign: float) -> float:
    return level * 1.8 + 0.1


def _enhance_more(level: float, sign: float) -> float:
    return max(0.1, 1.0 + sign * level * 0.9)


def _shear(level: float, sign: float) -> float:
    return sign * level * 0.3


def _translate(level: float, sign: float) -> float:
    return sign * level * 0.45


ARGUMENTS: dict[str, Argument] = {
    "AutoContrast": _constant,
    "Equalize": _constant,
    "Invert": _constant,
    "Rotate": lambda level, sign: sign * level * 30.0,
    "Posterize": lambda level, sign: int(level * 4),
    "PosterizeIncreasing": lambda level, sign: 4 - int(level * 4),
    "Solarize": lambda level, sign: min(256, int(level * 256)),
    "SolarizeIncreasing": lambda level, sign: 256 - min(256, int(level * 256)),
    "SolarizeAdd": lambda level, sign: min(128, int(level * 110)),
    "Color": _enhance,
    "ColorIncreasing": _enhance_more,
    "Contrast": _enhance,
    "ContrastIncreasing": _enhance_more,
    "Brightness": _enhance,
    "BrightnessIncreasing": _enhance_more,
    "Sharpness": _enhance,
    "SharpnessIncreasing": _enhance_more,
    "ShearX": _shear,
    "ShearY": _shear,
    "TranslateXRel": _translate,
    "TranslateYRel": _translate,
}
"""RandAugment's operations by timm's names: a level in [0, mmax / 10] and a sign -> the argument."""

_WITH_INCREASING = {"Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness"}
TRANSFORMS = tuple(name for name in ARGUMENTS if not name.endswith("Increasing"))
INCREASING_TRANSFORMS = tuple(f"{name}Increasing" if name in _WITH_INCREASING else name for name in TRANSFORMS)


@dataclass(frozen=True, slots=True)
class RandAugment:
    """The values of timm's string "rand-m..-n..-p..-mstd..-mmax..-inc.."."""

    names: tuple[str, ...]
    magnitude: float = LEVEL_DENOMINATOR
    layers: int = 2
    probability: float = 0.5
    std: float = 0.0
    """0: constant magnitude; infinity: magnitude drawn uniformly from 0 to `magnitude`."""
    maximum: float = LEVEL_DENOMINATOR

    def draw(self, uniform: Uniform, interpolation: str) -> tuple[Operation, ...]:
        """Draw the operations of one view; each layer is applied with `probability`."""
        operations = []
        for _ in range(self.layers):
            if uniform() < self.probability:
                name = self.names[int(uniform() * len(self.names))]
                argument = ARGUMENTS[name](self._level(uniform), -1.0 if uniform() > 0.5 else 1.0)
                operations.append(
                    (name, argument, choose_interpolation(interpolation, uniform) if name in GEOMETRIC else "")
                )
        return tuple(operations)

    def _level(self, uniform: Uniform) -> float:
        level = self.magnitude
        if self.std == float("inf"):
            level *= uniform()
        elif self.std > 0:
            level += self.std * _inverse_normal(uniform() or 2**-33)
        return round(max(0.0, min(level, self.maximum)) / LEVEL_DENOMINATOR, _LEVEL_DIGITS)


@dataclass(frozen=True, slots=True)
class ThreeAugment:
    """timm's "3a", the three augmentations of DeiT III (section 3.3): always exactly one of them."""

    def draw(self, uniform: Uniform, interpolation: str) -> tuple[Operation, ...]:
        """Draw one operation: solarize at 128, grayscale, or Gaussian blur with a random radius."""
        choice = int(uniform() * 3)
        if choice == 0:
            return (("Solarize", 128, ""),)
        if choice == 1:
            return (("Desaturate", 1.0, ""),)
        low, high = BLUR_RADIUS
        return (("GaussianBlur", low + (high - low) * uniform(), ""),)


def choose_interpolation(interpolation: str, uniform: Uniform) -> str:
    """Draw bilinear or bicubic if the interpolation is "random" (as timm does); otherwise return it."""
    return RANDOM_INTERPOLATION[uniform() < 0.5] if interpolation == "random" else interpolation


def color_jitter(strength: float, uniform: Uniform) -> tuple[Operation, ...]:
    """Draw color jitter: brightness, contrast and saturation in random order, as timm and torchvision do.

    strength: each factor is uniform in [max(0, 1 - strength), 1 + strength].
    """
    low = max(0.0, 1.0 - strength)
    order = _ORDERS[int(uniform() * 6)]
    return tuple((_JITTERED_PROPERTIES[index], low + (1.0 + strength - low) * uniform(), "") for index in order)


@lru_cache
def parse_augment(string: str) -> RandAugment | ThreeAugment | None:
    """Parse timm's auto_augment string; "" returns None.

    Raises RecipeError for strings that timm rejects, ignores in part, or reads differently.
    """
    if not string:
        return None
    if string == "3a":
        return ThreeAugment()
    kind, *sections = string.split("-")
    if kind != "rand":
        raise RecipeError(
            f"views.auto_augment = '{string}' is invalid; use '3a', '', or a string like 'rand-m9-mstd0.5-inc1'"
        )
    values: dict[str, float] = {}
    for section in sections:
        match = re.fullmatch(r"(mstd|p)(\d+(?:\.\d*)?)|(mmax|inc|m|n)(\d+)", section)
        if not match:
            raise RecipeError(
                f"views.auto_augment = '{string}': unknown section '{section}'; use m, n, mmax or inc with "
                "an integer, or p or mstd with a number (timm's t, weights of the operations, is not supported)"
            )
        if values.setdefault(match[1] or match[3], float(match[2] or match[4])) != float(match[2] or match[4]):
            raise RecipeError(f"views.auto_augment = '{string}' sets {match[1] or match[3]} twice; keep one")
    std = values.get("mstd", 0.0)
    return RandAugment(
        names=INCREASING_TRANSFORMS if values.get("inc") else TRANSFORMS,
        magnitude=values.get("m", LEVEL_DENOMINATOR),
        layers=int(values.get("n", 2)),
        probability=values.get("p", 0.5),
        std=float("inf") if std > 100 else std,
        maximum=values.get("mmax") or LEVEL_DENOMINATOR,
    )
