"""Run as a script, this file pins the golden views of a new VIEW_VERSION; with "print" it prints their hash."""

import hashlib
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_cache.rng import generator
from teacher_cache.views.augment import ARGUMENTS
from teacher_cache.views.decode import Pixels, decode
from teacher_cache.views.eval_transform import center_crop
from teacher_cache.views.mix import draw_mix
from teacher_cache.views.ops import OPS
from teacher_cache.views.policy import ViewPolicy
from teacher_cache.views.render import FILL, digest, render
from teacher_cache.views.view import VIEW_VERSION, View, draw_view

CHANGE = "raise VIEW_VERSION and pin the new views, or restore the library that changed"
GOLDEN = Path(__file__).parents[2] / "golden"
"""views_<version>_<hash of the content>.json: the views of one version never change."""

DEIT = {
    "size": 32,
    "hflip": 0.5,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "re_prob": 0.25,
    "mixup": 0.8,
    "cutmix": 1.0,
}
POLICIES = {
    "deit": ViewPolicy(**DEIT),
    "everything": ViewPolicy(
        **{
            **DEIT,
            "size": 24,
            "vflip": 0.5,
            "interpolation": "random",
            "auto_augment": "rand-m8-n3-p0.9-mstd101",
            "re_prob": 1.0,
            "re_mode": "rand",
            "re_count": 3,
        }
    ),
    "deit iii": ViewPolicy(
        **{**DEIT, "auto_augment": "3a", "color_jitter": 0.3, "interpolation": "random", "re_prob": 0.0}
    ),
    "plain": ViewPolicy(**{**DEIT, "auto_augment": "", "re_prob": 0.8, "re_mode": "const", "scale": (0.5, 1.0)}),
}
SIZES = [(64, 48), (1, 1), (5, 300), (375, 500)]
MIXES = {
    "both": draw_mix(POLICIES["deit"], 5, 2, 9),
    "minmax": draw_mix(ViewPolicy(**{**DEIT, "mixup": 0.0, "cutmix_minmax": (0.2, 0.8)}), 0, 0, 4),
}


