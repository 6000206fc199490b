"""What a recipe learns from: shards, views and perhaps caches, opened and checked against each other."""

from dataclasses import dataclass
from typing import Any

from student.recipe import CacheRef, TrainRecipe
from teacher_cache.cache.manifest import diff, require_match
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.config import digest_of, parse_recipe
from teacher_cache.console import log_line
from teacher_cache.data.index import ShardIndex, check_same_classes, load_index
from teacher_cache.data.shards import with_shard_cache
from teacher_cache.errors import CacheError, RecipeError
from teacher_cache.models.teacher import Teacher, load_teacher
from teacher_cache.recipe import CacheRecipe
from teacher_cache.views.policy import ViewPolicy
from teacher_cache.views.view import VIEW_VERSION


@dataclass(frozen=True)
class Inputs:
    """What there is to learn from: shards to train and to measure on, the views, and perhaps caches."""

    train: ShardIndex
    val: ShardIndex
    policy: ViewPolicy
    seeds: int
    cache: CacheRef | None
    manifests: list[dict[str, Any]]
    """The caches' manifests, less what does not tell caches apart."""

    def identity(self) -> dict[str, str]:
        """What a run must find again when it goes on: digests of the shards and of the cache's manifest."""
        parts = {"train": self.train.contents(), "val": self.val.contents(), "cache": {"taught": self.manifests}}
        return {name: digest_of(part) for name, part in parts.items()}


def open_inputs(recipe: TrainRecipe) -> Inputs:
    """Open what the recipe names and check that it fits together, field by field."""
    train_index, val_index = (
        with_shard_cache(load_index(path), recipe.machine, "machine")
        for path in (recipe.data.train, recipe.data.val)
    )
    check_same_classes(train_index.classes, val_index.classes)
    if recipe.cache is None:
        assert recipe.views is not None, "the recipe's own check"
        epochs, repeats = recipe.schedule.epochs, recipe.views.aug_repeats
        return Inputs(train_index, val_index, recipe.views, -(-epochs // repeats) * repeats, None, [])
    caches = [TargetCache.open(path) for path in recipe.cache.paths]
    _check_same_views(recipe.cache, caches)
    expected: dict[str, Any] = {"shards": train_index.contents(), "view_version": VIEW_VERSION}
    if recipe.views is not None:
        expected["views"] = recipe.views.model_dump(mode="json")
    first = caches[0].manifest
    if recipe.cache.teacher:
        expected["teacher"] = first.teacher | {"model": recipe.cache.teacher}
    require_match(first, expected, recipe.cache.path, "make the recipe agree or build a new cache")
    for path, cache in zip(recipe.cache.paths, caches, strict=True):
        _check_targets(path, cache, recipe)
    seeds, path = min((cache.manifest.seeds, path) for path, cache in zip(recipe.cache.paths, caches, strict=True))
    if recipe.schedule.epochs > seeds:
        log_line(f"cache '{path}' has {seeds} seeds for {recipe.schedule.epochs} epochs; they are cycled")
    left_out = ("recipe", "libraries")
    manifests = [
        {name: part for name, part in cache.manifest.plain().items() if name not in left_out} for cache in caches
    ]
    return Inputs(train_index, val_index, first.policy, seeds, recipe.cache, manifests)


def _check_same_views(ref: CacheRef, caches: list[TargetCache]) -> None:
    """Raises CacheError where two caches are not about the same views of the same shards, with each difference."""
    first = caches[0].manifest.plain()
    shared = {name: first[name] for name in ("views", "view_version", "shards")}
    for path, cache in zip(ref.also, caches[1:], strict=True):
        if phrases := diff(cache.manifest, shared):
            raise CacheError(
                f"caches '{path}' and '{ref.path}' cannot teach together: {'; '.join(phrases)} ('there' is the "
                "former, 'here' the latter); build both from the same [views] and shards"
            )


def _check_targets(path: str, cache: TargetCache, recipe: TrainRecipe) -> None:
    """Raises RecipeError where a cache has not what the loss needs, CacheError where it is not complete."""
    if recipe.train.targets == "live":
        return
    if cache.encoding.kind == "hard":
        if recipe.loss.distillation == "soft":
            raise RecipeError(f"cache '{path}' holds hard labels only; soft distillation needs topk or dense")
        assert recipe.cache is not None
        if recipe.cache.also and recipe.cache.mean_of == "logits":
            raise RecipeError(
                f"cache '{path}' holds hard labels only; cache.mean_of = \"probabilities\" counts them as votes"
            )
    if missing := cache.missing():
        raise CacheError(
            f"cache '{path}' lacks {len(missing)} of {cache.layout.unit_count} units; "
            "finish it with: limbeck cache build RECIPE"
        )


def open_teacher(recipe: TrainRecipe, inputs: Inputs) -> Teacher | None:
    """For live targets the recipe's own teacher, or else the one that judged the cache; None for cached ones.

    Raises CacheError where the cache's teacher is not what it was, naming each field.
    """
    if recipe.train.targets == "cached" or not recipe.loss.needs_teacher:
        return None
    if recipe.teacher:
        return load_teacher(recipe.teacher, inputs.train.classes, inputs.policy.size)
    assert recipe.cache is not None, "the recipe's own check"
    path = recipe.cache.path
    manifest = TargetCache.open(path).manifest
    spec = parse_recipe(manifest.recipe, CacheRecipe, f"cache '{path}': its recipe").teacher
    teacher = load_teacher(spec, inputs.train.classes, inputs.policy.size)
    expected = {"teacher": teacher.identity(inputs.policy.size)}
    require_match(manifest, expected, path, "restore the teacher, or learn from the cached targets")
    return teacher
