"""Recipe tables for networks, teachers and evaluation preprocessing."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from teacher_cache.config import Interpolation, Plain, Positive, Table


class TeacherSpec(Table):
    """Teacher network: a finished run of `limbeck train`, or a timm model."""

    run: str = ""
    """Folder of a finished run, which gives model, weights, mean and std."""
    model: str = ""
    """timm model name; instead of run."""
    weights: str = "pretrained"
    """Weights of the timm model: "pretrained" (download) or a local .pth or .safetensors file."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward pass; bfloat16 uses torch.autocast."""

    @model_validator(mode="after")
    def _names_one_teacher(self) -> "TeacherSpec":
        if bool(self.run) == bool(self.model):
            raise ValueError("give either run (a folder of limbeck train) or model (a timm name)")
        return self


MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet: red, green, blue, for pixels in 0..1."""
Color = tuple[float, float, float]


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
