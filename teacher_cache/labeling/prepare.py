"""Prepare a cache build: load teachers, create manifests, open caches, find missing units."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from teacher_cache.cache.layout import Unit
from teacher_cache.cache.manifest import Manifest, diff, require_match
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.cache.teacher_score import TeacherScore
from teacher_cache.config import differences, resolved
from teacher_cache.console import count_of, join_first, log_line, progress
from teacher_cache.data.index import ShardIndex, load_index
from teacher_cache.data.shards import with_decoded_cache, with_shard_cache
from teacher_cache.errors import RecipeError
from teacher_cache.models.teacher import Teacher, load_teacher
from teacher_cache.recipe import CacheRecipe
from teacher_cache.storage.store import is_remote, open_store

SHARED_KEYS = {"seeds", "seeds_per_unit"}
CHECK_THREADS = 8
"""Number of units checked concurrently."""


def load_teachers(recipes: list[CacheRecipe]) -> tuple[ShardIndex, list[Teacher]]:
    """Load the shard index that the recipes share, and the teacher of each.

    Raises RecipeError if the recipes differ in a shared table, or have the same cache path.
    """
    first = recipes[0]
    for other in recipes[1:]:
        _check_shared_tables(first, other)
    _check_separate_paths([recipe.cache.path for recipe in recipes])
    index = with_shard_cache(load_index(first.data.train), first.job, "job")
    index = with_decoded_cache(index, first.job, "job")
    teachers = [load_teacher(recipe.teacher, index.classes, recipe.views.size) for recipe in recipes]
    for recipe, teacher in zip(recipes, teachers, strict=True):
        if teacher.class_match == "position":
            outputs = [f"{number} is '{name}'" for number, name in enumerate(index.classes)]
            log_line(
                f"teacher '{teacher.name}' with weights '{recipe.teacher.weights}' has no class names, so outputs "
                f"match classes by position: {join_first(outputs)}; check that it was trained in this order"
            )
    return index, teachers


def log_scores(scores: list[TeacherScore | None], teachers: list[Teacher]) -> None:
    """Log the scores of the evaluated teachers."""
    for score, teacher in zip(scores, teachers, strict=True):
        if score:
            log_line(score.describe(teacher.name))


def open_caches(
    pairs: list[tuple[CacheRecipe, Teacher]], index: ShardIndex, scores: list[TeacherScore | None], extend: bool
) -> list[TargetCache]:
    """Create or open the recipes' caches, delete temporary files in them, and save the teachers' scores."""
    caches = [open_cache(recipe, manifest_for(recipe, index, teacher), extend) for recipe, teacher in pairs]
    for cache, score in zip(caches, scores, strict=True):
        cache.sweep()
        if score:
            score.save(cache.store)
    return caches


def manifest_for(recipe: CacheRecipe, index: ShardIndex, teacher: Teacher) -> Manifest:
    """The manifest of a recipe's cache."""
    spec = recipe.cache
    top = spec.encoding == "topk"
    return Manifest(
        views=recipe.views.model_dump(mode="json"),
        teacher=teacher.identity(recipe.views.size),
        encoding={
            "kind": spec.encoding,
            "k": min(spec.k, len(index.classes)) if top else 0,
            "values": spec.values,
            "digest_bits": spec.digest_bits,
        },
        shards=index.contents(),
        seeds=spec.seeds,
        seeds_per_unit=spec.seeds_per_unit,
        recipe=resolved(recipe),
        class_match=teacher.class_match,
    )


