"""What a recipe learns from: shards, views and perhaps a cache, opened and checked against each other."""

from dataclasses import dataclass
from typing import Any

from student.recipe import TrainRecipe
from teacher_cache.cache import TargetCache
from teacher_cache.errors import CacheError, RecipeError
from teacher_cache.journal import say
from teacher_cache.manifest import require, shard_set
from teacher_cache.recipe import CacheRecipe, ViewPolicy, digest_of, parse_recipe
from teacher_cache.shards import ShardIndex, load_index
from teacher_cache.teacher import Teacher, load_teacher
from teacher_cache.view import VIEW_VERSION


@dataclass(frozen=True)
class Inputs:
    """What there is to learn from: shards to train and to measure on, the views, and perhaps a cache."""

    train: ShardIndex
    val: ShardIndex
    policy: ViewPolicy
    seeds: int
    cache: str | None
    taught: dict[str, Any]
    """The cache's manifest, less what does not tell caches apart; {} without a cache."""

    def identity(self) -> dict[str, str]:
        """What a run must find again when it goes on: digests of the shards and of the cache's manifest."""
        parts = {"train": self.train.contents(), "val": self.val.contents(), "cache": self.taught}
        return {name: digest_of(part) for name, part in parts.items()}


def open_inputs(recipe: TrainRecipe) -> Inputs:
    """Open what the recipe names and check that it fits together, field by field."""
    train_index, val_index = load_index(recipe.data.train), load_index(recipe.data.val)
    if train_index.classes != val_index.classes:
        raise RecipeError(
            f"data.train has {len(train_index.classes)} classes and data.val {len(val_index.classes)}, "
            "or in another order; pack both from the same classes"
        )
    if recipe.cache is None:
        assert recipe.views is not None, "the recipe's own check"
        epochs, repeats = recipe.schedule.epochs, recipe.views.aug_repeats
        return Inputs(train_index, val_index, recipe.views, -(-epochs // repeats) * repeats, None, {})
    path = recipe.cache.path
    cache = TargetCache.open(path)
    wanted: dict[str, Any] = shard_set(train_index) | {"view_version": VIEW_VERSION}
    if recipe.views is not None:
        wanted["views"] = recipe.views.model_dump(mode="json")
    if recipe.cache.teacher:
        wanted["teacher"] = cache.manifest.teacher | {"model": recipe.cache.teacher}
    require(cache.manifest, wanted, path, "make the recipe agree or build a new cache")
    live = recipe.train.targets == "live"
    if recipe.loss.distillation == "soft" and cache.encoding.kind == "hard" and not live:
        raise RecipeError(f"cache '{path}' holds hard labels only; soft distillation needs topk or dense")
    if not live and (missing := cache.missing()):
        raise CacheError(
            f"cache '{path}' lacks {len(missing)} of {cache.layout.count} units; "
            "finish it with: limbeck cache build RECIPE"
        )
    taught = {name: part for name, part in cache.manifest.plain().items() if name not in ("recipe", "libraries")}
    if recipe.schedule.epochs > cache.manifest.seeds:
        say(
            f"cache '{path}' has {cache.manifest.seeds} seeds for {recipe.schedule.epochs} epochs; they are cycled"
        )
    return Inputs(train_index, val_index, cache.manifest.policy, cache.manifest.seeds, path, taught)


def open_teacher(recipe: TrainRecipe, inputs: Inputs) -> Teacher | None:
    """For live targets the recipe's own teacher, or else the one that judged the cache; None for cached ones.

    Raises CacheError where the cache's teacher is not what it was, naming each field.
    """
    if recipe.train.targets == "cached" or recipe.loss.distillation == "none":
        return None
    if recipe.teacher:
        return load_teacher(recipe.teacher, inputs.train.classes, inputs.policy.size)
    assert recipe.cache is not None, "the recipe's own check"
    where = recipe.cache.path
    manifest = TargetCache.open(where).manifest
    spec = parse_recipe(manifest.recipe, CacheRecipe, f"cache '{where}': its recipe").teacher
    teacher = load_teacher(spec, inputs.train.classes, inputs.policy.size)
    found = teacher.identity() | {"size": inputs.policy.size}
    require(manifest, {"teacher": found}, where, "restore the teacher, or learn from the cached targets")
    return teacher
