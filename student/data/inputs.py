"""Open the inputs of a training recipe: shards, view policy and caches, and check that they match."""

from dataclasses import dataclass
from typing import Any

from student.recipe import CacheRef, TrainRecipe
from teacher_cache.cache.manifest import diff, require_match
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.config import digest_of, parse_recipe
from teacher_cache.console import count_of, log_line
from teacher_cache.data.index import ShardIndex, check_same_classes, load_index
from teacher_cache.data.shards import with_shard_cache
from teacher_cache.errors import CacheError, RecipeError
from teacher_cache.models.teacher import Teacher, load_teacher
from teacher_cache.recipe import CacheRecipe
from teacher_cache.views.policy import ViewPolicy
from teacher_cache.views.view import VIEW_VERSION


@dataclass(frozen=True)
class Inputs:
    """The inputs of a training run. cache: None without a cache. seeds: how many there are."""

    train: ShardIndex
    val: ShardIndex
    policy: ViewPolicy
    seeds: int
    cache: CacheRef | None
    manifests: list[dict[str, Any]]
    """The caches' manifests, without the fields that do not affect the targets."""

    def identity(self) -> dict[str, str]:
        """Digests of the shards and of the manifests, which must be equal when a run is resumed."""
        parts = {"train": self.train.contents(), "val": self.val.contents(), "cache": {"taught": self.manifests}}
        return {name: digest_of(part) for name, part in parts.items()}


def open_inputs(recipe: TrainRecipe) -> Inputs:
    """Open the shards and caches of a recipe.

    Raises RecipeError or CacheError, naming each field, if they do not match the recipe or each other.
    """
    train_index, val_index = (
        with_shard_cache(load_index(path), recipe.machine, "machine")
        for path in (recipe.data.train, recipe.data.val)
    )
    check_same_classes(train_index.classes, val_index, recipe.data.train)
    if recipe.cache is None:
        assert recipe.views is not None, "checked by TrainRecipe"
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
    require_match(first, expected, recipe.cache.path, "change the recipe or build a new cache")
    for path, cache in zip(recipe.cache.paths, caches, strict=True):
        _check_targets(path, cache, recipe)
    seeds, path = min((cache.manifest.seeds, path) for path, cache in zip(recipe.cache.paths, caches, strict=True))
    if recipe.schedule.epochs > seeds:
        log_line(f"cache '{path}' has {seeds} seeds for {recipe.schedule.epochs} epochs; the seeds repeat")
    left_out = ("recipe", "libraries", "class_match")
    manifests = [
        {name: part for name, part in cache.manifest.plain().items() if name not in left_out} for cache in caches
    ]
    return Inputs(train_index, val_index, first.policy, seeds, recipe.cache, manifests)


def log_shared_shards(inputs: Inputs) -> None:
    """Log a line if shards of the validation set are in the training set, by checksum."""
    learned = {shard.md5 for shard in inputs.train.shards}
    if shared := sum(shard.md5 in learned for shard in inputs.val.shards):
        log_line(
            f"{shared:,} of {count_of(len(inputs.val.shards), 'shard')} of data.val are in data.train too: "
            "the accuracy is on images that the network learns from"
        )


def _check_same_views(ref: CacheRef, caches: list[TargetCache]) -> None:
    """Raise CacheError, naming each difference, if two caches have different views or shards."""
    first = caches[0].manifest.plain()
    shared = {name: first[name] for name in ("views", "view_version", "shards")}
    for path, cache in zip(ref.also, caches[1:], strict=True):
        if phrases := diff(cache.manifest, shared):
            raise CacheError(
                f"cache '{path}' does not match cache '{ref.path}': {'; '.join(phrases)}; "
                "build both from the same [views] and shards"
            )


def _check_targets(path: str, cache: TargetCache, recipe: TrainRecipe) -> None:
    """Raise RecipeError if a cache has no targets for the loss, CacheError if it is incomplete."""
    if recipe.train.targets == "live":
        return
    if cache.encoding.kind == "hard":
        if recipe.loss.distillation == "soft":
            raise RecipeError(
                f"cache '{path}' has only hard labels; soft distillation needs cache.encoding topk or dense"
            )
        assert recipe.cache is not None
        if recipe.cache.also and recipe.cache.mean_of == "logits":
            raise RecipeError(
                f"cache '{path}' has only hard labels; cache.mean_of = \"probabilities\" counts them as votes"
            )
    if missing := cache.missing():
        raise CacheError(
            f"cache '{path}' is incomplete: {len(missing)} of {cache.layout.unit_count} units are missing; "
            "write them with: limbeck cache build RECIPE"
        )


def open_teacher(recipe: TrainRecipe, inputs: Inputs) -> Teacher | None:
    """Load the teacher for live targets: the recipe's, or else the cache's. None with cached targets.

    Raises CacheError, naming each field, if the cache's teacher has changed.
    """
    if recipe.train.targets == "cached" or not recipe.loss.needs_teacher:
        return None
    if recipe.teacher:
        return load_teacher(recipe.teacher, inputs.train.classes, inputs.policy.size)
    assert recipe.cache is not None, "checked by TrainRecipe"
    path = recipe.cache.path
    manifest = TargetCache.open(path).manifest
    spec = parse_recipe(manifest.recipe, CacheRecipe, f"cache '{path}': its recipe").teacher
    teacher = load_teacher(spec, inputs.train.classes, inputs.policy.size)
    expected = {"teacher": teacher.identity(inputs.policy.size)}
    require_match(manifest, expected, path, 'restore the teacher, or set train.targets = "cached"')
    return teacher
