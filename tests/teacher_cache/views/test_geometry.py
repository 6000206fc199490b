from pathlib import Path

import geometry_twin
import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from timm.data import auto_augment as timm

from teacher_cache.views import geometry
from teacher_cache.views.augment import ARGUMENTS, GEOMETRIC, LEVEL_DENOMINATOR
from teacher_cache.views.ops import OPS
from teacher_cache.views.render import FILL

MAGNITUDES = (0.0, 0.3, 2.5, 5.0, 7.7, 9.0, 10.0, 30.0)
PILLOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
NAMES = sorted(GEOMETRIC)


def photo(height: int, width: int) -> NDArray[np.uint8]:
    path = Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")
    return np.asarray(Image.open(path).resize((width, height), Image.Resampling.BICUBIC))


def by_timm(name: str, pixels: NDArray[np.uint8], argument: float, interpolation: str) -> NDArray[np.uint8]:
    moved = timm.NAME_TO_OP[name](
        Image.fromarray(pixels), argument, fillcolor=FILL, resample=PILLOW[interpolation]
    )
    return np.asarray(moved)


def bounds(name: str, interpolation: str) -> tuple[float, int]:
    """Allowed mean and largest difference to Pillow, 0-255. Bicubic rotation sharpens, then samples linearly."""
    if name != "Rotate":
        return 0.15, 2
    return (2.8, 60) if interpolation == "bicubic" else (0.6, 5)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("name", NAMES)
def test_geometry_stays_close_to_timms(name: str, interpolation: str) -> None:
    pixels = photo(224, 224)
    largest_mean, largest = bounds(name, interpolation)
    for magnitude in MAGNITUDES:
        for sign in (1.0, -1.0):
            argument = ARGUMENTS[name](magnitude / LEVEL_DENOMINATOR, sign)
            ours = OPS[name](pixels, argument, interpolation, FILL)
            difference = np.abs(ours.astype(int) - by_timm(name, pixels, argument, interpolation))
            assert difference.mean() <= largest_mean and difference.max() <= largest, (magnitude, sign)
            assert magnitude > 0 or (ours == pixels).all()


def test_geometry_moves_the_way_timms_does() -> None:
    pixels = photo(224, 224)
    for name in NAMES:
        rotated, back = (OPS[name](pixels, ARGUMENTS[name](0.9, sign), "bicubic", FILL) for sign in (1.0, -1.0))
        mirrored_difference = np.abs(
            back.astype(int) - by_timm(name, pixels, ARGUMENTS[name](0.9, 1.0), "bicubic")
        ).mean()
        assert mirrored_difference > 10 and (rotated[[0, 0, -1, -1], [0, -1, 0, -1]] == FILL).all(axis=1).any()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (2, 3), (40, 17), (17, 40)])
def test_geometry_fills_the_pixels_that_pillow_fills_at_any_shape(
    shape: tuple[int, int], interpolation: str
) -> None:
    pixels = np.clip(photo(*shape), 60, 200)  # so that no sharpened pixel has the fill color
    for name in NAMES:
        for magnitude in MAGNITUDES:
            argument = ARGUMENTS[name](magnitude / LEVEL_DENOMINATOR, 1.0)
            ours = OPS[name](pixels, argument, interpolation, (0, 255, 0))
            moved = timm.NAME_TO_OP[name](
                Image.fromarray(pixels), argument, fillcolor=(0, 255, 0), resample=PILLOW[interpolation]
            )
            assert ((ours == (0, 255, 0)).all(axis=2) == (np.asarray(moved) == (0, 255, 0)).all(axis=2)).all(), (
                name
            )


def test_a_shift_by_whole_pixels_is_exact() -> None:
    pixels = photo(8, 10)
    for interpolation in PILLOW:
        right = OPS["TranslateXRel"](pixels, 0.3, interpolation, FILL)
        assert (right[:, :7] == pixels[:, 3:]).all() and (right[:, 7:] == FILL).all()
        up = OPS["TranslateYRel"](pixels, -0.25, interpolation, FILL)
        assert (up[2:] == pixels[:-2]).all() and (up[:2] == FILL).all()


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(["shear_x", "shear_y", "translate_x", "translate_y", "rotate"]),
    argument=st.one_of(st.floats(-1.5, 1.5), st.floats(-400, 400), st.sampled_from([0.0, 0.5, -0.5, 90.0, 180.0])),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    fill=st.tuples(*[st.integers(0, 255)] * 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_kernels_and_their_twins_of_numpy_and_opencv_give_the_same_pixels(
    name: str, argument: float, interpolation: str, height: int, width: int, fill: tuple[int, ...], seed: int
) -> None:
    noise = np.random.Generator(np.random.Philox(key=seed)).integers(0, 256, (height, width + 3, 3), np.uint8)
    pixels = noise[:, 1 : width + 1]  # not contiguous
    twin = getattr(geometry_twin, name)(np.ascontiguousarray(pixels), argument, interpolation, fill)
    assert (getattr(geometry, name)(pixels, argument, interpolation, fill) == twin).all()
