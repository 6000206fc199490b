"""Our draws have timm's distribution: 20,000 of each, two-sample tests, fixed seeds."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from PIL import Image
from timm.data import auto_augment as timm
from timm.data.mixup import Mixup, cutmix_bbox_and_lam
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import ColorJitter

from teacher_cache.rng import uniforms
from teacher_cache.views.augment import Operation, parse_augment
from teacher_cache.views.mix import Mix, draw_mix
from teacher_cache.views.policy import ViewPolicy
from teacher_cache.views.view import draw_view

DRAWS = 20_000
CHANCE = 1e-4
"""Probability that a comparison fails by chance; the seeds are fixed, so the result never changes."""
BASE = {"size": 224, "hflip": 0.5, "auto_augment": "", "re_prob": 0.0, "mixup": 0.0, "cutmix": 0.0}


def assert_alike(ours: ArrayLike, theirs: ArrayLike) -> None:
    """Two-sample Kolmogorov-Smirnov test; on discrete values it is stricter than its level."""
    one, other = np.sort(np.asarray(ours, float)), np.sort(np.asarray(theirs, float))
    places = np.concatenate((one, other))
    shares = [np.searchsorted(sample, places, side="right") / len(sample) for sample in (one, other)]
    allowed = math.sqrt(-math.log(CHANCE / 2) / 2 * (len(one) + len(other)) / (len(one) * len(other)))
    assert np.abs(shares[0] - shares[1]).max() < allowed


def assert_as_often(ours: Sequence[Any], theirs: Sequence[Any]) -> None:
    """Every value has the same share in both samples, within four standard errors."""
    one, other = Counter(ours), Counter(theirs)
    assert one.keys() == other.keys()
    for value in one:
        share = (one[value] + other[value]) / (len(ours) + len(theirs))
        error = math.sqrt(share * (1 - share) * (1 / len(ours) + 1 / len(theirs)))
        assert abs(one[value] / len(ours) - other[value] / len(theirs)) <= 4 * error, value


@pytest.fixture(autouse=True)
def seeded() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (60, 200)])
def test_crops_are_timms(height: int, width: int) -> None:
    policy = ViewPolicy(**BASE)
    ours = np.array([draw_view(policy, seed, "key", height, width).box for seed in range(DRAWS)])
    image, crop = Image.new("RGB", (width, height)), RandomResizedCropAndInterpolation(224)
    theirs = np.array([crop.get_params(image, crop.scale, crop.ratio) for _ in range(DRAWS)])
    for column in range(4):
        assert_alike(ours[:, column], theirs[:, column])
    assert_alike(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])
    assert_alike(ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2])


@pytest.mark.parametrize("count", [1, 3])
def test_erased_boxes_are_timms(count: int) -> None:
    """Both erase from a 48 x 48 square; timm's box is read from its zeros if it is a single one."""
    policy = ViewPolicy(**{**BASE, "size": 48, "re_prob": 0.5, "re_count": count})
    views = [draw_view(policy, seed, "key", 48, 48) for seed in range(DRAWS)]
    erasing = RandomErasing(0.5, max_count=count, mode="const", device="cpu")
    zeros, single = [], []
    for _ in range(DRAWS):
        left = erasing(torch.ones(1, 48, 48))[0].numpy() == 0
        zeros.append(left.sum())
        if count == 1 and left.any():
            rows, columns = np.flatnonzero(left.any(axis=1)), np.flatnonzero(left.any(axis=0))
            single.append((rows[0], columns[0], len(rows), len(columns)))
    erased = []
    for view in views:
        hole = np.zeros((48, 48), bool)
        for (top, left_edge, height, width), _, _ in view.erase:
            hole[top : top + height, left_edge : left_edge + width] = True
        erased.append(hole.sum())
    assert_alike(erased, zeros)
    if count == 1:
        ours, theirs = np.array([view.erase[0].box for view in views if view.erase]), np.array(single)
        for column in range(4):
            assert_alike(ours[:, column], theirs[:, column])
        assert_alike(ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3])


def recorded(transform: Any, draws: int) -> list[list[tuple[str, float, str]]]:
    """Arguments of the calls to timm's operations, one list per draw."""
    calls: list[tuple[str, float, str]] = []
    for op in transform.ops if hasattr(transform, "ops") else [op for line in transform.policy for op in line]:
        name = op.name

        def note(image: Any, *arguments: float, _name: str = name, **options: Any) -> Any:
            timm._check_args_tf(options)
            calls.append((_name, arguments[0] if arguments else 0.0, options["resample"].name.lower()))
            return image

        op.aug_fn = note
    seen = []
    for _ in range(draws):
        calls.clear()
        transform(None)
        seen.append(list(calls))
    return seen


