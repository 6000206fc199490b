import json
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

from student.optim import create_optimizer, create_schedule
from student.recipe import TrainRecipe
from teacher_cache.augment import parse_augment
from teacher_cache.errors import RecipeError
from teacher_cache.network import check_name
from teacher_cache.plan import PlanSpec
from teacher_cache.recipe import CacheRecipe, ViewPolicy, load_recipe, parse_recipe, resolved

RECIPES = sorted(
    path
    for package in ("student", "teacher_cache")
    for path in Path(str(files(f"{package}.recipes"))).glob("*.toml")
)

TABLES: dict[str, Any] = {
    "data": {"train": "shards", "val": "shards"},
    "cache": {"path": "a.zarr"},
    "model": {"name": "deit_tiny_distilled_patch16_224"},
    "loss": {"distillation": "soft", "smoothing": 0.1, "tau": 3.0, "balance": 0.1},
    "optim": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05},
    "schedule": {"epochs": 300, "warmup_epochs": 5, "warmup_lr": 1e-6, "min_lr": 1e-5},
    "train": {"batch": 1024},
    "eval": {"size": 224, "crop": 0.875},
}


def refusal(tables: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as raised:
        parse_recipe(tables, TrainRecipe, "recipe 'it'")
    told = str(raised.value)
    assert told.startswith("recipe 'it': ") and "\n" not in told
    return told.removeprefix("recipe 'it': ")


def changed(table: str, **fields: Any) -> dict[str, Any]:
    """TABLES with some fields of one table set; None takes a field away."""
    merged = {**TABLES.get(table, {}), **fields}
    return {**TABLES, table: {name: value for name, value in merged.items() if value is not None}}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_ships_loads_and_its_numbers_fit_together(path: Path) -> None:
    if "teacher" in tomllib.loads(path.read_text()):
        views: ViewPolicy | None = load_recipe(path, CacheRecipe).views
    else:
        recipe = load_recipe(path, TrainRecipe)
        views = recipe.views
        check_name(recipe.model.name)
        optimizer = create_optimizer(recipe.optim, torch.nn.Linear(2, 2))
        create_schedule(recipe.schedule, optimizer, steps_per_epoch=10)
        PlanSpec(views or ViewPolicy(**PLAIN_VIEWS), 4, recipe.train.batch, recipe.train.streams)
    if views is not None:
        parse_augment(views.auto_augment)


PLAIN_VIEWS: dict[str, Any] = {
    "size": 8,
    "hflip": 0.5,
    "auto_augment": "",
    "re_prob": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
}


def test_there_are_recipes() -> None:
    assert {path.parent.parent.name for path in RECIPES} == {"student", "teacher_cache"}


def test_every_misspelt_key_is_told_its_right_spelling() -> None:
    whole = resolved(parse_recipe({**TABLES, "views": PLAIN_VIEWS}, TrainRecipe, "it"))
    tried = 0
    for table, fields in ((table, fields) for table, fields in whole.items() if fields):
        for key, value in fields.items():
            wrong = {**whole, table: {name: known for name, known in fields.items() if name != key}}
            wrong[table][f"{key}s"] = value
            told = refusal(wrong)
            assert f"unknown key '{table}.{key}s', did you mean '{key}'?" in told
            tried += 1
    assert tried > 30


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({**TABLES, "optimiser": {}}, "unknown key 'optimiser', did you mean 'optim'?"),
        (changed("optim", lr="5e-4"), 'optim.lr = "5e-4": input should be a valid number'),
        (changed("train", batch=1024.5), "train.batch = 1024.5: input should be a valid integer"),
        (changed("schedule", epochs=0), "schedule.epochs = 0: input should be greater than or equal to 1"),
        (
            changed("loss", distillation="medium"),
            "loss.distillation = \"medium\": input should be 'none', 'soft' or 'h",
        ),
        (changed("eval", crop=0.0), "eval.crop = 0.0: input should be greater than 0"),
        (changed("optim", weight_decay=None), "'optim.weight_decay' is missing; add it"),
        (changed("loss", tau=None), 'distillation = "soft" needs tau and balance'),
        (changed("loss", balance=None), 'distillation = "soft" needs tau and balance'),
        (changed("loss", distillation="hard"), 'distillation = "hard" has no tau and no balance'),
        (
            {name: table for name, table in TABLES.items() if name != "cache"},
            'distillation = "soft" needs a [cache] with path = "..."',
        ),
        (
            changed("loss", distillation="none", tau=None, balance=None) | {"cache": None},
            "[views] is missing; add it, or a [cache] whose manifest has it",
        ),
    ],
)
def test_what_a_recipe_cannot_mean_is_one_line_that_names_the_key(tables: dict[str, Any], words: str) -> None:
    assert words in refusal(tables)


def test_the_resolved_recipe_is_the_same_recipe_again() -> None:
    recipe = parse_recipe(TABLES, TrainRecipe, "it")
    stored = json.loads(json.dumps(resolved(recipe)))
    assert parse_recipe(stored, TrainRecipe, "it") == recipe
