"""A short trial of a student's training: runs the training code on the sample of the teacher's trial."""

import statistics
import time

from student.data.inputs import open_inputs
from student.data.loader import Feed
from student.estimate.machine import StudentFigures
from student.estimate.teacher_trial import Calibration
from student.evaluation.predict import measure
from student.model.student import create_student
from student.recipe import CacheRef, DataSpec, MachineSpec, TrainRecipe
from student.training.learner import Learner
from student.training.loop import create_plan_spec
from teacher_cache.distributed.device import pick_device
from teacher_cache.distributed.machine import loader_workers
from teacher_cache.distributed.world import World
from teacher_cache.errors import RecipeError

MIN_STEPS = 4
"""Until this number of steps, the trial may take twice the given time."""
EPOCHS = 10_000
"""More than a trial can use."""


def calibrate_student(recipe: TrainRecipe, trial: Calibration, seconds: float) -> StudentFigures:
    """Train on the sample for about `seconds` (at least two steps), then evaluate on it once.

    A batch larger than the sample is reduced; the time per image is almost the same.
    """
    loading_started = time.monotonic()
    recipe = _on_sample(recipe, trial)
    inputs, device = open_inputs(recipe), pick_device(recipe.machine.device)
    heads, classes = recipe.loss.heads, len(trial.sample.classes)
    student = create_student(recipe.model, classes, "distill" in heads).to(device)
    feed = Feed(create_plan_spec(recipe, inputs), inputs.train, inputs.cache, recipe.loss.soft_tau, World())
    learner = Learner(recipe, student, classes)
    wanted = recipe.machine.workers
    batches = feed.batches(range(EPOCHS), 0, loader_workers(wanted, device.type, feed.streams))
    learner.learn(next(batches), 0).tolist()
    training_started = time.monotonic()
    steps: list[float] = []
    while not steps or sum(steps) < (seconds if len(steps) >= MIN_STEPS else 2 * seconds):
        start = time.monotonic()
        learner.learn(next(batches), 1 + len(steps)).tolist()
        steps.append(time.monotonic() - start)
    del batches  # stops its workers
    start = time.monotonic()
    eval_workers = loader_workers(wanted, device.type)
    measure({"raw": student}, inputs.val, recipe, recipe.train.batch, eval_workers)
    return StudentFigures(
        images_per_second=recipe.train.batch / statistics.mean(steps),
        evaluated_per_second=inputs.val.rows / (time.monotonic() - start),
        start_seconds=training_started - loading_started,
    )


def _on_sample(recipe: TrainRecipe, trial: Calibration) -> TrainRecipe:
    """The recipe with the sample's shards and cache, and a batch that is at most the sample."""
    train = recipe.train
    smallest = train.streams * trial.cache.manifest.policy.aug_repeats * train.accumulate
    batch = min(train.batch, trial.sample.rows // smallest * smallest)
    if batch == 0:
        raise RecipeError(
            f"a batch of the student's recipe has at least {smallest} images, and the sample of the trial has "
            f"{trial.sample.rows}; increase --seconds"
        )
    sample = DataSpec(train=trial.sample.folder, val=trial.sample.folder)
    return recipe.model_copy(
        update={
            "data": sample,
            "cache": CacheRef(path=trial.cache.where),
            "views": None,
            "machine": _with_own_decoded_cache(recipe.machine, trial.sample.folder),
            "train": train.model_copy(update={"batch": batch, "targets": "cached"}),
        }
    )


def _with_own_decoded_cache(machine: MachineSpec, folder: str) -> MachineSpec:
    """The machine with its decoded cache, if any, beside the sample, so that no real shard is evicted."""
    own = f"{folder}/decoded" if machine.decoded_cache else ""
    return machine.model_copy(update={"decoded_cache": own})
