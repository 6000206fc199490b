from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from timm.data.mixup import rand_bbox

from teacher_cache.rng import generator
from teacher_cache.views.mix import Mix, blend, draw_mix, mixed_labels
from teacher_cache.views.policy import ViewPolicy

BASE = {"size": 16, "hflip": 0.0, "auto_augment": "", "re_prob": 0.0}
BOTH = ViewPolicy(**BASE, mixup=0.8, cutmix=1.0)
CUTMIX = ViewPolicy(**BASE, mixup=0.0, cutmix=1.0)
MIXUP = ViewPolicy(**BASE, mixup=0.8, cutmix=0.0)

SHARE = st.sampled_from([0.0, 0.5, 1.0])
POLICY = st.builds(
    ViewPolicy,
    size=st.integers(1, 40),
    hflip=SHARE,
    auto_augment=st.just(""),
    re_prob=SHARE,
    mixup=st.sampled_from([0.0, 0.2, 0.8, 3.0]),
    cutmix=st.sampled_from([0.0, 0.2, 1.0]),
    mixup_prob=SHARE,
    mixup_switch_prob=SHARE,
    aug_repeats=st.integers(1, 4),
)
SEED, SHARD, ROWS = st.integers(0, 10**6), st.integers(0, 10**4), st.integers(0, 70)


def tensors(mix: Mix) -> tuple[torch.Tensor, ...]:
    return tuple(map(torch.from_numpy, (mix.partner, mix.lam, mix.cutmix, mix.box)))


def noise(rows: int, size: int) -> torch.Tensor:
    return torch.from_numpy(generator("test", rows).integers(0, 256, (rows, size, size, 3), dtype=np.uint8))


@given(policy=POLICY, seed=SEED, shard=SHARD, rows=ROWS)
def test_partners_are_an_involution_and_pairs_agree(policy: ViewPolicy, seed: int, shard: int, rows: int) -> None:
    mix = draw_mix(policy, seed, shard, rows)
    everyone = np.arange(rows)
    assert (mix.partner[mix.partner] == everyone).all()
    alone = mix.partner == everyone
    assert alone.sum() == (rows % 2 if policy.mixes else rows)
    for values in (mix.lam, mix.cutmix, mix.box):
        assert (values[mix.partner] == values).all()
    assert (mix.lam[alone] == 1).all() and not mix.cutmix[alone].any() and not mix.box[alone].any()


@given(policy=POLICY, seed=SEED, shard=SHARD, rows=ROWS)
def test_mixes_are_a_pure_function(policy: ViewPolicy, seed: int, shard: int, rows: int) -> None:
    one, other = draw_mix(policy, seed, shard, rows), draw_mix(policy, seed, shard, rows)
    for name in ("partner", "lam", "cutmix", "box"):
        assert (getattr(one, name) == getattr(other, name)).all()


@given(policy=POLICY, seed=SEED, shard=SHARD, rows=ROWS)
def test_lambda_is_the_share_of_the_clipped_box(policy: ViewPolicy, seed: int, shard: int, rows: int) -> None:
    mix = draw_mix(policy, seed, shard, rows)
    top, left, bottom, right = mix.box.T
    assert (
        (mix.box >= 0).all() and (mix.box <= policy.size).all() and (top <= bottom).all() and (left <= right).all()
    )
    assert ((mix.lam >= 0) & (mix.lam <= 1)).all() and mix.lam.dtype == np.float32
    share = (bottom - top) * (right - left) / policy.size**2
    assert (mix.lam[mix.cutmix] == (1 - share[mix.cutmix]).astype(np.float32)).all()
    assert not share[~mix.cutmix].any()