def assert_steps_alike(ours: list[tuple[Operation, ...]], theirs: list[list[tuple[str, float, str]]]) -> None:
    assert_as_often([len(steps) for steps in ours], [len(steps) for steps in theirs])
    mine, their = [step for steps in ours for step in steps], [step for steps in theirs for step in steps]
    assert_as_often([name for name, _, _ in mine], [name for name, _, _ in their])
    for name in {name for name, _, _ in mine}:
        assert_alike(
            [round(a, 6) for n, a, _ in mine if n == name], [round(a, 6) for n, a, _ in their if n == name]
        )


@pytest.mark.parametrize("string", ["rand-m9-mstd0.5-inc1", "rand-m5-mstd101-p0.8", "rand-m9-n3-mmax12-mstd3"])
def test_operations_and_their_strengths_are_timms(string: str) -> None:
    spec, uniform = parse_augment(string), uniforms("test", string)
    assert spec
    ours = [spec.draw(uniform, "random") for _ in range(DRAWS)]
    theirs = recorded(timm.rand_augment_transform(string, {}), DRAWS)
    assert_steps_alike(ours, theirs)
    shown = [how for steps in ours for name, _, how in steps if name == "ShearX"]
    assert_as_often(shown, [how for steps in theirs for name, _, how in steps if name == "ShearX"])


def test_the_three_augmentations_are_timms() -> None:
    spec, uniform = parse_augment("3a"), uniforms("test", "3a")
    assert spec
    ours = [spec.draw(uniform, "bicubic") for _ in range(DRAWS)]
    drawn = recorded(timm.auto_augment_transform("3a", {}), DRAWS)
    theirs = []
    for ((name, factor, how),) in drawn:
        blurs = name == "GaussianBlurRand"  # timm draws the radius inside the operation
        theirs.append([("GaussianBlur", random.uniform(0.1, 2.0 * factor), how) if blurs else (name, factor, how)])
    assert_steps_alike(ours, theirs)


def test_color_jitter_is_torchvisions() -> None:
    policy = ViewPolicy(**{**BASE, "auto_augment": "3a", "color_jitter": 0.3})
    ours = [draw_view(policy, seed, "key", 9, 9).ops[1:] for seed in range(DRAWS)]
    jitter = ColorJitter(0.3, 0.3, 0.3)
    names = ("Brightness", "Contrast", "Color")
    theirs = []
    for _ in range(DRAWS):
        order, *factors = jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        theirs.append([(names[place], factors[place], "") for place in order.tolist() if place < 3])
    assert_steps_alike(ours, theirs)
    orders = [[tuple(name for name, _, _ in steps) for steps in sample] for sample in (ours, theirs)]
    assert_as_often(*orders)


@pytest.mark.parametrize("minmax", [(), (0.2, 0.8)])
def test_lambdas_and_cutmix_boxes_are_timms(minmax: tuple[float, ...]) -> None:
    policy = ViewPolicy(
        **{
            **BASE,
            "mixup": 0.8,
            "cutmix": 1.0,
            "cutmix_minmax": minmax,
            "mixup_prob": 0.9,
            "mixup_switch_prob": 0.4,
        }
    )
    mix: Mix = draw_mix(policy, 0, 0, 2 * DRAWS)
    ones = np.flatnonzero(np.arange(2 * DRAWS) < mix.partner)  # one of each pair
    theirs = Mixup(0.8, 1.0, cutmix_minmax=minmax or None, prob=0.9, switch_prob=0.4, mode="pair")
    lam, cutmix = theirs._params_per_elem(DRAWS)
    final, boxes = [], []
    for share, cut in zip(lam, cutmix & (lam < 1), strict=True):
        if cut:
            (top, bottom, left, right), share = cutmix_bbox_and_lam(
                (3, 224, 224), share, ratio_minmax=minmax or None
            )
            boxes.append((top, left, bottom, right))
        final.append(share)
    assert_as_often(mix.cutmix[ones].tolist(), (cutmix & (lam < 1)).tolist())
    assert_alike(mix.lam[ones], np.array(final, np.float32))
    ours = mix.box[ones][mix.cutmix[ones]]
    for column in range(4):
        assert_alike(ours[:, column], np.array(boxes)[:, column])