def gradient(height: int, width: int) -> Pixels:
    """A synthetic image of integers, the same on every machine."""
    y, x = np.mgrid[:height, :width].astype(np.int64)
    return np.stack((x * 255 // width, y * 255 // height, (x * y + 7 * x) % 256), axis=2).astype(np.uint8)


def golden() -> dict[str, Any]:
    """Views and the digests of their pixels, as plain values."""
    views = []
    for name, policy in POLICIES.items():
        for seed, key in (
            (0, "00000000"),
            (1, "00000000"),
            (2, "b"),
            (3, "c"),
            (4, "d"),
            (299, "n01440764_10026"),
        ):
            for height, width in SIZES:
                view = draw_view(policy, seed, key, height, width)
                pixels = render(gradient(height, width), view, policy.size)
                views.append(
                    {
                        "policy": name,
                        "seed": seed,
                        "key": key,
                        "size": [height, width],
                        "view": json.loads(json.dumps(_plain(view))),
                        "digest": f"{digest(pixels):016x}",
                    }
                )
    image = gradient(32, 40)
    ops = {
        f"{name} {how}": f"{digest(op(image, ARGUMENTS.get(name, _same)(0.7, 1.0), how, FILL)):016x}"
        for name, op in OPS.items()
        for how in ("bicubic", "bilinear")
    }
    evaluated = {
        how: f"{digest(center_crop(gradient(75, 50), 32, 0.9, how)):016x}" for how in ("bicubic", "bilinear")
    }
    mixes = {name: MIXES[name].fingerprints.tolist() for name in MIXES}
    return {"version": VIEW_VERSION, "views": views, "ops": ops, "evaluated": evaluated, "mixes": mixes}


def _plain(view: View) -> dict[str, Any]:
    return view._asdict() | {"erase": [erase._asdict() for erase in view.erase]}


def _same(level: float, sign: float) -> float:
    return level


def pinned() -> Path:
    """The golden file of this version; fails unless there is exactly one."""
    files = list(GOLDEN.glob(f"views_{VIEW_VERSION}_*.json"))
    assert len(files) == 1, (
        f"version {VIEW_VERSION} has {len(files)} golden files; run this file to pin a new version"
    )
    return files[0]


def test_a_version_is_pinned_once_and_its_golden_file_is_never_edited() -> None:
    assert pinned().stem.rpartition("_")[2] == _hash(pinned().read_text()), "raise VIEW_VERSION instead"
    with pytest.raises(SystemExit, match="raise VIEW_VERSION"):
        pin()


@pytest.mark.parametrize("name", POLICIES)
def test_two_thousand_views_of_odd_images_have_shape_and_dtype(name: str) -> None:
    policy, rng = POLICIES[name], generator("odd images", name)
    for number in range(2000):
        height, width = (int(side) for side in np.exp(rng.uniform(0, 5, 2)))
        view = draw_view(policy, number, "odd", height, width)
        pixels = render(gradient(height, width), view, policy.size)
        assert pixels.shape == (policy.size, policy.size, 3) and pixels.dtype == np.uint8


def test_views_and_their_pixels_are_those_pinned() -> None:
    pins, found = json.loads(pinned().read_text()), golden()
    assert pins["version"] == VIEW_VERSION
    assert pins["mixes"] == found["mixes"] and pins["evaluated"] == found["evaluated"], CHANGE
    for was, now in zip(pins["views"], found["views"], strict=True):
        assert now == was, f"seed {was['seed']} draws or renders something else: {CHANGE}"
    for name, was in pins["ops"].items():
        assert found["ops"].pop(name) == was, f"{name} renders something else: {CHANGE}"
    assert not found["ops"]


def test_the_golden_views_show_all_that_a_view_can_have() -> None:
    views = [entry["view"] for entry in json.loads(pinned().read_text())["views"]]
    assert len({name for view in views for name, _, _ in view["ops"]}) > 14
    assert {view["interpolation"] for view in views} == {"bicubic", "bilinear"}
    assert {erase["mode"] for view in views for erase in view["erase"]} == {"pixel", "rand", "const"}
    assert {(view["hflip"], view["vflip"]) for view in views} == {
        (a, b) for a in (True, False) for b in (True, False)
    }
    assert any(len(view["erase"]) == 3 for view in views) and any(not view["erase"] for view in views)


SHARE = st.sampled_from([0.0, 0.3, 1.0])
SIDE = st.one_of(st.integers(1, 6), st.integers(1, 3000))
RANGE = st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)).map(sorted).map(tuple)
POLICY = st.builds(
    ViewPolicy,
    size=st.one_of(st.integers(1, 4), st.integers(1, 40)),
    scale=RANGE,
    ratio=st.one_of(RANGE, st.just((3 / 4, 4 / 3)), st.just((0.001, 1000.0)), st.just((50.0, 60.0))),
    interpolation=st.sampled_from(["bicubic", "bilinear", "random"]),
    hflip=SHARE,
    vflip=SHARE,
    auto_augment=st.sampled_from(["", "rand-m9-mstd0.5-inc1", "rand-n4-p1-mstd101", "3a"]),
    re_prob=SHARE,
    re_mode=st.sampled_from(["const", "rand", "pixel"]),
    re_count=st.integers(1, 3),
    mixup=st.just(0.0),
    cutmix=st.just(0.0),
)


@settings(max_examples=150, deadline=None)
@given(policy=POLICY, seed=st.integers(0, 10**6), key=st.text(max_size=8), height=SIDE, width=SIDE)
def test_boxes_lie_inside_any_image_and_are_not_empty(
    policy: ViewPolicy, seed: int, key: str, height: int, width: int
) -> None:
    view = draw_view(policy, seed, key, height, width)
    assert inside(view.box, height, width) and all(
        inside(erase.box, policy.size, policy.size) for erase in view.erase
    )
    assert len(view.erase) <= policy.re_count and all(name in OPS for name, _, _ in view.ops)
    assert view == draw_view(policy, seed, key, height, width)


def inside(box: tuple[int, int, int, int], height: int, width: int) -> bool:
    top, left, tall, wide = box
    return top >= 0 and left >= 0 and tall > 0 and wide > 0 and top + tall <= height and left + wide <= width


@settings(max_examples=40, deadline=None)
@given(policy=POLICY, seed=st.integers(0, 10**6), height=st.integers(1, 60), width=st.integers(1, 60))
def test_any_view_renders_to_its_size_and_leaves_the_image_alone(
    policy: ViewPolicy, seed: int, height: int, width: int
) -> None:
    image = gradient(height, width)
    pixels = render(image, draw_view(policy, seed, "key", height, width), policy.size)
    assert pixels.shape == (policy.size, policy.size, 3) and pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous and (image == gradient(height, width)).all()


def test_seeds_and_keys_change_the_view() -> None:
    views = {draw_view(POLICIES["deit"], seed, str(key), 100, 100) for seed in range(20) for key in range(20)}
    assert len(views) == 400