@settings(deadline=None, max_examples=50)
@given(policy=POLICY, seed=SEED, rows=st.integers(1, 12))
def test_mixed_labels_are_the_shares_of_the_pixels(policy: ViewPolicy, seed: int, rows: int) -> None:
    """Each image has one color, its number; the share of each color is the label's weight."""
    mix = draw_mix(policy, seed, 0, rows)
    label = torch.arange(rows)
    pixels = (label.to(torch.uint8) * 20)[:, None, None, None].expand(rows, policy.size, policy.size, 3)
    mixed = blend(pixels, *tensors(mix))
    weights = mixed_labels(label, label[mix.partner], torch.from_numpy(mix.lam), rows)
    assert weights.sum(dim=1) == pytest.approx(torch.ones(rows).numpy(), abs=1e-6)
    assert (weights >= 0).all()
    wanted = weights.double() @ (label.double() * 20)
    assert mixed.double().mean(dim=(1, 2, 3)).numpy() == pytest.approx(wanted.numpy(), abs=1e-3)


def test_a_pair_of_one_class_keeps_its_label_whole() -> None:
    weights = mixed_labels(torch.tensor([2, 2]), torch.tensor([2, 2]), torch.tensor([0.3, 0.9]), 4)
    assert (weights == torch.tensor([0.0, 0.0, 1.0, 0.0])).all()


def test_cutmix_replaces_exactly_one_minus_lambda_of_the_pixels() -> None:
    policy = ViewPolicy(**{**BASE, "size": 23}, mixup=0.0, cutmix=1.0)
    mix = draw_mix(policy, 5, 0, 64)
    pixels = torch.zeros(64, 23, 23, 3, dtype=torch.uint8)
    pixels[np.flatnonzero(mix.partner > np.arange(64))] = 255  # one of each pair is white
    mixed = blend(pixels, *tensors(mix))
    changed = (mixed != pixels.permute(0, 3, 1, 2)).all(dim=1).sum(dim=(1, 2)).numpy()
    assert ((1 - changed / 23**2).astype(np.float32) == mix.lam).all()
    assert len(np.unique(changed)) > 10


@settings(deadline=None, max_examples=50)
@given(policy=POLICY, seed=SEED, rows=st.integers(1, 12))
def test_blend_is_the_papers_formula(policy: ViewPolicy, seed: int, rows: int) -> None:
    mix = draw_mix(policy, seed, 1, rows)
    pixels = noise(rows, policy.size)
    mixed = blend(pixels, *tensors(mix))
    assert mixed.shape == (rows, 3, policy.size, policy.size) and mixed.dtype == torch.float32
    difference = mixed.double().numpy() - formula(pixels.numpy().astype(np.float64), mix)
    assert abs(difference).max() < 1e-4


def formula(pixels: NDArray[np.float64], mix: Mix) -> NDArray[np.float64]:
    """Row by row in float64: mixup is lam x + (1 - lam) x', cutmix pastes the box."""
    mixed = []
    for row, own in enumerate(pixels):
        other, lam = pixels[mix.partner[row]], float(mix.lam[row])
        if mix.cutmix[row]:
            top, left, bottom, right = mix.box[row]
            made = own.copy()
            made[top:bottom, left:right] = other[top:bottom, left:right]
        else:
            made = lam * own + (1 - lam) * other
        mixed.append(made.transpose(2, 0, 1))
    return np.array(mixed)


def test_rows_with_lambda_one_are_untouched_bit_for_bit() -> None:
    policy = ViewPolicy(**BASE, mixup=0.8, cutmix=1.0, mixup_prob=0.4)
    mix = draw_mix(policy, 0, 0, 65)
    whole = np.flatnonzero(mix.lam == 1)
    pixels = noise(65, 16)
    mixed = blend(pixels, *tensors(mix))
    assert 20 < len(whole) < 60
    assert (mixed[whole] == pixels[whole].permute(0, 3, 1, 2)).all()
    assert (mixed.to(torch.uint8)[whole] == pixels[whole].permute(0, 3, 1, 2)).all()


def test_partners_may_follow_the_images() -> None:
    mix = draw_mix(BOTH, 0, 0, 12)
    pixels = noise(12, 16)
    order = np.r_[3, 7, mix.partner[[3, 7]]]
    partner, lam, cutmix, box = tensors(mix)
    few = blend(pixels[order], torch.tensor([2, 3]), lam[[3, 7]], cutmix[[3, 7]], box[[3, 7]])
    assert (few == blend(pixels, partner, lam, cutmix, box)[[3, 7]]).all()


