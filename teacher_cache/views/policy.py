"""The view policy: the distribution that views are drawn from."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from teacher_cache.config import Positive, Probability, Table
from teacher_cache.views.augment import RandAugment, parse_augment


class ViewPolicy(Table):
    """How views are drawn, with timm's names and strings; `limbeck cache build` writes it into the manifest."""

    size: Positive
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    """"random" draws one of the two for each crop and each geometric operation."""
    hflip: Probability
    vflip: Probability = 0.0
    auto_augment: str
    """timm's string, e.g. "rand-m9-mstd0.5-inc1" or "3a" (DeiT III); "" for none."""
    color_jitter: Annotated[float, Field(ge=0)] = 0.0
    """Brightness, contrast and saturation jitter after auto_augment; not with a rand- string."""
    re_prob: Probability
    re_mode: Literal["const", "rand", "pixel"] = "pixel"
    re_count: Positive = 1
    mixup: Annotated[float, Field(ge=0)]
    cutmix: Annotated[float, Field(ge=0)]
    cutmix_minmax: tuple[()] | tuple[Probability, Probability] = ()
    """Minimum and maximum side of cutmix's box as fractions of the view size; [] to use the alpha in `cutmix`."""
    mixup_prob: Probability = 1.0
    mixup_switch_prob: Probability = 0.5
    aug_repeats: Positive = 1
    """Views of each image in a batch (repeated augmentation); all have the same mixing partner."""

    @model_validator(mode="after")
    def _ranges_are_valid(self) -> "ViewPolicy":
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise ValueError(f"{name} must be [low, high] with 0 < low <= high; found [{low}, {high}]")
        if self.scale[1] > 1:
            raise ValueError(f"scale is a fraction of the image's area, at most 1; found {self.scale[1]}")
        return self

    @model_validator(mode="after")
    def _augmentation_is_valid(self) -> "ViewPolicy":
        if isinstance(parse_augment(self.auto_augment), RandAugment) and self.color_jitter:
            raise ValueError(
                f"color_jitter = {self.color_jitter} with auto_augment = '{self.auto_augment}': timm ignores "
                "color jitter in this case; set color_jitter = 0"
            )
        return self

    @model_validator(mode="after")
    def _cutmix_has_a_box(self) -> "ViewPolicy":
        if self.cutmix_minmax:
            low, high = (int(self.size * fraction) for fraction in self.cutmix_minmax)
            if low >= high:
                raise ValueError(
                    f"cutmix_minmax = {list(self.cutmix_minmax)} gives an empty range of box sides: from "
                    f"{low} to below {high} pixels of {self.size}; set a wider range"
                )
            if self.cutmix == 0:
                raise ValueError(
                    "cutmix_minmax with cutmix = 0: timm applies cutmix nevertheless; set cutmix = 1.0"
                )
        return self

    @property
    def mixes(self) -> bool:
        """Whether any view is mixed with a partner."""
        return self.mixup_prob > 0 and (self.mixup > 0 or self.cutmix > 0)
