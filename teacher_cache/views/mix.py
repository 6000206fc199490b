"""Mixup and cutmix: draw partner, lambda and box of every row of a shard; mix pixels and labels."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teacher_cache.rng import generator
from teacher_cache.views.policy import ViewPolicy

_GOLDEN_RATIO = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio
_SIDE_SHIFTS = np.array([0, 16, 32, 48], dtype=np.uint64)  # a view is smaller than 65,536 pixels
# shift and odd factor, chosen once at random
_MIX64_CONSTANTS = ((np.uint64(32), np.uint64(0xD1B54A32D192ED03)), (np.uint64(29), np.uint64(0xAEF17502108EF2D9)))


@dataclass(frozen=True)
class Mix:
    """How R rows are mixed: lam of a row's own pixels and 1 - lam of its partner's.

    partner: (R,) int64, an involution: partner[partner[i]] == i.
    lam: (R,) float32, the final lambda, computed after cutmix's box is clipped; both rows of a pair have the same.
    cutmix: (R,) bool. box: (R, 4) int64; top, left, bottom, right of the partner's patch; zeros without cutmix.
    """

    partner: NDArray[np.int64]
    lam: NDArray[np.float32]
    cutmix: NDArray[np.bool_]
    box: NDArray[np.int64]

    @cached_property
    def fingerprints(self) -> NDArray[np.uint64]:
        """(R,) uint64 hash of each row's mixing, which is combined with the digest of its view."""
        words = _mix64(self.partner.astype(np.uint64) + _GOLDEN_RATIO)
        words = _mix64(words ^ (self.lam.view(np.uint32) | self.cutmix.astype(np.uint64) << np.uint64(32)))
        return _mix64(words ^ (self.box.astype(np.uint64) << _SIDE_SHIFTS).sum(axis=1, dtype=np.uint64))


def draw_mix(policy: ViewPolicy, seed: int, shard: int, rows: int) -> Mix:
    """Draw the mixing of a whole shard under one seed; a pure function of its arguments.

    Seeds that repeated augmentation shows together (equal seed // aug_repeats) have the same pairs, so a batch
    with the views of an image also contains its partner's. One draw per pair, like timm's mixup in "pair" mode.
    """
    partner = np.arange(rows)
    if policy.mixes:
        order = generator("pairs", seed // policy.aug_repeats, shard).random(rows).argsort(kind="stable")
        half = rows // 2
        partner[order[:half]] = order[half : 2 * half]
        partner[order[half : 2 * half]] = order[:half]
    first = np.minimum(np.arange(rows), partner)  # both rows of a pair use the draw of the lower row
    lam, cutmix, box = _draw_rows(policy, seed, shard, rows)
    unpaired = partner == np.arange(rows)
    lam, cutmix, box = lam[first], cutmix[first], box[first]
    lam[unpaired], cutmix[unpaired], box[unpaired] = 1.0, False, 0
    return Mix(partner, lam, cutmix, box)


def _draw_rows(
    policy: ViewPolicy, seed: int, shard: int, rows: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64]]:
    """lambda, mode and box of each row, drawn independently; draw_mix then makes both rows of a pair equal."""
    rng = generator("mix", seed, shard)
    mix_uniforms, switch_uniforms, height, width = rng.random((4, rows))
    lam = np.ones(rows)
    cutmix = np.zeros(rows, dtype=bool)
    box = np.zeros((rows, 4), dtype=np.int64)
    if policy.mixup > 0:
        lam = rng.beta(policy.mixup, policy.mixup, rows)
    if policy.cutmix > 0:
        cutmix = switch_uniforms < (policy.mixup_switch_prob if policy.mixup > 0 else 1.0)
        if not policy.cutmix_minmax:
            box = _boxes(policy.size, 1 - rng.beta(policy.cutmix, policy.cutmix, rows), height, width)
        else:
            box = _minmax_boxes(
                policy.size, policy.cutmix_minmax, rng.random((2, rows)), np.stack((height, width))
            )
    unmixed = mix_uniforms >= policy.mixup_prob
    cutmix &= ~unmixed
    box[~cutmix] = 0
    patch_area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) / policy.size**2
    lam = np.where(unmixed, 1.0, np.where(cutmix, 1 - patch_area, lam))
    return lam.astype(np.float32), cutmix, box


def _boxes(
    size: int, area_fraction: NDArray[np.float64], height: NDArray[np.float64], width: NDArray[np.float64]
) -> NDArray[np.int64]:
    """(R, 4) boxes like timm's rand_bbox: squares with a random center, clipped to the image.

    area_fraction, height, width: (R,) in [0, 1]; height and width give the center.
    """
    side = (size * np.sqrt(area_fraction)).astype(np.int64)
    centers = [(fraction * size).astype(np.int64) for fraction in (height, width)]
    low = [np.clip(center - side // 2, 0, size) for center in centers]
    high = [np.clip(center + (side + 1) // 2, 0, size) for center in centers]
    return np.stack((low[0], low[1], high[0], high[1]), axis=1)


def _minmax_boxes(
    size: int,
    minmax: tuple[float, float],
    side_uniforms: NDArray[np.float64],
    position_uniforms: NDArray[np.float64],
) -> NDArray[np.int64]:
    """(R, 4) boxes like timm's rand_bbox_minmax: inside the image, height and width drawn independently.

    side_uniforms, position_uniforms: (2, R) in [0, 1); first row for height, second for width.
    """
    low, high = (int(size * fraction) for fraction in minmax)
    lengths = low + (side_uniforms * (high - low)).astype(np.int64)  # `high` is exclusive, as in timm
    starts = (position_uniforms * (size - lengths + 1)).astype(np.int64)
    return np.concatenate((starts, starts + lengths)).T


def _mix64(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Bijective 64-bit mixing: every input bit affects the whole word. words: (R,) uint64."""
    for shift, factor in _MIX64_CONSTANTS:
        words = (words ^ (words >> shift)) * factor
    return words ^ (words >> _MIX64_CONSTANTS[0][0])


def blend(pixels: Tensor, partner: Tensor, lam: Tensor, cutmix: Tensor, box: Tensor) -> Tensor:
    """Mix the first B images with their partners, in float32, on the device of `pixels`.

    pixels: (P, H, W, 3) uint8, P >= B; partners may follow the B images. partner: (B,) int64 indices into pixels.
    lam: (B,) float32. cutmix: (B,) bool. box: (B, 4) int64.
    Returns (B, 3, H, W) float32 in 0..255, channels last in memory. If lam is 1, the pixels are unchanged.
    """
    images = pixels.permute(0, 3, 1, 2).float()
    own, other = images[: len(partner)], images[partner]
    own_weight = torch.where(cutmix, torch.ones_like(lam), lam)[:, None, None, None]
    mixed = own * own_weight + other * (1 - own_weight)
    rows = torch.arange(own.shape[2], device=own.device)[None, :, None]
    columns = torch.arange(own.shape[3], device=own.device)[None, None, :]
    top, left, bottom, right = (side[:, None, None] for side in box.unbind(1))
    patch = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return torch.where(patch[:, None], other, mixed)


def mixed_labels(label: Tensor, partner_label: Tensor, lam: Tensor, classes: int) -> Tensor:
    """Weights of the true labels from the final lambda: (B, classes) float32, each row sums to 1.

    label, partner_label: (B,) int64. lam: (B,) float32.
    """
    weights = torch.zeros(len(label), classes, dtype=lam.dtype, device=label.device)
    weights.scatter_add_(1, label[:, None], lam[:, None])
    return weights.scatter_add_(1, partner_label[:, None], (1 - lam)[:, None])
