"""What a machine can do: measured by a short calibration, or written down in a figures file (TOML)."""

from pathlib import Path
from typing import Annotated

import tomli_w
from pydantic import AliasChoices, Field, model_validator

from teacher_cache.cache.encoding import Encoding
from teacher_cache.config import Count, Positive, Table
from teacher_cache.errors import RecipeError
from teacher_cache.storage.atomic import write_atomic

Rate = Annotated[float, Field(gt=0)]
Seconds = Annotated[float, Field(ge=0)]


class MachineFigures(Table):
    """One worker's machine, or its share of one: what runs one process of the job."""

    name: str = Field(min_length=1)
    price_per_hour: Annotated[float, Field(ge=0)] = 0.0
    """In whatever currency; 0 where it is not to be counted."""


class DataFigures(Table):
    """A data set that is not at hand; without this table the recipe's own shards are counted."""

    images: Positive
    shards: Positive
    classes: Positive
    validation: Count = 0
    """Images that a student is measured on."""

    @model_validator(mode="after")
    def _every_shard_has_an_image(self) -> "DataFigures":
        if self.shards > self.images:
            raise ValueError(f"shards = {self.shards} is more than images = {self.images}")
        return self

    @property
    def rows(self) -> tuple[int, ...]:
        """Images of each shard, as even as can be."""
        base, remainder = divmod(self.images, self.shards)
        return (base + 1,) * remainder + (base,) * (self.shards - remainder)


class TeacherFigures(Table):
    """The teacher job on this machine."""

    views_per_second: Rate
    """Of the whole job: rendered, judged, encoded and written."""
    teacher_images_per_second: Rate = Field(
        validation_alias=AliasChoices("teacher_images_per_second", "judged_per_second")  # the name in 0.1
    )
    """Of the network alone, as a student's step with a live teacher would call it."""
    start_seconds: Seconds = 0.0
    """Until the job runs at that rate: weights, workers, compiling."""


class StudentFigures(Table):
    """The student's training from the cache on this machine."""

    images_per_second: Rate
    evaluated_per_second: Rate
    start_seconds: Seconds = 0.0


class Setup(Table):
    """What figures were measured with; rates are of these networks and this size, bytes of these classes and k."""

    teacher: str | None = None
    """A timm name, as the student's."""
    size: Positive | None = None
    """Of the views, in pixels."""
    student: str | None = None
    classes: Positive | None = None
    k: Positive | None = None

    def matches(self, encoding: Encoding) -> bool:
        """Whether its bytes are this encoding's: a label takes up to log2(classes) bits, and top-k k such more."""
        return encoding.classes == self.classes and (encoding.kind != "topk" or encoding.k == self.k)


class Hardware(Table):
    """A figures file. bytes: of a target on disk, digest apart, by encoding (teacher_cache/workload.py)."""

    machine: MachineFigures
    data: DataFigures | None = None
    teacher: TeacherFigures
    student: StudentFigures | None = None
    measured: Setup = Setup()
    bytes: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _encodings_are_known(self) -> "Hardware":
        known = {"hard", "topk-uint8", "topk-float16", "dense-uint8", "dense-float16"}
        if unknown := sorted(self.bytes.keys() - known):
            raise ValueError(f"bytes has '{unknown[0]}'; the encodings are {', '.join(sorted(known))}")
        return self


def save_hardware(hardware: Hardware, path: Path) -> None:
    """Write a figures file that `limbeck estimate --figures` reads."""
    if not path.parent.is_dir():
        raise RecipeError(f"--save '{path}': there is no folder '{path.parent}'; make it")
    tables = hardware.model_dump(mode="json", exclude_none=True)
    write_atomic(path, tomli_w.dumps(tables).encode())
