"""Draw a view: the numbers of one augmentation. render.py turns a view into pixels."""

import math
from typing import NamedTuple

from teacher_cache.rng import uniforms
from teacher_cache.views.augment import Operation, Uniform, choose_interpolation, color_jitter, parse_augment
from teacher_cache.views.policy import ViewPolicy

VIEW_VERSION = 2
"""Stored in every manifest. Increase it with any change to the drawn numbers or rendered pixels of a seed."""

ATTEMPTS = 10
ERASE_AREA = (0.02, 1 / 3)
ERASE_ASPECT = (0.3, 1 / 0.3)
_ERASE_LOG_ASPECT = (math.log(ERASE_ASPECT[0]), math.log(ERASE_ASPECT[1]))

Box = tuple[int, int, int, int]
"""top, left, height, width in pixels."""


class Erase(NamedTuple):
    """One erased box. mode: const, rand or pixel; noise: seeds the bytes that fill it."""

    box: Box
    mode: str
    noise: int


class View(NamedTuple):
    """One augmentation as numbers: crop box in the decoded image, flips, operations, erased boxes.

    A named tuple takes a quarter of the time of a frozen dataclass to create.
    """

    box: Box
    interpolation: str
    hflip: bool
    vflip: bool
    ops: tuple[Operation, ...]
    erase: tuple[Erase, ...]


def draw_view(policy: ViewPolicy, seed: int, key: str, height: int, width: int) -> View:
    """Draw the view of one record under one seed; a pure function of its arguments.

    height, width: size of the decoded image. Order as in timm: RandomResizedCrop with ten attempts, flips,
    the operations of auto_augment, color jitter, RandomErasing.
    """
    uniform = uniforms("view", seed, key)
    box = _random_crop(policy, uniform, height, width)
    interpolation = choose_interpolation(policy.interpolation, uniform)
    hflip, vflip = uniform() < policy.hflip, uniform() < policy.vflip
    augment = parse_augment(policy.auto_augment)
    ops = augment.draw(uniform, policy.interpolation) if augment else ()
    if policy.color_jitter:
        ops += color_jitter(policy.color_jitter, uniform)
    erase = _draw_erases(policy, uniform) if uniform() < policy.re_prob else ()
    return View(box, interpolation, hflip, vflip, ops, erase)


def _random_crop(policy: ViewPolicy, uniform: Uniform, height: int, width: int) -> Box:
    min_area, max_area = policy.scale[0] * height * width, policy.scale[1] * height * width
    low, high = math.log(policy.ratio[0]), math.log(policy.ratio[1])
    for _ in range(ATTEMPTS):
        area = min_area + (max_area - min_area) * uniform()
        ratio = math.exp(low + (high - low) * uniform())
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(uniform() * (height - crop_height + 1))
            left = int(uniform() * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    return _central_crop(policy, height, width)


def _central_crop(policy: ViewPolicy, height: int, width: int) -> Box:
    """timm's fallback: the largest centered box with an aspect ratio allowed by the policy."""
    low, high = policy.ratio
    crop_height, crop_width = height, width
    if width / height < low:
        crop_height = min(height, max(1, round(width / low)))
    elif width / height > high:
        crop_width = min(width, max(1, round(height * high)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _draw_erases(policy: ViewPolicy, uniform: Uniform) -> tuple[Erase, ...]:
    size, count = policy.size, 1 + int(uniform() * policy.re_count)
    min_area, max_area = (fraction * size**2 / count for fraction in ERASE_AREA)
    low, high = _ERASE_LOG_ASPECT
    erases = []
    for _ in range(count):
        for _ in range(ATTEMPTS):
            area = min_area + (max_area - min_area) * uniform()
            aspect = math.exp(low + (high - low) * uniform())
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < height < size and 0 < width < size:
                top, left = int(uniform() * (size - height + 1)), int(uniform() * (size - width + 1))
                erases.append(Erase((top, left, height, width), policy.re_mode, int(uniform() * 2**32)))
                break
    return tuple(erases)
