"""Recipe tables for networks, teachers and evaluation preprocessing."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from teacher_cache.config import Interpolation, Plain, Positive, Table

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet: red, green, blue, for pixels in 0..1."""
Color = tuple[float, float, float]


def _check_color(values: Any) -> Any:
    """Raise ValueError for a color that does not have three numbers, or has them for pixels in 0..255."""
    numbers = tuple(values) if isinstance(values, list | tuple) else ()
    if len(numbers) != 3 or any(type(number) not in (int, float) for number in numbers):
        raise ValueError(f"{values} is not a list of three numbers; give one each for red, green and blue")
    if max(numbers) > 1:
        divided = [round(number / 255, 4) for number in numbers]
        raise ValueError(f"{list(numbers)} is for pixels in 0..255; divide it by 255: {divided}")
    return numbers


_Share = Annotated[float, Field(ge=0)]
_Deviation = Annotated[float, Field(gt=0)]
Mean = Annotated[tuple[_Share, _Share, _Share], BeforeValidator(_check_color)]
"""Three numbers in 0..1."""
Std = Annotated[tuple[_Deviation, _Deviation, _Deviation], BeforeValidator(_check_color)]
"""Three numbers above 0 and at most 1."""


Dtype = Literal["float32", "tf32", "bfloat16"]
"""Precision of a network on a GPU. Weights are float32 in each."""


class TeacherSpec(Table):
    """Teacher network: a finished run of `limbeck train`, or a timm model."""

    run: str = ""
    """Folder of a finished run, which gives model, weights, mean and std."""
    model: str = ""
    """timm model name; instead of run."""
    weights: str = "pretrained"
    """Weights of the timm model: "pretrained" (download) or a local .pth or .safetensors file."""
    mean: Mean | None = None
    """Mean of the teacher's input by channel, for pixels in 0..1. The default is that of timm's
    config of the model."""
    std: Std | None = None
    """Standard deviation of the teacher's input, like mean."""
    dtype: Dtype = "float32"
    """Precision of the forward pass. "tf32" lets a GPU round the factors of convolutions and matrix products to
    TF32; "bfloat16" uses torch.autocast. On a CPU, "tf32" is the same as "float32"."""

    @model_validator(mode="after")
    def _names_one_teacher(self) -> "TeacherSpec":
        if bool(self.run) == bool(self.model):
            raise ValueError("give either run (a folder of limbeck train) or model (a timm name)")
        return self

    @model_validator(mode="after")
    def _run_has_mean_and_std(self) -> "TeacherSpec":
        given = [name for name in ("mean", "std") if getattr(self, name) is not None]
        if self.run and given:
            raise ValueError(f"run = '{self.run}' has its own {' and '.join(given)}; remove {' and '.join(given)}")
        return self


class NetworkSpec(Table):
    """Network: a timm model and its arguments."""

    name: str
    """timm model name."""
    args: Plain = Field(default_factory=dict)
    """Arguments of timm.create_model: img_size, patch_size, embed_dim, drop_path_rate, ..."""
    small_stem: bool = False
    """ResNet stem for images of about 32 px: one 3x3 convolution with stride 1, without max pooling."""
    pretrained: bool = False
    """Start from timm's pretrained weights (download) instead of random ones."""
    mean: Color = MEAN
    """Mean of the input by channel, for pixels in 0..1."""
    std: Color = STD
    """Standard deviation of the input by channel, for pixels in 0..1."""


class EvalSpec(Table):
    """Evaluation preprocessing: resize the short side to size / crop, then center-crop to size."""

    size: Positive
    """Side of the square input in pixels."""
    crop: Annotated[float, Field(gt=0, le=1)]
    """Ratio of the crop to the resized short side."""
    interpolation: Interpolation = "bicubic"
