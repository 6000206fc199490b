"""The bundled recipes, and a description of every recipe key."""

import difflib
import json
from collections.abc import Iterator
from importlib.resources import files
from textwrap import fill, indent
from typing import Any, NamedTuple

import rich.box
import rich.console
import rich.markup
import rich.table

from student.recipe import TrainRecipe
from teacher_cache.config import Table
from teacher_cache.errors import RecipeError
from teacher_cache.recipe import CacheRecipe

RECIPE_TYPES: dict[str, tuple[str, type[Table]]] = {
    "limbeck train": ("student.recipes", TrainRecipe),
    "limbeck cache build": ("teacher_cache.recipes", CacheRecipe),
}
"""The package and the type of the recipes that each command reads."""
WIDTH = 80
BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
TYPE_NAMES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true | false"}
TYPE_NAMES |= {"array": "list", "object": "table"}


class Key(NamedTuple):
    """One recipe key in words. default: ", " and the default value or "required", or ""."""

    name: str
    type: str
    default: str
    description: str


def bundled_recipes(command: str) -> dict[str, str]:
    """The texts of the recipes that a command reads, by name."""
    resources = sorted(files(RECIPE_TYPES[command][0]).iterdir(), key=lambda one: one.name)
    return {
        one.name.removesuffix(".toml"): one.read_text(encoding="utf-8")
        for one in resources
        if one.name.endswith(".toml")
    }


def recipe_text(name: str) -> str:
    """The text of a bundled recipe. Raises RecipeError for an unknown name."""
    texts = {known: text for command in RECIPE_TYPES for known, text in bundled_recipes(command).items()}
    if (stem := name.removesuffix(".toml")) not in texts:
        near = difflib.get_close_matches(stem, texts, n=1)
        question = f"did you mean '{near[0]}'? " if near else ""
        raise RecipeError(
            f"recipe '{stem}' is not bundled with Limbeck; {question}list the bundled ones with: limbeck recipes"
        )
    return texts[stem]


def recipe_keys(command: str) -> Iterator[tuple[str, str, list[Key]]]:
    """The tables of a command's recipes: name, description and keys."""
    schema = RECIPE_TYPES[command][1].model_json_schema()
    for name, field in schema["properties"].items():
        target = next(one["$ref"] for one in (field, *field.get("anyOf", ())) if "$ref" in one)
        table = schema["$defs"][target.rpartition("/")[2]]
        keys = [_key(key, one, key in table.get("required", ())) for key, one in table["properties"].items()]
        about = field.get("description", table["description"])
        yield name, about if name in schema["required"] else f"(optional) {about}", keys


def print_recipes() -> None:
    """Print the bundled recipes by command. The description is the first comment of each recipe."""
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    table.add_column("recipe", no_wrap=True)
    table.add_column("description")
    for command in RECIPE_TYPES:
        table.add_section()
        table.add_row("", f"[bold]for {command}")
        for name, text in bundled_recipes(command).items():
            title = text.partition("\n")[0].removeprefix("# ")
            table.add_row(name, rich.markup.escape(title))
    rich.console.Console().print(table)
    print("Copy a recipe: limbeck recipes NAME > NAME.toml. List all keys: limbeck recipes --keys.")


def print_keys() -> None:
    """Print all recipe keys by table: type, default and description."""
    for command in RECIPE_TYPES:
        print(f"{command} RECIPE reads:\n")
        for name, about, keys in recipe_keys(command):
            print(fill(f"[{name}] {about}", WIDTH, subsequent_indent="  "))
            for key in keys:
                print(f"  {key.name:18} {key.type}{key.default}")
                if key.description:
                    print(indent(fill(key.description, WIDTH - 21), 21 * " "))
            print()


def _key(name: str, field: dict[str, Any], required: bool) -> Key:
    options = [one for one in field.get("anyOf", (field,)) if one["type"] != "null"]
    takes = " or ".join(dict.fromkeys(map(_type, options)))
    if required:
        default = ", required"
    else:
        default = f", default {json.dumps(field['default'])}" if field.get("default") is not None else ""
    return Key(name, takes, default, " ".join(field.get("description", "").split()))


def _type(field: dict[str, Any]) -> str:
    if "enum" in field:
        return " | ".join(json.dumps(one) for one in field["enum"])
    bounds = [f"{sign} {field[bound]:g}" for bound, sign in BOUNDS.items() if bound in field]
    name = f"{TYPE_NAMES[field['type']]} {', '.join(bounds)}".rstrip()
    return f"{name} of {_type(field['items'])}" if "items" in field else name
