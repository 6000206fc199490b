"""A view is the numbers of one augmentation: drawn here from the dice, rendered in pixels.py."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from teacher_cache.dice import dice
from teacher_cache.ops import RandAugment, parse_randaugment
from teacher_cache.recipe import ViewPolicy

VIEW_VERSION = 1
"""Stands in every manifest; whatever changes what a seed draws, or how it renders, must change it."""

ATTEMPTS = 10
ERASE_AREA = (0.02, 1 / 3)
ERASE_ASPECT = (0.3, 1 / 0.3)

Box = tuple[int, int, int, int]
"""top, left, height, width in pixels"""


@dataclass(frozen=True, slots=True)
class Erase:
    """One erased box; `noise` keys the bytes that fill it."""

    box: Box
    mode: str
    noise: int


@dataclass(frozen=True, slots=True)
class View:
    """One augmentation as numbers: crop box in the decoded image, flips, operations, erased boxes."""

    box: Box
    hflip: bool
    vflip: bool
    ops: tuple[tuple[str, float], ...]
    erase: tuple[Erase, ...]


def draw(policy: ViewPolicy, seed: int, key: str, height: int, width: int) -> View:
    """Draw the view of one record under one seed; a pure function of its arguments.

    height, width: of the decoded image. Draws as timm does: RandomResizedCrop with ten attempts, flips,
    RandAugment, RandomErasing.
    """
    rng = dice("view", seed, key)
    roll = _rolls(rng).__next__
    box = _crop(policy, roll, height, width)
    hflip, vflip = roll() < policy.hflip, roll() < policy.vflip
    ops = _operations(parse_randaugment(policy.auto_augment), roll)
    return View(box, hflip, vflip, ops, _erasures(policy, roll))


def _rolls(rng: np.random.Generator) -> Iterator[float]:
    """Uniform numbers in [0, 1), drawn in blocks; plain floats are ten times cheaper to compute with."""
    while True:
        yield from rng.random(32).tolist()


def _between(roll: Callable[[], float], low: float, high: float) -> float:
    return low + (high - low) * roll()


def _crop(policy: ViewPolicy, roll: Callable[[], float], height: int, width: int) -> Box:
    low, high = math.log(policy.ratio[0]), math.log(policy.ratio[1])
    for _ in range(ATTEMPTS):
        area = _between(roll, *policy.scale) * height * width
        ratio = math.exp(_between(roll, low, high))
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


def _operations(policy: RandAugment | None, roll: Callable[[], float]) -> tuple[tuple[str, float], ...]:
    if policy is None:
        return ()
    return tuple(op for op in (policy.draw(roll) for _ in range(policy.layers)) if op is not None)


def _erasures(policy: ViewPolicy, roll: Callable[[], float]) -> tuple[Erase, ...]:
    if roll() >= policy.re_prob:
        return ()
    count = 1 + int(roll() * policy.re_count)
    low, high = math.log(ERASE_ASPECT[0]), math.log(ERASE_ASPECT[1])
    boxes = []
    for _ in range(count):
        for _ in range(ATTEMPTS):
            area = _between(roll, *ERASE_AREA) * policy.size**2 / count
            aspect = math.exp(_between(roll, low, high))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < height < policy.size and 0 < width < policy.size:
                top = int(roll() * (policy.size - height + 1))
                left = int(roll() * (policy.size - width + 1))
                noise = int(roll() * 2**53)
                boxes.append(Erase((top, left, height, width), policy.re_mode, noise))
                break
    return tuple(boxes)
