import math
import random
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from timm.data import auto_augment as timm

from teacher_cache.dice import dice
from teacher_cache.errors import RecipeError
from teacher_cache.ops import ARGUMENTS, INCREASING, LEVELS, OPS, PLAIN, RandAugment, parse_randaugment
from teacher_cache.pixels import FILL

GEOMETRY = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
EXACT = tuple(name for name in OPS if name not in GEOMETRY)
MAGNITUDES = (0.0, 0.3, 2.5, 5.0, 7.7, 9.0, 10.0)
PILLOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
BOUNDS = {"bicubic": (1.0, 22), "bilinear": (0.6, 6)}
"""How far geometry may lie from Pillow's, at 224 pixels: mean and largest difference of 255. Pillow's bicubic
kernel has a = -0.5, OpenCV's -0.75."""


def photo(height: int, width: int) -> NDArray[np.uint8]:
    path = Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")
    return np.asarray(Image.open(path).resize((width, height), Image.Resampling.BICUBIC))


def by_timm(name: str, pixels: NDArray[np.uint8], argument: float, interpolation: str) -> NDArray[np.uint8]:
    arguments = (argument,) if timm.LEVEL_TO_ARG[name] else ()
    image = timm.NAME_TO_OP[name](
        Image.fromarray(pixels), *arguments, fillcolor=FILL, resample=PILLOW[interpolation]
    )
    return np.asarray(image)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("shape", [(96, 81), (2, 7)])
def test_tables_and_blends_are_timms_bit_for_bit(name: str, shape: tuple[int, int]) -> None:
    pixels = photo(*shape)
    for magnitude in MAGNITUDES:
        for sign in (1.0, -1.0):
            argument = ARGUMENTS[name](magnitude / LEVELS, sign)
            if name.startswith("Posterize") and argument == 0:
                continue  # Pillow raises
            ours = OPS[name](pixels, argument, "bicubic", FILL)
            assert (ours == by_timm(name, pixels, argument, "bicubic")).all(), (magnitude, sign)


@settings(max_examples=20, deadline=None)
@given(
    pixels=arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))),
    magnitude=st.floats(0, 10),
    sign=st.sampled_from([-1.0, 1.0]),
)
def test_tables_and_blends_are_timms_on_any_pixels(
    pixels: NDArray[np.uint8], magnitude: float, sign: float
) -> None:
    before = pixels.copy()
    for name in EXACT:
        argument = ARGUMENTS[name](magnitude / LEVELS, sign)
        if name.startswith("Posterize") and argument == 0:
            continue
        ours = OPS[name](pixels, argument, "bicubic", FILL)
        assert (ours == by_timm(name, pixels, argument, "bicubic")).all(), name
    assert (pixels == before).all()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("name", GEOMETRY)
def test_geometry_stays_close_to_timms(name: str, interpolation: str) -> None:
    pixels = photo(224, 224)
    largest_mean, largest = BOUNDS[interpolation]
    for magnitude in MAGNITUDES:
        for sign in (1.0, -1.0):
            argument = ARGUMENTS[name](magnitude / LEVELS, sign)
            ours = OPS[name](pixels, argument, interpolation, FILL)
            apart = np.abs(ours.astype(int) - by_timm(name, pixels, argument, interpolation))
            assert apart.mean() <= largest_mean and apart.max() <= largest, (magnitude, sign)
            assert magnitude > 0 or (ours == pixels).all()


def test_geometry_moves_the_way_timms_does() -> None:
    pixels = photo(224, 224)
    for name in GEOMETRY:
        there, back = (OPS[name](pixels, ARGUMENTS[name](0.9, sign), "bicubic", FILL) for sign in (1.0, -1.0))
        wrong = np.abs(back.astype(int) - by_timm(name, pixels, ARGUMENTS[name](0.9, 1.0), "bicubic")).mean()
        assert wrong > 10 and (there[[0, 0, -1, -1], [0, -1, 0, -1]] == FILL).all(axis=1).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (2, 3), (40, 17)])
def test_geometry_fills_as_many_pixels_as_pillows_at_any_shape(shape: tuple[int, int]) -> None:
    pixels = photo(*shape)
    for name in GEOMETRY:
        for magnitude in MAGNITUDES:
            argument = ARGUMENTS[name](magnitude / LEVELS, 1.0)
            ours, theirs = OPS[name](pixels, argument, "bicubic", (1, 2, 3)), Image.fromarray(pixels)
            moved = timm.NAME_TO_OP[name](theirs, argument, fillcolor=(1, 2, 3), resample=PILLOW["bicubic"])
            assert ((ours == (1, 2, 3)).all(axis=2) == (np.asarray(moved) == (1, 2, 3)).all(axis=2)).all()


