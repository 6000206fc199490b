"""Recipes: TOML files read into frozen, typed tables that refuse what they do not know."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from teacher_cache.config import Count, Positive, Table
from teacher_cache.data.shard_cache import ShardCacheSpec
from teacher_cache.models.spec import TeacherSpec
from teacher_cache.views.policy import ViewPolicy


class LabelingTeacherSpec(TeacherSpec):
    """The teacher of a cache."""

    min_accuracy: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Top-1 in percent that it must reach on the images of data.val, or nothing is built; 0 asks for none."""


class CacheSpec(Table):
    """Where the targets go, for which seeds, and in what encoding."""

    path: str = Field(min_length=1)
    seeds: Positive
    seeds_per_unit: Positive = 4
    """Seeds that one unit of work covers: the shard is read and decoded once for all of them."""
    encoding: Literal["hard", "topk", "dense"]
    k: Positive = 10
    """Classes kept by the top-k encoding."""
    values: Literal["float16", "uint8"] = "float16"
    """How a top-k or dense logit is stored; uint8 keeps steps, in half the space."""
    digest_bits: Literal[16, 32, 64] = 16


class JobSpec(ShardCacheSpec):
    """How this machine does the work. No view depends on it; a logit's last bits may, on batch and device."""

    workers: Count = 1
    batch: Positive = 64
    device: str = "auto"
    decoded_gib: float = Field(default=2.0, gt=0)
    """Of one shard's decoded images, in each worker's memory; what is over is decoded again for each seed."""
    compile: bool = False
    """torch.compile the teacher; worth its minutes on a GPU and a large cache."""


class TrainShards(Table):
    """The shards the teacher sees. val: those it is examined on, where teacher.min_accuracy asks for it."""

    train: str
    val: str = ""


class CacheRecipe(Table):
    """What `limbeck cache build` reads."""

    data: TrainShards
    views: ViewPolicy
    teacher: LabelingTeacherSpec
    cache: CacheSpec
    job: JobSpec = JobSpec()

    @classmethod
    def wrong_kind_hint(cls, tables: dict[str, Any]) -> str:
        return "is one for 'limbeck train', where a cache's is needed" if "optim" in tables else ""

    @model_validator(mode="after")
    def _teacher_can_be_examined(self) -> "CacheRecipe":
        if self.teacher.min_accuracy and not self.data.val:
            raise ValueError(f"teacher.min_accuracy = {self.teacher.min_accuracy:g} needs data.val; add it")
        return self

    @model_validator(mode="after")
    def _seeds_fill_blocks(self) -> "CacheRecipe":
        if self.cache.seeds % self.views.aug_repeats:
            raise ValueError(
                f"cache.seeds = {self.cache.seeds} is no multiple of views.aug_repeats = {self.views.aug_repeats}"
            )
        return self
