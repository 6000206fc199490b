from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from timm.data import auto_augment as timm

from teacher_cache.rng import uniforms
from teacher_cache.views.augment import ARGUMENTS, GEOMETRIC, LEVEL_DENOMINATOR, parse_augment
from teacher_cache.views.ops import OPS
from teacher_cache.views.render import FILL

EXACT = tuple(name for name in ARGUMENTS if name not in GEOMETRIC)
MAGNITUDES = (0.0, 0.3, 2.5, 5.0, 7.7, 9.0, 10.0, 30.0)


def photo(height: int, width: int) -> NDArray[np.uint8]:
    path = Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")
    return np.asarray(Image.open(path).resize((width, height), Image.Resampling.BICUBIC))


def by_timm(name: str, pixels: NDArray[np.uint8], argument: float) -> NDArray[np.uint8]:
    arguments = (argument,) if timm.LEVEL_TO_ARG[name] else ()
    return np.asarray(timm.NAME_TO_OP[name](Image.fromarray(pixels), *arguments))


def pillow_refuses(name: str, argument: float) -> bool:
    return name.startswith("Posterize") and argument < 1


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("shape", [(96, 81), (2, 7)])
def test_tables_and_blends_are_timms_bit_for_bit(name: str, shape: tuple[int, int]) -> None:
    pixels = photo(*shape)
    for magnitude in MAGNITUDES:
        for sign in (1.0, -1.0):
            argument = ARGUMENTS[name](magnitude / LEVEL_DENOMINATOR, sign)
            if not pillow_refuses(name, argument):
                ours = OPS[name](pixels, argument, "bicubic", FILL)
                assert (ours == by_timm(name, pixels, argument)).all(), (magnitude, sign)


@settings(max_examples=20, deadline=None)
@given(
    pixels=arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))),
    magnitude=st.floats(0, 30),
    sign=st.sampled_from([-1.0, 1.0]),
)
def test_tables_and_blends_are_timms_on_any_pixels(
    pixels: NDArray[np.uint8], magnitude: float, sign: float
) -> None:
    before = pixels.copy()
    for name in EXACT:
        argument = ARGUMENTS[name](magnitude / LEVEL_DENOMINATOR, sign)
        if not pillow_refuses(name, argument):
            ours = OPS[name](pixels, argument, "bicubic", FILL)
            assert (ours == by_timm(name, pixels, argument)).all(), name
    assert (pixels == before).all()


@pytest.mark.parametrize("shape", [(64, 71), (1, 5), (3, 2)])
def test_the_three_augmentations_of_deit_iii_are_timms_bit_for_bit(shape: tuple[int, int]) -> None:
    pixels = photo(*shape)
    assert (OPS["Desaturate"](pixels, 1.0, "", FILL) == by_timm("Desaturate", pixels, 1.0)).all()
    assert (OPS["Desaturate"](pixels, 0.7, "", FILL) == by_timm("Desaturate", pixels, 0.7)).all()
    for radius in (0.1, 0.33, 1.0, 1.77, 2.0):
        assert (OPS["GaussianBlur"](pixels, radius, "", FILL) == by_timm("GaussianBlur", pixels, radius)).all()


@settings(max_examples=100, deadline=None)
@given(
    pixels=arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3))),
    radius=st.one_of(st.floats(0.1, 2.0), st.floats(0.0, 9.0)),
)
def test_gaussian_blur_is_pillows_on_any_pixels(pixels: NDArray[np.uint8], radius: float) -> None:
    blurred = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))
    assert (OPS["GaussianBlur"](pixels, radius, "", FILL) == blurred).all()


def test_gray_is_pillows_for_every_color() -> None:
    steps = np.arange(0, 256, 3, dtype=np.uint8)
    colors = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, len(steps), 3)
    gray = np.asarray(Image.fromarray(colors).convert("L"))
    assert (OPS["Desaturate"](colors, 1.0, "", FILL) == gray[:, :, None]).all()


def test_posterize_to_zero_bits_is_black() -> None:
    assert ARGUMENTS["PosterizeIncreasing"](1.0, 1.0) == 0
    assert not OPS["PosterizeIncreasing"](photo(20, 30), 0, "bicubic", FILL).any()
    assert OPS["PosterizeIncreasing"](photo(20, 30), 1, "bicubic", FILL).any()


def test_two_hundred_thousand_draws_never_fail() -> None:
    pixels = photo(5, 6)
    applied, seen, draws = set(), set(), 0
    for string in ("rand-m9-mstd3-inc1", "rand-m10-mstd101-n3", "rand-m25-mmax30-mstd9-inc1", "3a"):
        spec, uniform = parse_augment(string), uniforms("test", string)
        assert spec
        for _ in range(50_000):
            draws += 1
            for name, argument, interpolation in spec.draw(uniform, "random"):
                applied.add(name)
                step = (name, round(argument, 3), interpolation)
                if step in seen:
                    continue
                seen.add(step)
                moved = OPS[name](pixels, argument, interpolation, FILL)
                assert moved.shape == pixels.shape
    assert draws == 200_000 and applied == set(OPS)