@pytest.mark.parametrize("repeats", [2, 3])
def test_seeds_shown_together_share_their_pairs_but_not_their_lambdas(repeats: int) -> None:
    policy = ViewPolicy(**BASE, mixup=0.8, cutmix=1.0, aug_repeats=repeats)
    mixes = [draw_mix(policy, seed, 4, 40) for seed in range(2 * repeats)]
    for block in (mixes[:repeats], mixes[repeats:]):
        assert all((mix.partner == block[0].partner).all() for mix in block)
        assert all((mix.lam != block[0].lam).any() for mix in block[1:])
    assert (mixes[0].partner != mixes[repeats].partner).any()


def test_seeds_and_shards_have_other_pairs() -> None:
    seen = {draw_mix(BOTH, seed, shard, 40).partner.tobytes() for seed in range(10) for shard in range(10)}
    assert len(seen) == 100


def test_shares_and_lambdas_are_the_policys() -> None:
    policy = ViewPolicy(**{**BASE, "size": 224}, mixup=0.8, cutmix=1.0, mixup_prob=0.9, mixup_switch_prob=0.3)
    mix = draw_mix(policy, 0, 0, 20_000)
    assert mix.cutmix.mean() == pytest.approx(0.27, abs=0.02)
    assert (mix.lam == 1).mean() == pytest.approx(0.1, abs=0.02)
    blended = mix.lam[~mix.cutmix & (mix.lam < 1)]
    wanted = generator("test", "beta").beta(0.8, 0.8, 20_000)
    assert np.quantile(blended, [0.1, 0.5, 0.9]) == pytest.approx(np.quantile(wanted, [0.1, 0.5, 0.9]), abs=0.03)


def test_boxes_are_distributed_as_timms() -> None:
    mix = draw_mix(ViewPolicy(**{**BASE, "size": 224}, mixup=0.0, cutmix=1.0), 0, 0, 8000)
    assert mix.cutmix.all()
    np.random.seed(3)
    theirs = np.array([rand_bbox((1, 3, 224, 224), np.random.beta(1.0, 1.0)) for _ in range(4000)])
    shares = (theirs[:, 1] - theirs[:, 0]) * (theirs[:, 3] - theirs[:, 2]) / 224**2
    steps = [0.1, 0.25, 0.5, 0.75, 0.9]
    assert np.quantile(1 - mix.lam, steps) == pytest.approx(np.quantile(shares, steps), abs=0.03)
    for ours, other in zip((0, 2, 1, 3), range(4), strict=True):
        assert mix.box[:, ours].mean() == pytest.approx(theirs[:, other].mean(), abs=6)


def test_mixup_alone_and_cutmix_alone_use_one_mode() -> None:
    assert not draw_mix(MIXUP, 0, 0, 500).cutmix.any()
    assert draw_mix(CUTMIX, 0, 0, 500).cutmix.all()
    none = draw_mix(ViewPolicy(**BASE, mixup=0.0, cutmix=0.0), 0, 0, 500)
    assert (none.lam == 1).all() and (none.partner == np.arange(500)).all()


def test_cutmix_between_two_sides_keeps_its_boxes_inside_and_whole() -> None:
    policy = ViewPolicy(**{**BASE, "size": 40}, mixup=0.0, cutmix=1.0, cutmix_minmax=(0.25, 0.75))
    mix = draw_mix(policy, 1, 0, 4000)
    top, left, bottom, right = mix.box[mix.cutmix].T
    for low, high in ((top, bottom), (left, right)):
        assert set((high - low).tolist()) == set(range(10, 30)) and low.min() == 0 and high.max() == 40


def test_fingerprint_changes_with_every_field_of_a_mix() -> None:
    mix = draw_mix(BOTH, 0, 0, 40)
    assert len(set(mix.fingerprints.tolist())) == 40
    flipped = [
        replace(mix, partner=mix.partner + 1),
        replace(mix, lam=np.nextafter(mix.lam, np.float32(2))),
        replace(mix, cutmix=~mix.cutmix),
        *(replace(mix, box=mix.box + np.eye(4, dtype=np.int64)[side]) for side in range(4)),
    ]
    assert all((other.fingerprints != mix.fingerprints).all() for other in flipped)
