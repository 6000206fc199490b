"""Speed of a machine: measured in a short trial, or read from a figures file (TOML)."""

import hashlib
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tomli_w
from pydantic import AliasChoices, Field, model_validator

from teacher_cache.cache.encoding import Encoding
from teacher_cache.config import Count, Positive, Table
from teacher_cache.console import log_line
from teacher_cache.errors import RecipeError
from teacher_cache.storage.atomic import write_atomic
from teacher_cache.text import decode_text

PositiveRate = Annotated[float, Field(gt=0)]
Seconds = Annotated[float, Field(ge=0)]


class MachineFigures(Table):
    """The machine, or the share of a machine, that runs one worker."""

    name: str = Field(min_length=1)
    price_per_hour: Annotated[float, Field(ge=0)] = 0.0
    """In any currency; 0 shows no prices."""


class DataFigures(Table):
    """Size of a data set; without this table, the shards of the recipe are counted."""

    images: Positive
    shards: Positive
    classes: Positive
    validation: Count = 0
    """Images of one evaluation of a student."""

    @model_validator(mode="after")
    def _every_shard_has_an_image(self) -> "DataFigures":
        if self.shards > self.images:
            raise ValueError(f"shards = {self.shards} is more than images = {self.images}; use fewer shards")
        return self

    @property
    def rows(self) -> tuple[int, ...]:
        """Number of images of each shard; they differ by at most one."""
        base, remainder = divmod(self.images, self.shards)
        return (base + 1,) * remainder + (base,) * (self.shards - remainder)


class TeacherFigures(Table):
    """Speed of the labeling job."""

    views_per_second: PositiveRate
    """The whole job: rendering, labeling, encoding and writing."""
    teacher_images_per_second: PositiveRate = Field(
        validation_alias=AliasChoices("teacher_images_per_second", "judged_per_second")  # the name in 0.1
    )
    """The teacher network alone, as in a student's step with a live teacher."""
    start_seconds: Seconds = 0.0
    """Time to reach that speed: loading weights, starting workers, compiling."""


class StudentFigures(Table):
    """Speed of a student's training from the cache."""

    images_per_second: PositiveRate
    evaluated_per_second: PositiveRate
    start_seconds: Seconds = 0.0


class Setup(Table):
    """Setup of the measurement. The rates depend on the networks and the size, the bytes on classes and k."""

    teacher: str | None = None
    """timm name, like student."""
    size: Positive | None = None
    """Size of the views in pixels."""
    student: str | None = None
    classes: Positive | None = None
    k: Positive | None = None

    def matches(self, encoding: Encoding) -> bool:
        """Whether the bytes are valid for an encoding: they depend on the classes and, with top-k, on k."""
        return encoding.classes == self.classes and (encoding.kind != "topk" or encoding.k == self.k)


class Hardware(Table):
    """A figures file. bytes: of one stored target without its digest, by `encoding_name`."""

    file_kind: ClassVar[str] = "figures file"
    source_command: ClassVar[str] = "limbeck estimate --save"

    machine: MachineFigures
    data: DataFigures | None = None
    teacher: TeacherFigures
    student: StudentFigures | None = None
    measured: Setup = Setup()
    bytes: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)

    @classmethod
    def with_current_keys(cls, tables: dict[str, Any]) -> dict[str, Any]:
        teacher = tables.get("teacher")
        if isinstance(teacher, dict) and "judged_per_second" in teacher:  # TeacherFigures reads it
            log_line(
                "teacher.judged_per_second is the old name of teacher.teacher_images_per_second and will be "
                "removed in 0.3; use teacher_images_per_second"
            )
        return tables

    @model_validator(mode="after")
    def _encodings_are_known(self) -> "Hardware":
        known = {"hard", "topk-uint8", "topk-float16", "dense-uint8", "dense-float16"}
        if unknown := sorted(self.bytes.keys() - known):
            raise ValueError(
                f"bytes has the unknown encoding '{unknown[0]}'; the encodings are {', '.join(sorted(known))}"
            )
        return self


def save_hardware(hardware: Hardware, path: Path, origin: str = "") -> None:
    """Write a figures file that `limbeck estimate --figures` reads. origin: by `origin_of`."""
    if not path.parent.is_dir():
        raise RecipeError(f"--save '{path}': the folder '{path.parent}' does not exist; create it")
    text = tomli_w.dumps(hardware.model_dump(mode="json", exclude_none=True))
    write_atomic(path, f"# {origin}, {_digest(text)}\n{text}".encode())


def is_edited(path: Path) -> bool:
    """Whether a figures file has changed since it was saved."""
    first_line, _, text = decode_text(path.read_bytes(), f"figures file '{path}'", RecipeError).partition("\n")
    return not first_line.endswith(_digest(text))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