def test_global_generators_are_neither_read_nor_changed() -> None:
    def state() -> tuple[Any, ...]:
        numpy_state = np.random.get_state(legacy=False)
        return random.getstate(), str(numpy_state), torch.get_rng_state().numpy().tobytes()

    policy, before = POLICIES["everything"], state()
    one = render(gradient(50, 60), draw_view(policy, 3, "a", 50, 60), 24)
    assert state() == before
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    assert (render(gradient(50, 60), draw_view(policy, 3, "a", 50, 60), 24) == one).all()


def test_shares_of_flips_operations_and_erasures_are_the_policys() -> None:
    views = [draw_view(POLICIES["deit"], seed, "a", 100, 100) for seed in range(4000)]
    assert sum(view.hflip for view in views) / 4000 == pytest.approx(0.5, abs=0.03)
    assert not any(view.vflip for view in views)
    assert sum(len(view.ops) for view in views) / 4000 == pytest.approx(1.0, abs=0.05)
    assert sum(len(view.erase) for view in views) / 4000 == pytest.approx(0.25, abs=0.03)
    for flip, share in ((0.0, 0), (1.0, 200)):
        sure = ViewPolicy(**{**DEIT, "hflip": flip, "re_prob": flip})
        views = [draw_view(sure, seed, "a", 100, 100) for seed in range(200)]
        assert sum(view.hflip for view in views) == sum(len(view.erase) for view in views) == share


@pytest.mark.parametrize(("height", "width"), [(100, 100), (60, 200), (400, 50)])
def test_crops_are_distributed_as_torchvisions(height: int, width: int) -> None:
    from torchvision.transforms import RandomResizedCrop  # takes seconds to import, which spawned workers save

    policy = ViewPolicy(**{**DEIT, "scale": (0.08, 1.0)})
    ours = np.array([draw_view(policy, seed, "a", height, width).box for seed in range(1500)])
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(1500)])
    for column in range(4):
        noise = math.hypot(ours[:, column].std(), theirs[:, column].std()) / math.sqrt(1500)
        assert abs(ours[:, column].mean() - theirs[:, column].mean()) < 5 * noise
        assert ours[:, column].std() == pytest.approx(theirs[:, column].std(), rel=0.1)


def test_a_crop_of_the_whole_is_the_whole() -> None:
    image = gradient(20, 20)
    whole = View((0, 0, 20, 20), "bicubic", hflip=False, vflip=False, ops=(), erase=())
    assert (render(image, whole, 20) == image).all()
    flipped = render(image, View((0, 0, 20, 20), "bicubic", hflip=True, vflip=False, ops=(), erase=()), 20)
    assert (flipped == image[:, ::-1]).all()
    upside = render(image, View((0, 0, 20, 20), "bicubic", hflip=False, vflip=True, ops=(), erase=()), 20)
    assert (upside == image[::-1]).all()
    both = render(image, View((0, 0, 20, 20), "bicubic", hflip=True, vflip=True, ops=(), erase=()), 20)
    assert (both == image[::-1, ::-1]).all()


LOWERED = {
    "opencv": {"OPENCV_CPU_DISABLE": "AVX512-SKX,AVX2,FP16,AVX,FMA3,SSE4.2,POPCNT,SSE4.1,SSSE3"},
    "numba": {"NUMBA_CPU_NAME": "generic"},
    "torch": {"ATEN_CPU_CAPABILITY": "default"},
    "libjpeg-turbo with SSE2 alone": {"JSIMD_FORCESSE2": "1"},
    "libjpeg-turbo without SIMD": {"JSIMD_FORCENONE": "1"},
    "C library": {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX2,-AVX2_Usable,-FMA,-FMA_Usable,-ERMS"},
}


@pytest.mark.parametrize("library", LOWERED)
def test_older_cpu_renders_the_same_views(library: str) -> None:
    """Each library is configured to use fewer CPU features of this machine; decoding is included."""
    printed = subprocess.run(
        [sys.executable, __file__, "print"],
        env=os.environ | LOWERED[library],
        capture_output=True,
        encoding="utf-8",
    )
    assert printed.stdout.split() == _hashes(), printed.stderr[-500:]


def _hashes() -> list[str]:
    photo = Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg").read_bytes()
    return [_hash(_text()), f"{digest(decode(photo)):016x}"]


def _text() -> str:
    return json.dumps(golden(), indent=1) + "\n"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def pin() -> None:
    """Write the golden file of a version that has none."""
    if list(GOLDEN.glob(f"views_{VIEW_VERSION}_*.json")):
        raise SystemExit(f"the views of version {VIEW_VERSION} are pinned; raise VIEW_VERSION to change them")
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / f"views_{VIEW_VERSION}_{_hash(_text())}.json").write_text(_text())


if __name__ == "__main__":
    if sys.argv[1:] == ["print"]:
        print(*_hashes())
    else:
        pin()
