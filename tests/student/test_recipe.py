import json
import re
from typing import Any

import pytest
from facts import assert_facts

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
    message = str(raised.value)
    assert "recipe 'it'" in message and "\n" not in message
    return message.replace("recipe 'it'", "")


def changed(table: str, **fields: Any) -> dict[str, Any]:
    """TABLES with some fields of one table set; None removes a field."""
    merged = {**TABLES.get(table, {}), **fields}
    return {**TABLES, table: {name: value for name, value in merged.items() if value is not None}}


@pytest.mark.parametrize("key", ["mean", "std"])
def test_a_mean_for_pixels_up_to_255_is_refused(key: str) -> None:
    message = refusal(changed("model", **{key: [58.395, 57.12, 57.375]}))
    assert_facts(message, f"model.{key}", "57.12", 255, 0.224)
    assert refusal(changed("model", **{key: [0.5]})).count(f"model.{key}") == 1


PLAIN_VIEWS: dict[str, Any] = {
    "size": 8,
    "hflip": 0.5,
    "auto_augment": "",
    "re_prob": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
}


def test_every_misspelled_key_is_reported_with_the_correct_spelling() -> None:
    resolved_tables = resolved(parse_recipe({**TABLES, "views": PLAIN_VIEWS}, TrainRecipe, "it"))
    tried = 0
    for table, fields in ((table, fields) for table, fields in resolved_tables.items() if fields):
        for key, value in fields.items():
            wrong = {**resolved_tables, table: {name: known for name, known in fields.items() if name != key}}
            wrong[table][f"{key}s"] = value
            message = refusal(wrong)
            assert re.search(rf"\b{table}\.{key}s\b", message) and re.search(rf"\b{key}\b", message)
            tried += 1
    assert tried > 30


@pytest.mark.parametrize(
    ("tables", "facts"),
    [
        ({**TABLES, "optimiser": {}}, ("optimiser", "'optim'")),
        (changed("optim", lr="5e-4"), ("optim.lr", "5e-4")),
        (changed("train", batch=1024.5), ("train.batch", 1024.5)),
        (changed("schedule", epochs=0), ("schedule.epochs", 0, 1)),
        (
            changed("loss", distillation="medium"),
            ("loss.distillation", "medium", "none", "soft", "hard", "truth"),
        ),
        (changed("eval", crop=0.0), ("eval.crop", 0.0)),
        (changed("optim", weight_decay=None), ("optim.weight_decay",)),
        (changed("loss", tau=None), ("distillation", "soft", "tau", "balance")),
        (changed("loss", balance=None), ("distillation", "soft", "tau", "balance")),
        (
            changed("loss", distillation="hard"),
            ("distillation", "hard", "tau", "balance", "--set loss.tau="),
        ),
        (
            {name: table for name, table in TABLES.items() if name != "cache"},
            ("distillation", "soft", "[cache]", "path"),
        ),
        (changed("loss", distillation="truth", head="class"), ("distillation", "truth", "head", "class")),
        (
            changed("loss", criterion="bce", bce_targets="soft", head="class"),
            ("criterion", "bce", "distillation", "soft", "head"),
        ),
        (changed("loss", criterion="bce"), ("criterion", "bce", "bce_targets", "multi-label", "soft")),
        (changed("loss", bce_targets="soft"), ("bce_targets", "bce_threshold", "criterion", "bce")),
        (
            changed("loss", criterion="bce", bce_targets="multi-label", bce_threshold=0.2),
            ("bce_threshold", "bce_targets", "soft"),
        ),
        (changed("cache", also=["b.zarr"], weights=[1.0]), ("weights", 1, 2)),
        (changed("cache", also=["a.zarr"]), ("a.zarr",)),
        (changed("cache", also=["b.zarr"], weights=[1.0, 0.0]), ("cache.weights.1", 0.0)),
        (
            {**changed("train", targets="live"), "cache": {"path": "a.zarr", "also": ["b.zarr"]}},
            ("train.targets", "live", "cache.also"),
        ),
        (changed("model", init_from="runs/a", pretrained=True), ("pretrained", "init_from", "runs/a")),
        (changed("model", init_from="runs/a", start="runs/b"), ("model", "start", "init_from")),
        (changed("model", new_classes=True), ("new_classes", "init_from")),
        (
            changed("loss", distillation="none", tau=None, balance=None) | {"cache": None},
            ("[views]", "[cache]"),
        ),
    ],
)
def test_an_invalid_recipe_gives_one_line_with_the_key(tables: dict[str, Any], facts: tuple[object, ...]) -> None:
    assert_facts(refusal(tables), *facts)


def test_the_old_key_start_still_sets_init_from_and_one_line_names_both(
    capsys: pytest.CaptureFixture[str],
) -> None:
    old, new = (
        parse_recipe(changed("model", **{key: "runs/a"}), TrainRecipe, "it") for key in ("start", "init_from")
    )
    assert old == new and old.model.init_from == "runs/a"
    (line,) = capsys.readouterr().err.splitlines()
    assert_facts(line, "model.start", "model.init_from")


def test_the_resolved_recipe_parses_to_the_same_recipe() -> None:
    recipe = parse_recipe(TABLES, TrainRecipe, "it")
    stored = json.loads(json.dumps(resolved(recipe)))
    assert parse_recipe(stored, TrainRecipe, "it") == recipe


def test_an_override_of_views_fixed_by_the_cache_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"\bviews\.size\b"):
        parse_recipe({**TABLES, "views": {"size": 32}}, TrainRecipe, "it")


def test_a_recipe_of_another_command_is_reported_with_that_command() -> None:
    cache: dict[str, Any] = {
        "data": {"train": "shards"},
        "views": PLAIN_VIEWS,
        "teacher": {"run": "runs/teacher"},
        "cache": {"path": "a.zarr", "seeds": 4, "encoding": "hard"},
    }
    with pytest.raises(RecipeError, match="limbeck cache build"):
        parse_recipe(cache, TrainRecipe, "it")
    with pytest.raises(RecipeError, match="limbeck train"):
        parse_recipe(TABLES, CacheRecipe, "it")
