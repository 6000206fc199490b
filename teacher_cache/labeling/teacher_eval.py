"""Evaluate a teacher on the validation shards before it labels anything."""

from pathlib import Path
from typing import Any

import torch

from teacher_cache.cache.teacher_score import TeacherScore, load_score
from teacher_cache.config import Interpolation, digest_of
from teacher_cache.console import progress
from teacher_cache.data.eval_images import eval_batches
from teacher_cache.data.index import ShardIndex, check_same_classes, load_index
from teacher_cache.data.shards import with_shard_cache
from teacher_cache.distributed.machine import loader_workers
from teacher_cache.distributed.upload import uploaded
from teacher_cache.errors import RecipeError
from teacher_cache.models.card import load_card
from teacher_cache.models.run_folder import network_folder
from teacher_cache.models.spec import EvalSpec, TeacherSpec
from teacher_cache.models.teacher import Teacher
from teacher_cache.recipe import CacheRecipe
from teacher_cache.storage.store import open_store


def evaluate_teacher(
    recipe: CacheRecipe, teacher: Teacher, classes: tuple[str, ...], device: torch.device
) -> TeacherScore | None:
    """Evaluate a teacher, or load the score stored with the cache; None if teacher.min_accuracy is 0.

    Raises RecipeError if the accuracy is too low, or if the validation shards have other classes.
    """
    minimum = recipe.teacher.min_accuracy
    if minimum == 0:
        return None
    index = with_shard_cache(load_index(recipe.data.val), recipe.job, "job")
    spec = eval_spec(recipe.teacher, teacher, recipe.views.size)
    check_same_classes(classes, index, recipe.data.train)
    about = {
        "teacher": teacher.identity(),
        "val": digest_of(index.contents()),
        "eval": spec.model_dump(mode="json"),
    }
    score = load_score(open_store(recipe.cache.path))
    if score is None or score.about != about:
        score = TeacherScore(about, _accuracy(teacher.to(device), index, spec, recipe, device), index.rows)
    if score.accuracy < minimum:
        message = f"{score.describe(teacher.name)}, below teacher.min_accuracy = {minimum:g}"
        raise RecipeError(f"{message}; train it longer or lower teacher.min_accuracy")
    return score


def eval_spec(spec: TeacherSpec, teacher: Teacher, size: int) -> EvalSpec:
    """The evaluation transform: that of the run, or of a timm model's config at the size of the views."""
    if spec.run:
        return load_card(network_folder(Path(spec.run))).eval
    settings: Any = teacher.network.pretrained_cfg
    interpolation: Interpolation = "bilinear" if settings.get("interpolation") == "bilinear" else "bicubic"
    return EvalSpec(size=size, crop=min(float(settings.get("crop_pct", 1.0)), 1.0), interpolation=interpolation)


def _accuracy(
    teacher: Teacher, index: ShardIndex, spec: EvalSpec, recipe: CacheRecipe, device: torch.device
) -> float:
    correct = torch.zeros((), dtype=torch.int64, device=device)  # read at the end, so that the host does not wait
    with progress("evaluate teacher", index.rows, "images") as bar:
        workers = loader_workers(recipe.job.workers, device.type)
        for batch in uploaded(eval_batches(index, spec, recipe.job.batch, workers), device):
            predicted = teacher(batch.pixels.permute(0, 3, 1, 2)).argmax(dim=1)
            correct += (predicted == batch.label).sum()
            bar.advance(len(batch.keys))
    return 100 * int(correct) / index.rows
