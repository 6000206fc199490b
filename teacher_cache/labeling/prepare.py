"""Preparation of a cache build: teachers, manifests, open caches and missing units."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from teacher_cache.cache.layout import Unit
from teacher_cache.cache.manifest import Manifest, diff, require_match
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.cache.teacher_score import TeacherScore
from teacher_cache.config import differences, resolved
from teacher_cache.console import count_of, log_line, progress
from teacher_cache.data.index import ShardIndex, load_index
from teacher_cache.data.shards import with_shard_cache
from teacher_cache.errors import RecipeError
from teacher_cache.models.teacher import Teacher, load_teacher
from teacher_cache.recipe import CacheRecipe
from teacher_cache.storage.store import is_remote, open_store

SHARED_KEYS = {"seeds", "seeds_per_unit"}
CHECKS = 8
"""Units whose objects are compared with their markers at the same time."""


def load_teachers(recipes: list[CacheRecipe]) -> tuple[ShardIndex, list[Teacher]]:
    """The shards that recipes share, and each one's teacher; raises RecipeError where they do not go together."""
    first = recipes[0]
    for other in recipes[1:]:
        _check_shared_tables(first, other)
    _check_separate_paths([recipe.cache.path for recipe in recipes])
    index = with_shard_cache(load_index(first.data.train), first.job, "job")
    return index, [load_teacher(recipe.teacher, index.classes, recipe.views.size) for recipe in recipes]


def log_scores(exams: list[TeacherScore | None], teachers: list[Teacher]) -> None:
    """How the teachers did that were examined."""
    for exam, teacher in zip(exams, teachers, strict=True):
        if exam:
            log_line(exam.describe(teacher.name))


def open_caches(
    pairs: list[tuple[CacheRecipe, Teacher]], index: ShardIndex, exams: list[TeacherScore | None], extend: bool
) -> list[TargetCache]:
    """The recipes' caches, made or opened, swept, and told of their teachers' examinations."""
    caches = [open_cache(recipe, manifest_for(recipe, index, teacher), extend) for recipe, teacher in pairs]
    for cache, exam in zip(caches, exams, strict=True):
        cache.sweep()
        if exam:
            exam.save(cache.store)
    return caches


def manifest_for(recipe: CacheRecipe, index: ShardIndex, teacher: Teacher) -> Manifest:
    """The manifest of the cache that a recipe asks for."""
    spec = recipe.cache
    top = spec.encoding == "topk"
    return Manifest(
        views=recipe.views.model_dump(mode="json"),
        teacher=teacher.identity() | {"size": recipe.views.size},
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
    )


def open_cache(recipe: CacheRecipe, manifest: Manifest, extend: bool) -> TargetCache:
    """The recipe's cache, made or opened; raises CacheError where it was built from something else."""
    where = recipe.cache.path
    cache = TargetCache.create(where, manifest)
    had, grows = cache.manifest.seeds, cache.manifest.seeds < manifest.seeds
    left_out = {"recipe", "seeds"} if extend and grows else {"recipe"}
    wanted = {name: value for name, value in manifest.plain().items() if name not in left_out}
    only_grows = grows and len(diff(cache.manifest, wanted)) == 1
    restore = "restore the recipe"
    if cache.manifest.libraries != manifest.libraries:
        restore = "install the versions it was built with"
    advice = f"choose another cache.path or {restore}"
    if only_grows and not extend:
        advice = f"add seeds with: limbeck cache extend RECIPE; or {advice}"
    elif had > manifest.seeds:
        advice = f"say so in the recipe: cache.seeds = {had}; or {advice}"
    require_match(cache.manifest, wanted, where, advice)
    if not (extend and grows):
        return cache
    cache = cache.extend(manifest.seeds, manifest.recipe)
    log_line(f"cache '{where}' has room for {manifest.seeds:,} seeds now, where it had {had:,}")
    return cache


def _check_shared_tables(first: CacheRecipe, other: CacheRecipe) -> None:
    """Caches that are built together share views, shards and units."""
    mine, theirs = (
        recipe.model_dump(mode="json", include={"data": True, "views": True, "job": True, "cache": SHARED_KEYS})
        for recipe in (first, other)
    )
    if apart := differences(mine, theirs):
        name, here, there = apart[0]
        raise RecipeError(
            f"recipes built together share [data], [views], [job] and seeds; {name} is {here!r} in the one "
            f"and {there!r} in the other; make them agree or build one after the other"
        )


def _check_separate_paths(paths: list[str]) -> None:
    places = [open_store(path).where if is_remote(path) else str(Path(path).resolve()) for path in paths]
    if twice := [path for path, place in zip(paths, places, strict=True) if places.count(place) > 1]:
        raise RecipeError(f"two recipes have the same cache.path '{twice[0]}'; give each its own")


def wanted_units(cache: TargetCache, share: list[Unit], check: bool) -> list[Unit]:
    """The units of a share that are not there, or not whole."""
    present = cache.present()
    there = [unit for unit in share if unit in present]
    if not check or not there:
        return [unit for unit in share if unit not in present]
    with progress("check", len(there), "units") as bar, ThreadPoolExecutor(CHECKS) as threads:
        for unit, wrong in zip(there, threads.map(cache.damage, there), strict=True):
            bar.advance(1)
            if not wrong:
                continue
            log_line(f"cache '{cache.where}': {wrong[0]}; its unit is built again")
            cache.drop(unit)
            present.discard(unit)
    return [unit for unit in share if unit not in present]


def place_on_device(teacher: Teacher, recipe: CacheRecipe, device: torch.device) -> Teacher:
    """The teacher on its device, compiled where the recipe says so."""
    teacher.to(device)
    if recipe.job.compile:
        teacher.network.compile()
    return teacher


def log_state(cache: TargetCache) -> None:
    """How much of a cache is there, when a job ends."""
    missing, units = len(cache.missing()), cache.layout.count
    if missing:
        log_line(
            f"cache '{cache.where}' has {units - missing:,} of {count_of(units, 'unit')}; this job's share is done"
        )
    else:
        size = sum(cache.bytes_by_column().values())
        log_line(f"cache '{cache.where}' is complete: {count_of(units, 'unit')}, {size:,} bytes")
