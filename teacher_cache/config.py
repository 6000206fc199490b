"""Read TOML recipes into frozen pydantic tables."""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from teacher_cache.errors import RecipeError, validation_reason

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
    def wrong_kind_hint(cls, tables: dict[str, Any]) -> str:
        """What refused tables are, if plainly something else than this; or ""."""
        return ""


R = TypeVar("R", bound=Table)
MAX_SHOWN = 3
"""Of a recipe's faults, so many are told at once."""


def load_recipe(path: str | Path, table_type: type[R], overrides: Iterable[str] = ()) -> R:
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
        _apply_override(tables, override)
    return parse_recipe(tables, table_type, f"recipe '{path}'")


def parse_recipe(tables: dict[str, Any], table_type: type[R], where: str) -> R:
    """Check plain tables (from TOML, or from a stored resolved recipe) against a recipe type."""
    try:
        return table_type.model_validate_json(json.dumps(tables))  # JSON mode: strict, yet lists may fill tuples
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None
    except (TypeError, ValueError) as error:
        if not isinstance(error, ValidationError):
            raise RecipeError(f"{where}: {error}; dates and times have no place in a recipe") from None
        if hint := table_type.wrong_kind_hint(tables):
            raise RecipeError(f"{where} {hint}") from None
        problems = _describe_problems(error, table_type)
        if (more := len(problems) - MAX_SHOWN) > 0:
            where, problems = f"{where} has {len(problems)} faults", [*problems[:MAX_SHOWN], f"and {more} more"]
        raise RecipeError(f"{where}: {'; '.join(problems)}") from None


def resolved(recipe: Table) -> dict[str, Any]:
    """The recipe with every default filled in, as plain JSON values."""
    return recipe.model_dump(mode="json")


def digest_of(plain: dict[str, Any]) -> str:
    """sha256 of plain values, such as a resolved recipe."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def differences(first: Any, second: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Each field in which two plain values differ: (dotted name, first, second); None stands for absent."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = sorted(first.keys() | second.keys())
        return [
            difference
            for key in keys
            for difference in differences(first.get(key), second.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if first == second else [(name, first, second)]


def describe_differences(found: list[tuple[str, Any, Any]], limit: int = 4) -> str:
    """The first of some `differences` for one line, their values cut where they are long."""
    shown = [
        f"{name} is {_shorten(first)} there and {_shorten(second)} here" for name, first, second in found[:limit]
    ]
    more = len(found) - len(shown)
    return "; ".join(shown) + (f"; and {more:,} more differ" if more else "")


def _shorten(value: Any) -> str:
    shown = "not given" if value is None else repr(value)
    return shown if len(shown) <= 60 else f"{shown[:50]}..."


def _apply_override(tables: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"--set {override!r} is not table.key=value, e.g. --set optim.lr=1e-3")
    if not text.strip():
        _remove_key(tables, keys, override)
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


def _remove_key(tables: dict[str, Any], keys: list[str], override: str) -> None:
    table: Any = tables
    for key in keys[:-1]:
        table = table.get(key) if isinstance(table, dict) else None
    if not isinstance(table, dict) or keys[-1] not in table:
        raise RecipeError(f"--set {override!r} removes a key that is not there; leave it out, or correct its name")
    del table[keys[-1]]


def _describe_problems(error: ValidationError, table_type: type[BaseModel]) -> list[str]:
    """A phrase for each problem, unknown keys first; a missing key is left out if an unknown key resembles it."""
    unknown = [problem for problem in error.errors() if problem["type"] == "extra_forbidden"]
    others = [problem for problem in error.errors() if problem["type"] != "extra_forbidden"]
    misspelled = {_nearest_key(problem, table_type) for problem in unknown}
    others = [
        problem for problem in others if problem["type"] != "missing" or problem["loc"][-1] not in misspelled
    ]
    return [_describe(problem, table_type) for problem in [*unknown, *others]]


def _describe(problem: Any, table_type: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        near = _nearest_key(problem, table_type)
        return f"unknown key '{where}'" + (f", did you mean '{near}'?" if near else "; remove it")
    if problem["type"] == "missing":
        return f"'{where}' is missing; add it"
    message = validation_reason(problem["msg"])
    if problem["type"] == "value_error":
        return f"{where}: {message}" if where else message
    found = json.dumps(problem["input"], default=str)
    return f"{where} = {found[:60]}: {message[0].lower()}{message[1:]}"


def _nearest_key(problem: Any, table_type: type[BaseModel]) -> str:
    """The known key most like an unknown one, or ""."""
    near = difflib.get_close_matches(str(problem["loc"][-1]), _keys_at(table_type, problem["loc"][:-1]), n=1)
    return near[0] if near else ""


def _keys_at(table_type: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """The keys a table of this recipe type knows; the tables sit in fields, possibly optional ones."""
    for part in path:
        field = table_type.model_fields.get(str(part))
        options = (field.annotation, *get_args(field.annotation)) if field else ()
        tables = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if not tables:
            return []
        table_type = tables[0]
    return list(table_type.model_fields)


Plain = dict[str, Any]
