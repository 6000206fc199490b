"""Class and distillation token of a transformer: their cosine after each block, and their attention maps."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor

from student.bundle.bundle import Bundle
from student.model.attention import attention_maps


@dataclass(frozen=True)
class Tokens:
    """cosine: L + 1 mean cosines of class and distillation token, of the learned input and after each block.

    attention: (N, 2, h, w), share of each patch in the last block's attention, as in `attention_maps`.
    """

    cosine: list[float]
    attention: Tensor


@torch.inference_mode()
def token_statistics(bundle: Bundle, pixels: Tensor) -> Tokens | None:
    """Statistics on prepared images (N, S, S, 3) uint8; None if the network is not a distilled transformer."""
    if not isinstance(bundle.student.network, VisionTransformerDistilled):
        return None
    network: Any = bundle.student.network
    outputs: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _of, _seen, out: outputs.append(out)) for block in network.blocks]
    try:
        bundle.heads(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    input_cosine = F.cosine_similarity(network.cls_token[0, 0], network.dist_token[0, 0], dim=0)
    cosine = [float(input_cosine), *(float(F.cosine_similarity(x[:, 0], x[:, 1], dim=1).mean()) for x in outputs)]
    planes = pixels.to(bundle.device).permute(0, 3, 1, 2)
    return Tokens(cosine, attention_maps(bundle.student, planes, "last-layer"))
