"""A short trial of a student's training on this machine: the loop's own code on the teacher's sample."""

import statistics
import time

from student.data.inputs import open_inputs
from student.data.loader import Feed
from student.estimate.machine import StudentFigures
from student.estimate.teacher_trial import Calibration
from student.evaluation.predict import measure
from student.model.student import create_student
from student.recipe import CacheRef, DataSpec, TrainRecipe
from student.training.learner import Learner
from student.training.loop import create_plan_spec
from teacher_cache.distributed.device import pick_device
from teacher_cache.distributed.world import World
from teacher_cache.errors import RecipeError

LEAST_STEPS = 4
"""For which it may take twice as long."""
EPOCHS = 10_000


def calibrate_student(recipe: TrainRecipe, trial: Calibration, seconds: float) -> StudentFigures:
    """Train on the sample for about `seconds`, or the two steps that it takes, and evaluate on it once.

    A batch that is larger than the sample is made smaller; its time for an image hardly differs.
    """
    began = time.monotonic()
    recipe = _on_sample(recipe, trial)
    inputs, device = open_inputs(recipe), pick_device(recipe.machine.device)
    heads, classes = recipe.loss.heads, len(trial.sample.classes)
    student = create_student(recipe.model, classes, "distill" in heads).to(device)
    feed = Feed(create_plan_spec(recipe, inputs), inputs.train, inputs.cache, recipe.loss.soft_tau, World())
    learner = Learner(recipe, student, classes)
    batches = feed.batches(range(EPOCHS), 0, recipe.machine.workers)
    learner.learn(next(batches), 0).tolist()
    begun = time.monotonic()
    steps: list[float] = []
    while not steps or sum(steps) < (seconds if len(steps) >= LEAST_STEPS else 2 * seconds):
        start = time.monotonic()
        learner.learn(next(batches), 1 + len(steps)).tolist()
        steps.append(time.monotonic() - start)
    del batches  # and its workers
    start = time.monotonic()
    measure(student, inputs.val, recipe.eval, heads, recipe.train.batch, recipe.machine.workers)
    return StudentFigures(
        images_per_second=recipe.train.batch / statistics.mean(steps),
        evaluated_per_second=inputs.val.rows / (time.monotonic() - start),
        start_seconds=begun - began,
    )


def _on_sample(recipe: TrainRecipe, trial: Calibration) -> TrainRecipe:
    """The recipe with the sample's shards and cache, and a batch that fits into them."""
    train = recipe.train
    least = train.streams * trial.cache.manifest.policy.aug_repeats * train.accumulate
    batch = min(train.batch, trial.sample.rows // least * least)
    if batch == 0:
        raise RecipeError(
            f"a student's batch takes {least} images at least and the calibration's sample has "
            f"{trial.sample.rows}; give it more time with --seconds"
        )
    sample = DataSpec(train=trial.sample.folder, val=trial.sample.folder)
    return recipe.model_copy(
        update={
            "data": sample,
            "cache": CacheRef(path=trial.cache.where),
            "views": None,
            "train": train.model_copy(update={"batch": batch, "targets": "cached"}),
        }
    )
