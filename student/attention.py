"""What a distilled transformer's two tokens do inside: how alike they are, layer by layer, and where they look."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor

from student.bundle import Bundle


@dataclass(frozen=True)
class Tokens:
    """cosine: (L + 1,) mean cosine of class and distillation token, of the learned input and after each block.

    looks: (N, 2, h, w), the share of the last block's attention (mean over its heads) that each token pays to
    each patch; what it pays to the two tokens is left out.
    """

    cosine: list[float]
    looks: Tensor


@torch.inference_mode()
def watch_tokens(bundle: Bundle, pixels: Tensor) -> Tokens | None:
    """Show prepared images (N, S, S, 3) uint8 to a distilled transformer of timm; None for any other network."""
    if not isinstance(bundle.student.network, VisionTransformerDistilled):
        return None
    network: Any = bundle.student.network

    after: list[Tensor] = []
    attention: list[Tensor] = []
    last = network.blocks[-1].attn
    watches = [block.register_forward_hook(lambda _of, _seen, out: after.append(out)) for block in network.blocks]
    watches.append(last.register_forward_hook(lambda of, seen, _out: attention.append(_weights(of, seen[0]))))
    try:
        bundle.heads(pixels)
    finally:
        for watch in watches:
            watch.remove()
    learned = F.cosine_similarity(network.cls_token[0, 0], network.dist_token[0, 0], dim=0)
    cosine = [float(learned), *(float(F.cosine_similarity(x[:, 0], x[:, 1], dim=1).mean()) for x in after)]
    height, width = network.patch_embed.grid_size
    return Tokens(cosine, attention[0].mean(dim=1)[:, :2, 2:].reshape(len(pixels), 2, height, width).float().cpu())


def _weights(of: Any, seen: Tensor) -> Tensor:
    """(N, heads, T, T) attention of timm's Attention for its input (N, T, D), as its unfused path computes it."""
    images, tokens, _ = seen.shape
    parts = of.qkv(seen).reshape(images, tokens, 3, of.num_heads, of.head_dim).permute(2, 0, 3, 1, 4)
    query, key = of.q_norm(parts[0]), of.k_norm(parts[1])
    weights: Tensor = (query * of.scale @ key.transpose(-2, -1)).softmax(dim=-1)
    return weights
