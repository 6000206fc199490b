"""Create timm networks and normalize their input."""

import difflib
from collections.abc import Iterable

import timm
import torch
from torch import Tensor, nn

from teacher_cache.errors import RecipeError
from teacher_cache.models.spec import Color, NetworkSpec


def create_network(spec: NetworkSpec, classes: int) -> nn.Module:
    """The timm model with `classes` outputs, with random or pretrained weights.

    Raises RecipeError if timm does not know the model (with the nearest names) or rejects its arguments.
    """
    check_model_name(spec.name)
    try:
        model = timm.create_model(spec.name, pretrained=spec.pretrained, num_classes=classes, **spec.args)
    except (TypeError, AssertionError, RuntimeError, OSError, ValueError, ArithmeticError, LookupError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        for name in spec.args:
            if f"unexpected keyword argument '{name}'" in reason:
                remove = f"remove it (--set model.args.{name}=), or remove all arguments (--set model.args=)"
                reason = f"the model has no argument '{name}'; {remove}"
        raise RecipeError(f"model '{spec.name}' cannot be created with args {spec.args}: {reason}") from None
    if spec.small_stem:
        _shrink_stem(model, spec.name)
    network: nn.Module = model
    return network


def check_model_name(name: str, key: str = "model.name") -> None:
    """Raise RecipeError, with the nearest names, if timm does not know the model. key: recipe key of the name."""
    if not timm.is_model(name):
        raise unknown_name_error(key, name, "model", timm.list_models(), "timm.list_models() lists all names")


class Normalize(nn.Module):
    """`normalize` with its constants on the network's device: a forward pass copies nothing from the host."""

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Color, std: Color) -> None:
        super().__init__()
        scale = [1 / (255 * deviation) for deviation in std]
        shift = [-average / deviation for average, deviation in zip(mean, std, strict=True)]
        for name, values in (("scale", scale), ("shift", shift)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels * self.scale + self.shift


def normalize(pixels: Tensor, mean: Color, std: Color) -> Tensor:
    """(B, 3, H, W) float pixels in 0..255, normalized by channel: (pixels / 255 - mean) / std."""
    return Normalize(mean, std).to(pixels.device)(pixels)  # type: ignore[no-any-return]  # a module's call is Any


def _shrink_stem(model: nn.Module, name: str) -> None:
    stem = getattr(model, "conv1", None)
    if not isinstance(stem, nn.Conv2d) or not hasattr(model, "maxpool"):
        raise RecipeError(
            f"model.small_stem = true needs a timm ResNet with conv1 and maxpool, unlike '{name}'; set it to false"
        )
    model.conv1 = nn.Conv2d(stem.in_channels, stem.out_channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()


def unknown_name_error(key: str, name: str, kind: str, known: Iterable[str], fallback_advice: str) -> RecipeError:
    """Error for a name that timm does not know; lists the nearest known names, or the fallback advice.

    kind: noun for the message, e.g. "model".
    """
    nearest = difflib.get_close_matches(name, known, n=3)
    advice = f"nearest are {', '.join(nearest)}" if nearest else fallback_advice
    return RecipeError(f"{key} = '{name}': timm has no such {kind}; {advice}")
