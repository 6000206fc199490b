"""TOML recipes as frozen pydantic tables: reading, overriding and comparing them."""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from teacher_cache.errors import RecipeError, validation_reason
from teacher_cache.text import decode_text

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Interpolation = Literal["bicubic", "bilinear"]


class Table(BaseModel):
    """One table of a recipe: frozen, strictly typed, without unknown keys. NaN and infinity are invalid."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    file_kind: ClassVar[str] = "recipe"
    """What messages call a file with these tables."""
    source_command: ClassVar[str] = "limbeck recipes"
    """The command that lists or writes such files."""

    @classmethod
    def with_current_keys(cls, tables: dict[str, Any]) -> dict[str, Any]:
        """The tables with renamed keys under their current names. Logs each old key."""
        return tables

    @classmethod
    def wrong_kind_hint(cls, tables: dict[str, Any]) -> str:
        """Hint for invalid tables that are clearly another kind of recipe; "" if they are not.

        The hint continues the sentence that begins with the recipe's name.
        """
        return ""


R = TypeVar("R", bound=Table)
MAX_SHOWN = 3
"""Number of errors of one recipe that a message lists."""


def load_recipe(path: str | Path, table_type: type[R], overrides: Iterable[str] = ()) -> R:
    """Read a TOML recipe, apply `table.key=value` overrides, and validate it.

    An override without a value, `table.key=`, removes the key.
    Raises RecipeError if the file cannot be read, or if a key is unknown, missing or invalid.
    """
    where = f"{table_type.file_kind} '{path}'"
    try:
        tables = tomllib.loads(decode_text(Path(path).read_bytes(), where, RecipeError))
    except FileNotFoundError:
        raise RecipeError(f"{where} does not exist; {_missing_file_advice(Path(path), table_type)}") from None
    except IsADirectoryError:
        raise RecipeError(f"{where} is a folder; give the path of a TOML file") from None
    except OSError as error:
        raise RecipeError(f"{where} cannot be read: {error.strerror}; fix that, then rerun") from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{where} is not valid TOML: {error}") from None
    for override in overrides:
        _apply_override(tables, override)
    return parse_recipe(tables, table_type, where)


def _missing_file_advice(path: Path, table_type: type[Table]) -> str:
    """What to do if a file is missing: the most similar file in its folder, or where to find one."""
    names = sorted(file.name for file in path.parent.glob("*.toml"))
    if near := difflib.get_close_matches(path.with_suffix(".toml").name, names, n=1):
        return f"did you mean '{path.with_name(near[0])}'?"
    return f"check the path, or see: {table_type.source_command}"


def parse_recipe(tables: dict[str, Any], table_type: type[R], where: str) -> R:
    """Validate tables of plain values, as TOML or JSON give them.

    where: start of the error message, e.g. "recipe 'a.toml'". Raises RecipeError if a key or value is invalid.
    """
    try:
        current = table_type.with_current_keys(tables)
        return table_type.model_validate_json(json.dumps(current))  # strict JSON mode accepts lists as tuples
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None
    except (TypeError, ValueError) as error:
        if not isinstance(error, ValidationError):
            raise RecipeError(f"{where}: {error}; remove dates and times") from None
        if hint := table_type.wrong_kind_hint(tables):
            raise RecipeError(f"{where} {hint}") from None
        problems = _describe_problems(error, table_type)
        if (more := len(problems) - MAX_SHOWN) > 0:
            where, problems = f"{where} has {len(problems)} errors", [*problems[:MAX_SHOWN], f"and {more} more"]
        raise RecipeError(f"{where}: {'; '.join(problems)}") from None


def resolved(recipe: Table) -> dict[str, Any]:
    """The recipe with all defaults, as plain JSON values."""
    return recipe.model_dump(mode="json")


def digest_of(plain: Any) -> str:
    """Hexadecimal sha256 of plain JSON values, independent of the order of keys."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def differences(first: Any, second: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """All fields in which two plain values differ, as (dotted name, first value, second value).

    None stands for a missing field. name: prefix of the dotted names.
    """
    if isinstance(first, dict) and isinstance(second, dict):
        keys = sorted(first.keys() | second.keys())
        return [
            difference
            for key in keys
            for difference in differences(first.get(key), second.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if first == second else [(name, first, second)]


def describe_differences(found: list[tuple[str, Any, Any]], limit: int = 4) -> str:
    """The first `limit` of `differences(stored, given)` as one line; long values are shortened."""
    shown = [
        f"{name} was {_shorten(stored)} and is now {_shorten(given)}" for name, stored, given in found[:limit]
    ]
    more = len(found) - len(shown)
    return "; ".join(shown) + (f"; and {more:,} more differ" if more else "")


def _shorten(value: Any) -> str:
    shown = "missing" if value is None else repr(value)
    return shown if len(shown) <= 60 else f"{shown[:50]}..."


def _apply_override(tables: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"--set {override!r} is not of the form table.key=value, such as optim.lr=1e-3")
    if not text.strip():
        _remove_key(tables, keys, override)
        return
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # an unquoted string: --set model.name=resnet18
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
        raise RecipeError(f"--set {override!r} removes a key that does not exist; correct or omit it")
    del table[keys[-1]]


def _describe_problems(error: ValidationError, table_type: type[BaseModel]) -> list[str]:
    """One phrase per error, unknown keys first. Missing keys that resemble an unknown key are left out."""
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
        table = where.rpartition(".")[0]
        nearest = f"{table}.{near}" if table else near
        return f"unknown key '{where}'" + (f", did you mean '{nearest}'?" if near else "; remove it")
    if problem["type"] == "missing":
        return f"'{where}' is missing; add it"
    message = validation_reason(problem["msg"])
    if problem["type"] == "value_error":
        return f"{where}: {message}" if where else message
    found = json.dumps(problem["input"], default=str)
    return f"{where} = {found[:60]}: {message[0].lower()}{message[1:]}"


def _nearest_key(problem: Any, table_type: type[BaseModel]) -> str:
    """The known key that is most similar to the unknown one, or ""."""
    near = difflib.get_close_matches(str(problem["loc"][-1]), _keys_at(table_type, problem["loc"][:-1]), n=1)
    return near[0] if near else ""


def _keys_at(table_type: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """The known keys of the table at `path`, whose field may be optional; [] if the table does not exist."""
    for part in path:
        field = table_type.model_fields.get(str(part))
        options = (field.annotation, *get_args(field.annotation)) if field else ()
        tables = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if not tables:
            return []
        table_type = tables[0]
    return list(table_type.model_fields)


Plain = dict[str, Any]
