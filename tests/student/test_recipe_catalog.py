"""Tests of `limbeck recipes`: it lists and prints the shipped recipes, and lists every recipe key."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from facts import assert_facts

from student.recipe import TrainRecipe
from student.recipe_catalog import RECIPE_TYPES, bundled_recipes, recipe_keys
from teacher_cache.config import load_recipe, resolved
from teacher_cache.errors import RecipeError
from teacher_cache.recipe import CacheRecipe

ROOT = Path(__file__).parents[2]


def test_every_shipped_recipe_is_listed_and_printed_unchanged(limbeck: Callable[..., str], tmp_path: Path) -> None:
    listed = limbeck("recipes")
    files = [*ROOT.glob("student/recipes/*.toml"), *ROOT.glob("teacher_cache/recipes/*.toml")]
    assert {path.stem for path in files} == {name for command in RECIPE_TYPES for name in bundled_recipes(command)}
    for path in files:
        assert f" {path.stem} " in listed
        assert limbeck("recipes", path.stem) == limbeck("recipes", path.name) == path.read_text()


def test_every_printed_recipe_is_one_that_its_command_reads() -> None:
    for command, (_, kind) in RECIPE_TYPES.items():
        assert bundled_recipes(command)
        for name in bundled_recipes(command):
            load_recipe(next(ROOT.glob(f"*/recipes/{name}.toml")), kind)


def test_an_unknown_recipe_name_is_refused(limbeck: Callable[..., str]) -> None:
    with pytest.raises(RecipeError) as raised:
        limbeck("recipes", "deit_xl")
    assert_facts(raised.value, "'deit_xl'", "limbeck recipes")
    with pytest.raises(RecipeError) as raised:
        limbeck("recipes", "deit_ti", "--keys")
    assert_facts(raised.value, "--keys", "'deit_ti'")


@pytest.mark.parametrize(
    ("command", "recipe"), [("limbeck train", "deit_ti_distilled"), ("limbeck cache build", "imagenet_224")]
)
def test_every_recipe_key_is_listed_with_its_default(command: str, recipe: str) -> None:
    output = {f"{table}.{key.name}": key for table, _, keys in recipe_keys(command) for key in keys}
    path, kind = next(ROOT.glob(f"*/recipes/{recipe}.toml")), RECIPE_TYPES[command][1]
    assert set(leaves(resolved(load_recipe(path, kind)))) <= set(output)
    assert output["cache.path"].default == output["data.train"].default != "", "both are required"
    assert re.search(r"\b1$", output["views.re_count"].default)


def test_keys_are_printed_with_type_and_default(limbeck: Callable[..., str]) -> None:
    output = limbeck("recipes", "--keys")
    assert max(map(len, output.splitlines())) <= 110
    for line in (
        r"  lr +\S.*> 0\b.*\n {21}\S",  # the next line says what it is
        r'  kl +"batchmean" \| "reference"\W.*"batchmean"\n',
        r"  tau +\S.*> 0\n",
        r"  weights +\S.*> 0\b.*\[\]\n",
        r"\[views\] \S",
    ):
        assert re.search(rf"^{line}", output, re.MULTILINE)
    for kind in (TrainRecipe, CacheRecipe):
        assert all(f"\n[{table}] " in output for table in kind.model_fields)


def leaves(tables: dict[str, Any]) -> Iterator[str]:
    for table, keys in tables.items():
        yield from (f"{table}.{key}" for key in keys or ())
