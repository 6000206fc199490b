"""Attention maps of a vision transformer: from the class and distillation tokens to each patch."""

from contextlib import ExitStack
from typing import Any, Literal

import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from student.model.student import Student
from teacher_cache.errors import RecipeError

Method = Literal["last-layer", "rollout"]


@torch.inference_mode()
def attention_maps(student: Student, pixels: Tensor, method: Method) -> Tensor:
    """Maps (B, T, rows, columns) float32 over the patches. Each map sums to one.

    pixels: (B, 3, S, S) in 0..255. T: the class token, then the distillation token if the network has one. method:
    "last-layer" is the attention of the last layer, averaged over its heads. "rollout" is the product of all
    layers' attention, each averaged over its heads and mixed equally with the identity for the skip connection
    (Abnar and Zuidema 2020, section 3). Raises RecipeError if `has_attention_maps` is False.
    """
    if not has_attention_maps(student):
        raise RecipeError("this model has no attention maps; serve a vision transformer with a class token")
    network: Any = student.network
    blocks = network.blocks if method == "rollout" else network.blocks[-1:]
    layers = _layers(network, blocks, student.normalize(pixels.float()))
    attention = layers[-1]
    if method == "rollout":
        attention = torch.eye(attention.shape[-1], device=attention.device)
        for weights in layers:
            attention = _with_skip(weights) @ attention
    to_patches = attention[:, : 2 if student.two_headed else 1, network.num_prefix_tokens :]
    maps: Tensor = (to_patches / to_patches.sum(dim=-1, keepdim=True)).unflatten(-1, network.patch_embed.grid_size)
    return maps.cpu()


def has_attention_maps(student: Student) -> bool:
    """Whether the network is a plain vision transformer with a class token, such as timm's DeiT."""
    network: Any = student.network
    if not isinstance(network, VisionTransformer) or not network.has_class_token:
        return False
    blocks: Any = network.blocks
    return all(type(block) is Block and isinstance(block.attn, Attention) for block in blocks)


def _with_skip(weights: Tensor) -> Tensor:
    return (weights + torch.eye(weights.shape[-1], device=weights.device)) / 2


def _layers(network: Any, blocks: Any, images: Tensor) -> list[Tensor]:
    """The attention (B, N, N) of each of the blocks, from one forward pass.

    It is computed from the input of each block's attention module. timm's AttentionExtract finds no weights in
    fused attention; otherwise it traces the network, which takes seconds per call.
    """
    layers: list[Tensor] = []

    def record(attention: Any, inputs: tuple[Tensor, ...]) -> None:
        layers.append(_weights(attention, inputs[0]))

    with ExitStack() as hooks:
        for block in blocks:
            hooks.callback(block.attn.register_forward_pre_hook(record).remove)
        network(images)
    return layers


def _weights(attention: Any, tokens: Tensor) -> Tensor:
    """(B, N, D) normalized tokens to (B, N, N): attention of each token (row) to each, the mean over the heads."""
    shape = (*tokens.shape[:2], 3, attention.num_heads, attention.head_dim)
    query, key, _ = attention.qkv(tokens).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
    scores = (attention.q_norm(query) * attention.scale) @ attention.k_norm(key).transpose(-2, -1)
    weights: Tensor = scores.float().softmax(dim=-1).mean(dim=1)
    return weights
