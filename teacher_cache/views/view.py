"""A view is the numbers of one augmentation: drawn here from the dice, rendered in pixels.py."""

import math
from typing import NamedTuple

from teacher_cache.rng import uniforms
from teacher_cache.views.augment import Roll, Step, jitter, parse_augment, pick
from teacher_cache.views.policy import ViewPolicy

VIEW_VERSION = 2
"""Stands in every manifest; whatever changes what a seed draws, or how it renders, must change it."""

ATTEMPTS = 10
ERASE_AREA = (0.02, 1 / 3)
ERASE_ASPECT = (0.3, 1 / 0.3)
_ERASE_LOG_ASPECT = (math.log(ERASE_ASPECT[0]), math.log(ERASE_ASPECT[1]))

Box = tuple[int, int, int, int]
"""top, left, height, width in pixels"""


class Erase(NamedTuple):
    """One erased box; `noise` names the bytes that fill it."""

    box: Box
    mode: str
    noise: int


class View(NamedTuple):
    """One augmentation as numbers: crop box in the decoded image, flips, operations, erased boxes.

    A named tuple, which is made in a quarter of the time of a frozen dataclass: one is made for every view.
    """

    box: Box
    interpolation: str
    hflip: bool
    vflip: bool
    ops: tuple[Step, ...]
    erase: tuple[Erase, ...]


def draw(policy: ViewPolicy, seed: int, key: str, height: int, width: int) -> View:
    """Draw the view of one record under one seed; a pure function of its arguments.

    height, width: of the decoded image. Draws as timm does: RandomResizedCrop with ten attempts, flips,
    the operations of auto_augment, colour jitter, RandomErasing.
    """
    roll = uniforms("view", seed, key)
    box = _crop(policy, roll, height, width)
    interpolation = pick(policy.interpolation, roll)
    hflip, vflip = roll() < policy.hflip, roll() < policy.vflip
    augment = parse_augment(policy.auto_augment)
    ops = augment.draw(roll, policy.interpolation) if augment else ()
    if policy.color_jitter:
        ops += jitter(policy.color_jitter, roll)
    erase = _erasures(policy, roll) if roll() < policy.re_prob else ()
    return View(box, interpolation, hflip, vflip, ops, erase)


def _crop(policy: ViewPolicy, roll: Roll, height: int, width: int) -> Box:
    smallest, largest = policy.scale[0] * height * width, policy.scale[1] * height * width
    low, high = math.log(policy.ratio[0]), math.log(policy.ratio[1])
    for _ in range(ATTEMPTS):
        area = smallest + (largest - smallest) * roll()
        ratio = math.exp(low + (high - low) * roll())
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(roll() * (height - crop_height + 1))
            left = int(roll() * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    return _central(policy, height, width)


def _central(policy: ViewPolicy, height: int, width: int) -> Box:
    """timm's fallback: the largest central box whose aspect the policy allows."""
    low, high = policy.ratio
    crop_height, crop_width = height, width
    if width / height < low:
        crop_height = min(height, max(1, round(width / low)))
    elif width / height > high:
        crop_width = min(width, max(1, round(height * high)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _erasures(policy: ViewPolicy, roll: Roll) -> tuple[Erase, ...]:
    size, count = policy.size, 1 + int(roll() * policy.re_count)
    smallest, largest = (share * size**2 / count for share in ERASE_AREA)
    low, high = _ERASE_LOG_ASPECT
    boxes = []
    for _ in range(count):
        for _ in range(ATTEMPTS):
            area = smallest + (largest - smallest) * roll()
            aspect = math.exp(low + (high - low) * roll())
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < height < size and 0 < width < size:
                top, left = int(roll() * (size - height + 1)), int(roll() * (size - width + 1))
                boxes.append(Erase((top, left, height, width), policy.re_mode, int(roll() * 2**32)))
                break
    return tuple(boxes)
