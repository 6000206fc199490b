"""The recipe of a teacher cache."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from teacher_cache.config import Count, Positive, Table
from teacher_cache.disk_cache.decoded_cache import DecodedCacheSpec
from teacher_cache.disk_cache.shard_cache import ShardCacheSpec
from teacher_cache.models.spec import TeacherSpec
from teacher_cache.views.policy import ViewPolicy


class LabelingTeacherSpec(TeacherSpec):
    """Teacher that labels the views."""

    min_accuracy: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Minimum top-1 accuracy in percent on data.val; below it, the build stops. 0 disables the check."""


class CacheSpec(Table):
    """Location, number of seeds and encoding of the targets."""

    path: str = Field(min_length=1)
    """Local folder or URL of the cache."""
    seeds: Positive
    """Number of augmentation seeds, i.e. views of each image."""
    seeds_per_unit: Positive = 4
    """Seeds per unit of work. A shard is read and decoded once per unit."""
    encoding: Literal["hard", "topk", "dense"]
    """Stored targets: the predicted class, the k largest logits, or all logits."""
    k: Positive = 10
    """Number of classes that the top-k encoding stores."""
    values: Literal["float16", "uint8"] = "float16"
    """Storage type of top-k and dense logits. uint8 quantizes them and takes half the space."""
    digest_bits: Literal[16, 32, 64] = 16
    """Size of the stored digest of each view, which replay compares."""


class JobSpec(DecodedCacheSpec, ShardCacheSpec):
    """Settings of the machine. They do not change views; batch and device may change the last bits of logits."""

    workers: Count | None = None
    """Loader processes per teacher; 0 loads in the main process. Unset: 1 on a CPU, and beside a GPU one for each
    core of the process but one."""
    batch: Positive = 64
    """Views per forward pass of the teacher."""
    device: str = "auto"
    """torch device; "auto": the first GPU if the machine has one, else the CPU."""
    decoded_gib: float = Field(default=2.0, gt=0)
    """Memory per worker for decoded images of a shard. Images that do not fit are decoded for every seed."""
    compile: bool = False
    """Compile the teacher with torch.compile, which takes minutes; useful for a large cache on a GPU."""
    cudnn_benchmark: bool = False
    """Let cuDNN time its convolutions and use the fastest, on a GPU. The last bits of logits may differ by job."""


class TrainShards(Table):
    """Shards of the cache."""

    train: str
    """Shard folder or index of the images to label."""
    val: str = ""
    """Shard folder or index for measuring the teacher; needed if teacher.min_accuracy is not 0."""


class CacheRecipe(Table):
    """Recipe of `limbeck cache build`."""

    data: TrainShards
    views: ViewPolicy
    teacher: LabelingTeacherSpec
    cache: CacheSpec
    job: JobSpec = JobSpec()

    @classmethod
    def wrong_kind_hint(cls, tables: dict[str, Any]) -> str:
        return "is a recipe for 'limbeck train'; give one for 'limbeck cache build'" if "optim" in tables else ""

    @model_validator(mode="after")
    def _min_accuracy_has_val(self) -> "CacheRecipe":
        if self.teacher.min_accuracy and not self.data.val:
            raise ValueError(f"teacher.min_accuracy = {self.teacher.min_accuracy:g} needs data.val; set it")
        return self

    @model_validator(mode="after")
    def _seeds_fill_blocks(self) -> "CacheRecipe":
        if self.cache.seeds % self.views.aug_repeats:
            raise ValueError(
                f"cache.seeds = {self.cache.seeds} is not a multiple of "
                f"views.aug_repeats = {self.views.aug_repeats}; change one of them"
            )
        return self
