import json
from typing import Any

import pytest

from student.recipe import TrainRecipe
from teacher_cache.config import parse_recipe, resolved
from teacher_cache.errors import RecipeError
from teacher_cache.recipe import CacheRecipe

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


PLAIN_VIEWS: dict[str, Any] = {
    "size": 8,
    "hflip": 0.5,
    "auto_augment": "",
    "re_prob": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
}


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
            "loss.distillation = \"medium\": input should be 'none', 'soft', 'hard' or 'tr",
        ),
        (changed("eval", crop=0.0), "eval.crop = 0.0: input should be greater than 0"),
        (changed("optim", weight_decay=None), "'optim.weight_decay' is missing; add it"),
        (changed("loss", tau=None), 'distillation = "soft" needs tau and balance'),
        (changed("loss", balance=None), 'distillation = "soft" needs tau and balance'),
        (
            changed("loss", distillation="hard"),
            'distillation = "hard" has no tau and no balance; remove them (--set loss.tau=',
        ),
        (
            {name: table for name, table in TABLES.items() if name != "cache"},
            'distillation = "soft" needs a [cache] with path = "..."',
        ),
        (
            changed("loss", distillation="truth", head="class"),
            'distillation = "truth" trains the distillation head; remove head = "class"',
        ),
        (
            changed("loss", criterion="bce", bce_targets="soft", head="class"),
            'criterion = "bce" and distillation = "soft" on the same head: ',
        ),
        (changed("loss", criterion="bce"), 'criterion = "bce" needs bce_targets = "multi-label" or "soft"'),
        (changed("loss", bce_targets="soft"), 'bce_targets and bce_threshold need criterion = "bce"; add it or'),
        (
            changed("loss", criterion="bce", bce_targets="multi-label", bce_threshold=0.2),
            'bce_threshold is of soft targets; set bce_targets = "soft" or remove it',
        ),
        (changed("cache", also=["b.zarr"], weights=[1.0]), "weights has 1 entries for 2 caches; give each one"),
        (changed("cache", also=["a.zarr"]), "cache 'a.zarr' is named twice; give it a weight instead"),
        (changed("cache", also=["b.zarr"], weights=[1.0, 0.0]), "cache.weights.1 = 0.0: input should be greater"),
        (
            {**changed("train", targets="live"), "cache": {"path": "a.zarr", "also": ["b.zarr"]}},
            "is for one teacher; remove cache.a",
        ),
        (
            changed("model", start="runs/a", pretrained=True),
            "pretrained = true beside start = 'runs/a': remove one",
        ),
        (
            changed("model", new_classes=True),
            "new_classes = true is for a network that starts from another; add st",
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


def test_an_override_of_views_that_the_cache_fixes_is_refused_as_such() -> None:
    with pytest.raises(
        RecipeError,
        match=r"^it has a cache, which fixes the views; remove views\.size, or set",
    ):
        parse_recipe({**TABLES, "views": {"size": 32}}, TrainRecipe, "it")


def test_a_recipe_of_another_command_is_told_apart() -> None:
    cache: dict[str, Any] = {
        "data": {"train": "shards"},
        "views": PLAIN_VIEWS,
        "teacher": {"run": "runs/teacher"},
        "cache": {"path": "a.zarr", "seeds": 4, "encoding": "hard"},
    }
    with pytest.raises(RecipeError, match=r"^it is one for 'limbeck cache build', where a training's is needed$"):
        parse_recipe(cache, TrainRecipe, "it")
    with pytest.raises(RecipeError, match=r"^it is one for 'limbeck train', where a cache's is needed$"):
        parse_recipe(TABLES, CacheRecipe, "it")
