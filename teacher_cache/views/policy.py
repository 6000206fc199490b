"""The view policy: the distribution that views are drawn from."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from teacher_cache.config import Positive, Probability, Table
from teacher_cache.views.augment import RandAugment, parse_augment


class ViewPolicy(Table):
    """How views are drawn, with timm's names and strings; `limbeck cache build` writes it into the manifest."""

    size: Positive
    """Side of a view in pixels."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Range of the crop's area, as a fraction of the image's."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's width / height."""
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    """"random" draws one of the two for each crop and each geometric operation."""
    hflip: Probability
    """Probability of a horizontal flip."""
    vflip: Probability = 0.0
    """Probability of a vertical flip."""
    auto_augment: str
    """timm's string, e.g. "rand-m9-mstd0.5-inc1" or "3a" (DeiT III); "" for none."""
    color_jitter: Annotated[float, Field(ge=0)] = 0.0
    """Brightness, contrast and saturation jitter after auto_augment; not with a rand- string."""
    re_prob: Probability
    """Probability of random erasing."""
    re_mode: Literal["const", "rand", "pixel"] = "pixel"
    """Fill of an erased box: ImageNet's mean color, one random color, or a random color per pixel."""
    re_count: Positive = 1
    """Maximum number of erased boxes."""
    mixup: Annotated[float, Field(ge=0)]
    """Alpha of mixup's Beta distribution; 0 disables mixup."""
    cutmix: Annotated[float, Field(ge=0)]
    """Alpha of cutmix's Beta distribution; 0 disables cutmix."""
    cutmix_minmax: tuple[()] | tuple[Probability, Probability] = ()
    """Minimum and maximum side of cutmix's box as fractions of the view size; [] to use the alpha in `cutmix`."""
    mixup_prob: Probability = 1.0
    """Probability of mixing a view with its partner."""
    mixup_switch_prob: Probability = 0.5
    """Probability of cutmix instead of mixup, if both are enabled."""
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
