import pickle
from typing import Any

import pytest
import torch
from timm.layers import Attention
from timm.utils import AttentionExtract
from torch import Tensor, nn

from student.model.attention import attention_maps, has_attention_maps
from student.model.student import Student
from teacher_cache.errors import RecipeError
from teacher_cache.models.network import create_network
from teacher_cache.models.spec import MEAN, STD, NetworkSpec
from teacher_cache.rng import generator

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}


def student(name: str, **args: Any) -> Student:
    network = create_network(NetworkSpec(name=name, args=args), 3)
    generator = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return Student(network, MEAN, STD).eval()


def pixels(size: int = 32) -> Tensor:
    return torch.from_numpy(generator("attention").integers(0, 256, (2, 3, size, size))).to(torch.uint8)


def layers_by_timm(one: Student) -> list[Tensor]:
    """Each layer's attention (B, heads, N, N), found by timm's own extractor in the traced network."""
    images = (pixels().float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    for part in one.network.modules():
        if isinstance(part, Attention):
            part.fused_attn = False
    with torch.no_grad():
        found: dict[str, Tensor] = AttentionExtract(one.network)(images)
    return list(found.values())


def test_last_layer_maps_equal_timms_averaged_over_heads() -> None:
    one = student("deit_tiny_distilled_patch16_224", **SMALL)
    maps = attention_maps(one, pixels(), "last-layer")
    expected = layers_by_timm(one)[-1].mean(dim=1)[:, :2, 2:]
    expected = expected / expected.sum(dim=-1, keepdim=True)
    assert maps.shape == (2, 2, 4, 4)
    torch.testing.assert_close(maps.flatten(2), expected)


def test_rollout_is_the_product_of_all_layers() -> None:
    one = student("deit_tiny_distilled_patch16_224", **SMALL)
    maps = attention_maps(one, pixels(), "rollout")
    layers = [(layer.mean(dim=1) + torch.eye(18)) / 2 for layer in layers_by_timm(one)]
    expected = (layers[2] @ layers[1] @ layers[0])[:, :2, 2:]
    torch.testing.assert_close(maps.flatten(2), expected / expected.sum(dim=-1, keepdim=True))
    assert not torch.allclose(maps, attention_maps(one, pixels(), "last-layer"))


def test_the_network_is_left_as_it_was() -> None:
    one = student("deit_tiny_distilled_patch16_224", **SMALL)
    before = one(pixels())
    attention_maps(one, pixels(), "rollout")
    pickle.dumps(one.network)  # a hook that is left would fail: it is a local function
    assert all(part.fused_attn for part in one.network.modules() if isinstance(part, Attention))
    torch.testing.assert_close(one(pixels()), before, rtol=0, atol=0)


def test_a_network_without_the_distillation_token_has_one_map() -> None:
    one = student("deit_tiny_patch16_224", **SMALL)
    maps = attention_maps(one, pixels(), "last-layer")
    assert maps.shape == (2, 1, 4, 4)
    torch.testing.assert_close(maps.sum(dim=(2, 3)), torch.ones(2, 1))


@pytest.mark.parametrize("name", ["resnet10t", "pit_ti_distilled_224"])
def test_a_network_without_attention_maps_is_refused_in_one_line(name: str) -> None:
    one = student(name)
    assert not has_attention_maps(one)
    with pytest.raises(RecipeError):
        attention_maps(one, pixels(), "last-layer")
