"""The view policy: the distribution that views are drawn from."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from teacher_cache.config import Positive, Probability, Table
from teacher_cache.views.augment import RandAugment, parse_augment


class ViewPolicy(Table):
    """How views are drawn, by timm's own names and strings; `limbeck cache build` writes it into the manifest."""

    size: Positive
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    """"random" is either of the two, drawn for each crop and for each geometric operation."""
    hflip: Probability
    vflip: Probability = 0.0
    auto_augment: str
    """timm's string: "rand-m9-mstd0.5-inc1" and the like, "3a" (DeiT III); "" for none."""
    color_jitter: Annotated[float, Field(ge=0)] = 0.0
    """Of brightness, contrast and saturation, after auto_augment; not beside a rand- string."""
    re_prob: Probability
    re_mode: Literal["const", "rand", "pixel"] = "pixel"
    re_count: Positive = 1
    mixup: Annotated[float, Field(ge=0)]
    cutmix: Annotated[float, Field(ge=0)]
    cutmix_minmax: tuple[()] | tuple[Probability, Probability] = ()
    """Least and largest side of cutmix's box as shares of the view's, or []; instead of the alpha in `cutmix`."""
    mixup_prob: Probability = 1.0
    mixup_switch_prob: Probability = 0.5
    aug_repeats: Positive = 1
    """Views of one image in the same batch (repeated augmentation); they share their mixing partner."""

    @model_validator(mode="after")
    def _ranges_are_valid(self) -> "ViewPolicy":
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise ValueError(f"{name} must be [low, high] with 0 < low <= high, found [{low}, {high}]")
        if self.scale[1] > 1:
            raise ValueError(f"scale is a share of the image's area, at most 1, found {self.scale[1]}")
        return self

    @model_validator(mode="after")
    def _augmentation_is_valid(self) -> "ViewPolicy":
        if isinstance(parse_augment(self.auto_augment), RandAugment) and self.color_jitter:
            raise ValueError(
                f"color_jitter = {self.color_jitter} beside auto_augment = '{self.auto_augment}': timm applies no "
                "colour jitter then; set color_jitter = 0"
            )
        return self

    @model_validator(mode="after")
    def _cutmix_has_a_box(self) -> "ViewPolicy":
        if self.cutmix_minmax:
            low, high = (int(self.size * fraction) for fraction in self.cutmix_minmax)
            if low >= high:
                raise ValueError(
                    f"cutmix_minmax = {list(self.cutmix_minmax)} leaves no box to draw: its sides are from "
                    f"{low} to below {high} pixels of {self.size}; set them further apart"
                )
            if self.cutmix == 0:
                raise ValueError("cutmix_minmax beside cutmix = 0: timm mixes then; say so with cutmix = 1.0")
        return self

    @property
    def mixes(self) -> bool:
        return self.mixup_prob > 0 and (self.mixup > 0 or self.cutmix > 0)