def open_cache(recipe: CacheRecipe, manifest: Manifest, extend: bool) -> TargetCache:
    """Create or open the recipe's cache. extend: add seeds if the recipe has more.

    Raises CacheError, naming each field that differs, if the existing cache has another manifest.
    """
    where = recipe.cache.path
    cache = TargetCache.create(where, manifest)
    seeds_before, grows = cache.manifest.seeds, cache.manifest.seeds < manifest.seeds
    left_out = {"recipe", "seeds"} if extend and grows else {"recipe"}
    if cache.manifest.class_match is None:  # written by 0.1.0
        left_out.add("class_match")
    wanted = {name: value for name, value in manifest.plain().items() if name not in left_out}
    only_grows = grows and len(diff(cache.manifest, wanted)) == 1
    restore = "restore the recipe"
    if cache.manifest.libraries != manifest.libraries:
        restore = "install the versions it was built with"
    advice = f"choose another cache.path or {restore}"
    if only_grows and not extend:
        advice = f"add seeds with: limbeck cache extend RECIPE; or {advice}"
    elif seeds_before > manifest.seeds:
        advice = f"set cache.seeds = {seeds_before} in the recipe; or {advice}"
    require_match(cache.manifest, wanted, where, advice)
    if not (extend and grows):
        return cache
    cache = cache.extend(manifest.seeds, manifest.recipe)
    log_line(f"cache '{where}' extended from {seeds_before:,} to {manifest.seeds:,} seeds")
    return cache


def _check_shared_tables(first: CacheRecipe, other: CacheRecipe) -> None:
    """Raise RecipeError if recipes that are built together differ in views, shards or units."""
    first_tables, other_tables = (
        recipe.model_dump(mode="json", include={"data": True, "views": True, "job": True, "cache": SHARED_KEYS})
        for recipe in (first, other)
    )
    if different := differences(first_tables, other_tables):
        name, first_value, other_value = different[0]
        raise RecipeError(
            f"recipes built together share [data], [views], [job] and seeds; {name} is {first_value!r} in the "
            f"first and {other_value!r} in another; make them equal, or build one after the other"
        )


def _check_separate_paths(paths: list[str]) -> None:
    full = [open_store(path).where if is_remote(path) else str(Path(path).resolve()) for path in paths]
    if repeated := [path for path, full_path in zip(paths, full, strict=True) if full.count(full_path) > 1]:
        raise RecipeError(f"two recipes have the same cache.path '{repeated[0]}'; give each its own")


def wanted_units(cache: TargetCache, share: list[Unit], check: bool) -> list[Unit]:
    """The units of a share that are missing or damaged. check: look for damaged ones, and delete them."""
    present = cache.present()
    existing = [unit for unit in share if unit in present]
    if not check or not existing:
        return [unit for unit in share if unit not in present]
    with progress("check", len(existing), "units") as bar, ThreadPoolExecutor(CHECK_THREADS) as threads:
        for unit, damage in zip(existing, threads.map(cache.damage, existing), strict=True):
            bar.advance(1)
            if not damage:
                continue
            log_line(f"cache '{cache.where}': {damage[0]}; building its unit again")
            cache.drop(unit)
            present.discard(unit)
    return [unit for unit in share if unit not in present]


def place_on_device(teacher: Teacher, recipe: CacheRecipe, device: torch.device) -> Teacher:
    """Move the teacher to its device, and apply job.compile and job.cudnn_benchmark."""
    teacher.to(device)
    teacher.cudnn_benchmark = recipe.job.cudnn_benchmark
    is_tuned = recipe.job.cudnn_benchmark and device.type == "cuda"
    if recipe.job.compile or is_tuned:  # both are slow at the first batch of each size
        teacher.pad_to = recipe.job.batch
    if recipe.job.compile:
        teacher.network.compile(dynamic=False)
    return teacher


def log_state(cache: TargetCache) -> None:
    """Log how many units a cache has, at the end of a job."""
    missing, units = len(cache.missing()), cache.layout.unit_count
    if missing:
        log_line(
            f"cache '{cache.where}' has {units - missing:,} of {count_of(units, 'unit')}; this job's share is done"
        )
    else:
        size = sum(cache.bytes_by_column().values())
        log_line(f"cache '{cache.where}' is complete: {count_of(units, 'unit')}, {size:,} bytes")
