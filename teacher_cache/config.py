"""Read TOML recipes into frozen pydantic tables."""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

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
    def with_current_keys(cls, tables: dict[str, Any]) -> dict[str, Any]:
        """The tables with renamed keys under their current names. Logs each old key."""
        return tables

    @classmethod
    def mistaken(cls, tables: dict[str, Any]) -> str:
        """What refused tables are, if plainly something else than this; or ""."""
        return ""


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
        current = kind.with_current_keys(tables)
        return kind.model_validate_json(json.dumps(current))  # JSON mode: strict, yet lists may fill tuples
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


def describe_differences(found: list[tuple[str, Any, Any]], most: int = 4) -> str:
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


Plain = dict[str, Any]