@pytest.mark.parametrize("name", OPS)
def test_magnitudes_become_timms_arguments(name: str) -> None:
    for magnitude in (*MAGNITUDES, 12.5, 20.0):
        ours = {ARGUMENTS[name](magnitude / LEVELS, sign) for sign in (1.0, -1.0)}
        level = timm.LEVEL_TO_ARG[name]
        theirs = {level(magnitude, {})[0] for _ in range(40)} if level else {0.0}  # 40 coins for its sign
        assert sorted(ours) == pytest.approx(sorted(theirs))


def test_posterize_to_zero_bits_is_black() -> None:
    assert ARGUMENTS["PosterizeIncreasing"](1.0, 1.0) == 0
    assert not OPS["PosterizeIncreasing"](photo(20, 30), 0, "bicubic", FILL).any()
    assert OPS["PosterizeIncreasing"](photo(20, 30), 1, "bicubic", FILL).any()


@pytest.mark.parametrize(
    "string",
    [
        "rand-m9-mstd0.5-inc1",  # timm's and DeiT's
        "rand-m7-mstd0.5-inc1",
        "rand-m6-mstd0.5-inc1",
        "rand-m9-n3-mstd0.5",
        "rand",
        "rand-m20-mmax30-n1-p0.7",
        "rand-mstd101",
        "rand-mstd1000-inc0",
        "rand-p1-inc1-m3",
    ],
)
def test_strings_are_read_as_timm_reads_them(string: str) -> None:
    ours, theirs = parse_randaugment(string), timm.rand_augment_transform(string, {})
    assert ours is not None and theirs.choice_weights is None
    assert ours.names == tuple(op.name for op in theirs.ops) and ours.layers == theirs.num_layers
    for op in theirs.ops:
        assert (ours.magnitude, ours.probability, ours.std) == (op.magnitude, op.prob, op.magnitude_std)
        assert ours.maximum == (op.magnitude_max or timm._LEVEL_DENOM)


def test_an_empty_string_is_none() -> None:
    assert parse_randaugment("") is None


@pytest.mark.parametrize("string", ["rand-x3", "rand-m", "rand-", "augmix-m3", "v0", "rand-m9 -n2", "rand-m-3"])
def test_a_string_timm_does_not_know_is_told_in_one_line(string: str) -> None:
    with pytest.raises(RecipeError, match=r"^views\.auto_augment = '.*'"):
        parse_randaugment(string)


def test_the_names_are_timms_sets() -> None:
    assert list(PLAIN) == timm._RAND_TRANSFORMS and list(INCREASING) == timm._RAND_INCREASING_TRANSFORMS


@pytest.mark.parametrize("string", ["rand-m9-mstd0.5-inc1", "rand-m5-mstd101-p0.8", "rand-m9-mmax12-mstd3"])
def test_draws_are_distributed_as_timms(string: str) -> None:
    """Over 4000 layers: how often each operation is applied, and the mean and spread of its arguments."""
    spec = parse_randaugment(string)
    assert isinstance(spec, RandAugment)
    roll = dice("test", string).random
    drawn = [spec.draw(roll) for _ in range(4000)]
    share = sum(layer is not None for layer in drawn) / 4000
    assert share == pytest.approx(spec.probability, abs=0.03)
    random.seed(1)
    for name in spec.names:
        ours = [layer[1] for layer in drawn if layer and layer[0] == name]
        assert len(ours) / 4000 == pytest.approx(spec.probability / len(spec.names), abs=0.015)
        level = timm.LEVEL_TO_ARG[name]
        if level is None:
            continue
        upper = spec.maximum
        magnitudes = [
            random.uniform(0, spec.magnitude) if spec.std == math.inf else random.gauss(spec.magnitude, spec.std)
            for _ in range(4000)
        ]
        theirs = [level(max(0.0, min(magnitude, upper)), {})[0] for magnitude in magnitudes]
        noise = max(np.std(theirs), 1e-9) / math.sqrt(len(ours))
        assert abs(np.mean(ours) - np.mean(theirs)) < 5 * noise + 1e-9, name
        assert np.std(ours) == pytest.approx(np.std(theirs), rel=0.35, abs=1e-9), name


def test_thousands_of_random_draws_never_fail() -> None:
    pixels = photo(31, 33)
    roll = dice("test", "draws").random
    applied = set()
    for string in ("rand-m9-mstd3-inc1", "rand-m10-mstd101-n3", "rand-m25-mmax30-mstd9-inc1"):
        spec = parse_randaugment(string)
        assert spec
        for _ in range(1000):
            layer = spec.draw(roll)
            if layer:
                applied.add(layer[0])
                moved = OPS[layer[0]](pixels, layer[1], "bicubic", FILL)
                assert moved.shape == pixels.shape and moved.dtype == np.uint8
    assert applied == set(OPS)
