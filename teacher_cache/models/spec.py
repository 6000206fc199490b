"""Specifications of networks, teachers and evaluation preprocessing."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from teacher_cache.config import Interpolation, Plain, Positive, Table


class TeacherSpec(Table):
    """Which convnet judges the views: a run folder of `limbeck train`, or a timm model with its weights."""

    run: str = ""
    """A finished run folder; its model, weights, mean and std are used."""
    model: str = ""
    """A timm model name, instead of a run."""
    weights: str = "pretrained"
    """For a timm model: "pretrained" (from the hub) or a local .pth / .safetensors file."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What it computes in; bfloat16 by torch's autocast."""

    @model_validator(mode="after")
    def _names_one_teacher(self) -> "TeacherSpec":
        if bool(self.run) == bool(self.model):
            raise ValueError("give either run (a folder made by limbeck train) or model (a timm name)")
        return self


MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of the colours of ImageNet, red, green and blue from 0 to 1."""
Color = tuple[float, float, float]


class NetworkSpec(Table):
    """Which network: a timm name, with arguments for its constructor."""

    name: str
    args: Plain = Field(default_factory=dict)
    """Passed to timm.create_model: img_size, patch_size, embed_dim, drop_path_rate, ..."""
    small_stem: bool = False
    """For images of 32 px or so: a ResNet's first convolution becomes 3x3 with stride 1, without pooling."""
    pretrained: bool = False
    """Begin with timm's pretrained weights (from the hub) instead of random ones."""
    mean: Color = MEAN
    std: Color = STD


class EvalSpec(Table):
    """What the network sees at test: short side to size / crop, then the middle."""

    size: Positive
    crop: Annotated[float, Field(gt=0, le=1)]
    interpolation: Interpolation = "bicubic"
