"""Recipes: TOML files read into frozen, typed tables that refuse what they do not know."""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from teacher_cache.augment import RandAugment, parse_augment
from teacher_cache.errors import RecipeError, reason

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Interpolation = Literal["bicubic", "bilinear"]


class Table(BaseModel):
    """One table of a recipe: frozen, strictly typed, unknown keys refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def mistaken(cls, tables: dict[str, Any]) -> str:
        """What refused tables are, if plainly something else than this; or ""."""
        return ""


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
    def _ranges_are_ordered(self) -> "ViewPolicy":
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise ValueError(f"{name} must be [low, high] with 0 < low <= high, found [{low}, {high}]")
        if self.scale[1] > 1:
            raise ValueError(f"scale is a share of the image's area, at most 1, found {self.scale[1]}")
        return self

    @model_validator(mode="after")
    def _augmentation_can_be_read(self) -> "ViewPolicy":
        if isinstance(parse_augment(self.auto_augment), RandAugment) and self.color_jitter:
            raise ValueError(
                f"color_jitter = {self.color_jitter} beside auto_augment = '{self.auto_augment}': timm applies no "
                "colour jitter then; set color_jitter = 0"
            )
        return self

    @model_validator(mode="after")
    def _cutmix_has_a_box(self) -> "ViewPolicy":
        if self.cutmix_minmax:
            low, high = (int(self.size * share) for share in self.cutmix_minmax)
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


class JudgeSpec(TeacherSpec):
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


class ShardCacheSpec(Table):
    """Where shards from URLs are kept, if anywhere."""

    shard_cache: str = ""
    """A folder on a local disk, which any number of processes of this machine may share."""
    shard_cache_gib: Annotated[float, Field(gt=0)] = 50.0
    """Of shards in it; those that were read longest ago make room."""

    @field_validator("shard_cache")
    @classmethod
    def _is_on_this_machine(cls, place: str) -> str:
        if "://" in place:
            raise ValueError(f"'{place}' is a URL, and shards are kept in a local folder; give its path")
        return place


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
    teacher: JudgeSpec
    cache: CacheSpec
    job: JobSpec = JobSpec()

    @classmethod
    def mistaken(cls, tables: dict[str, Any]) -> str:
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


R = TypeVar("R", bound=Table)
SHOWN = 3
"""Of a recipe's faults, so many are told at once."""


def load_recipe(path: str | Path, kind: type[R], overrides: Iterable[str] = ()) -> R:
    """Read a TOML recipe, apply `table.key=value` overrides, and check every key and type.

    An override without a value, `table.key=`, removes the key.
    Raises RecipeError with one line that names the file, the key, what was found and what was expected.
    """
    try:
        tables = tomllib.loads(Path(path).read_text())
    except FileNotFoundError:
        raise RecipeError(f"recipe '{path}' is not there; check the path, or see: limbeck recipes") from None
    except IsADirectoryError:
        raise RecipeError(f"recipe '{path}' is a folder; give the TOML file itself") from None
    except OSError as error:
        raise RecipeError(f"recipe '{path}' cannot be read: {error.strerror}; mend that and run again") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"recipe '{path}' cannot be read as TOML: {error}") from None
    for override in overrides:
        _apply(tables, override)
    return parse_recipe(tables, kind, f"recipe '{path}'")


def parse_recipe(tables: dict[str, Any], kind: type[R], where: str) -> R:
    """Check plain tables (from TOML, or from a stored resolved recipe) against a recipe type."""
    try:
        return kind.model_validate_json(json.dumps(tables))  # JSON mode: strict, yet lists may fill tuples
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None
    except (TypeError, ValueError) as error:
        if not isinstance(error, ValidationError):
            raise RecipeError(f"{where}: {error}; dates and times have no place in a recipe") from None
        if mistaken := kind.mistaken(tables):
            raise RecipeError(f"{where} {mistaken}") from None
        problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        meant = {_nearest(problem, kind) for problem in problems if problem["type"] == "extra_forbidden"}
        told = [problem for problem in problems if problem["type"] != "missing" or problem["loc"][-1] not in meant]
        lines, more = [_describe(problem, kind) for problem in told[:SHOWN]], len(told) - SHOWN
        if more > 0:
            where, lines = f"{where} has {len(told)} faults", [*lines, f"and {more} more"]
        raise RecipeError(f"{where}: {'; '.join(lines)}") from None


def resolved(recipe: Table) -> dict[str, Any]:
    """The recipe with every default filled in, as plain JSON values."""
    return recipe.model_dump(mode="json")


def digest_of(plain: dict[str, Any]) -> str:
    """sha256 of plain values, such as a resolved recipe."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def differences(mine: Any, theirs: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Each field in which two plain values differ: (dotted name, mine, theirs); None stands for absent."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        keys = sorted(mine.keys() | theirs.keys())
        return [
            difference
            for key in keys
            for difference in differences(mine.get(key), theirs.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if mine == theirs else [(name, mine, theirs)]


def told_apart(found: list[tuple[str, Any, Any]], most: int = 4) -> str:
    """The first of some `differences` for one line, their values cut where they are long."""
    told = [f"{name} is {_brief(there)} there and {_brief(here)} here" for name, there, here in found[:most]]
    more = len(found) - len(told)
    return "; ".join(told) + (f"; and {more:,} more differ" if more else "")


def _brief(value: Any) -> str:
    shown = "not given" if value is None else repr(value)
    return shown if len(shown) <= 60 else f"{shown[:50]}..."


def _apply(tables: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"--set {override!r} is not table.key=value, e.g. --set optim.lr=1e-3")
    if not text.strip():
        _remove(tables, keys, override)
        return
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word: --set model.name=resnet18
    table = tables
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise RecipeError(f"--set {override!r}: '{key}' is a value, not a table")
    table[keys[-1]] = value


def _remove(tables: dict[str, Any], keys: list[str], override: str) -> None:
    table: Any = tables
    for key in keys[:-1]:
        table = table.get(key) if isinstance(table, dict) else None
    if not isinstance(table, dict) or keys[-1] not in table:
        raise RecipeError(f"--set {override!r} removes a key that is not there; leave it out, or correct its name")
    del table[keys[-1]]


def _describe(problem: Any, kind: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        near = _nearest(problem, kind)
        return f"unknown key '{where}'" + (f", did you mean '{near}'?" if near else "; remove it")
    if problem["type"] == "missing":
        return f"'{where}' is missing; add it"
    message = reason(problem["msg"])
    if problem["type"] == "value_error":
        return f"{where}: {message}" if where else message
    found = json.dumps(problem["input"], default=str)
    return f"{where} = {found[:60]}: {message[0].lower()}{message[1:]}"


def _nearest(problem: Any, kind: type[BaseModel]) -> str:
    """The known key most like an unknown one, or ""."""
    near = difflib.get_close_matches(str(problem["loc"][-1]), _keys_at(kind, problem["loc"][:-1]), n=1)
    return near[0] if near else ""


def _keys_at(kind: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """The keys a table of this recipe type knows; the tables sit in fields, possibly optional ones."""
    for part in path:
        field = kind.model_fields.get(str(part))
        options = (field.annotation, *get_args(field.annotation)) if field else ()
        tables = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if not tables:
            return []
        kind = tables[0]
    return list(kind.model_fields)
