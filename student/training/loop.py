"""The training loop, for teachers (with their own views) and students (with a cache)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from student.data.inputs import Inputs, log_shared_shards, open_inputs, open_teacher
from student.data.loader import Feed
from student.evaluation.predict import measure
from student.model.initialize import initialize_from
from student.model.student import Student, create_student
from student.recipe import TrainRecipe
from student.training.learner import Learner
from student.training.meter import Meter
from student.training.optim import create_schedule
from student.training.out_of_memory import eval_oom_message, explain_out_of_memory, micro_batch
from student.training.run import Run, format_accuracy
from teacher_cache.console import log_line, progress, quiet
from teacher_cache.data.plan import PlanSpec
from teacher_cache.distributed.bottleneck import Bottleneck
from teacher_cache.distributed.collectives import process_group, sync_errors
from teacher_cache.distributed.device import local_device
from teacher_cache.distributed.machine import loader_workers
from teacher_cache.distributed.upload import uploaded
from teacher_cache.distributed.world import World
from teacher_cache.errors import DivergedError
from teacher_cache.loading.pace import Pace
from teacher_cache.models.teacher import check_size, is_convnet
from teacher_cache.rng import generator

EVAL_OOM_ADVICE = "free memory and rerun, or start a new run with a larger train.accumulate or a smaller eval.size"

Scores = dict[str, dict[str, float]]


def train(recipe: TrainRecipe, folder: Path, skip_damaged: bool = False) -> dict[str, float]:
    """Train a recipe in a run folder, or resume it. Returns top-1 in percent by head.

    skip_damaged: resume from the last undamaged checkpoint. Under torchrun, all processes train one network
    together. Raises RecipeError, RunError, CacheError or ShardError before the first step if recipe, data, cache
    and run do not match.
    """
    with process_group() as world, quiet(not world.is_main):
        return _train(recipe, folder, skip_damaged, world)


def _train(recipe: TrainRecipe, folder: Path, skip_damaged: bool, world: World) -> dict[str, float]:
    # build
    with sync_errors(world):
        inputs = open_inputs(recipe)
        heads, classes, epochs = recipe.loss.heads, len(inputs.train.classes), recipe.schedule.epochs
        device = local_device(recipe.machine.device)
        student = build_student(recipe, inputs, device)
        teacher = open_teacher(recipe, inputs)
        cache = inputs.cache if recipe.train.targets == "cached" else None
        feed = Feed(create_plan_spec(recipe, inputs), inputs.train, cache, recipe.loss.soft_tau, world)
        steps, eval_batch = feed.steps_per_epoch(), micro_batch(recipe.train, world.size)
        feed.check_memory()
        learner = Learner(recipe, student, classes, teacher.to(device) if teacher else None, world)
        schedule = create_schedule(recipe.schedule, learner.optimizer, steps)
        run = Run(folder, recipe, inputs, world)

    # resume
    steps_done, epoch_state = run.resume(learner, skip_damaged)
    workers, pace = loader_workers(recipe.machine.workers, device.type, feed.streams), Pace()
    title, rest = f"train {folder.name}", range(steps_done // steps, epochs)
    batches = uploaded(feed.batches(rest, steps_done % steps, workers, pace), device)
    # After the last step of an epoch, epoch_state is not empty until the epoch has been evaluated.
    first_epoch = (steps_done - 1 if epoch_state else steps_done) // steps

    bottleneck = Bottleneck(pace, "machine", "views.aug_repeats", feed.streams)
    with progress(title, epochs * steps, "steps", start=steps_done) as bar, report_divergence(run, world):
        for epoch in range(first_epoch, epochs):
            meter, last, name = Meter(epoch_state), (epoch + 1) * steps, f"epoch {epoch + 1}/{epochs}"
            for step, batch in meter.over(batches, range(max(steps_done, epoch * steps), last)):
                # step
                torch.manual_seed(torch_seed(recipe.train.seed, "step", step, world.rank))  # dropout
                schedule.step_update(step)
                losses = learner.learn(batch, step)
                meter.add(step, losses)
                bar.advance(1, f"{name}  {meter.summary(recipe.train.batch)}")

                # save
                if (every := recipe.machine.checkpoint_every) and (step + 1) % every == 0 and step + 1 < last:
                    run.save(step + 1, learner, meter.state())

            # save
            totals = meter.finish()
            if last > steps_done:
                run.save(last, learner, meter.state())  # before the evaluation, which may fail

            # evaluate
            scores: Scores = {"accuracy": {}, "accuracy_ema": {}}
            if (epoch + 1) % recipe.train.evaluate_every == 0 or epoch + 1 == epochs:
                with explain_out_of_memory(lambda: eval_oom_message(device, eval_batch, EVAL_OOM_ADVICE)):
                    scores = evaluate(recipe, inputs, learner, eval_batch, world)
            if world.is_main:
                means = totals.means(recipe.train.batch) | {"dtype": recipe.machine.dtype}
                run.journal.write(epoch=epoch + 1, step=last, lr=learner.lr, **means, **scores)
                log_line(f"{name}: loss {means['loss']:.4f}  {format_accuracy(scores['accuracy'])}".rstrip())
                if hint := bottleneck.add(totals.seconds, totals.waited):
                    log_line(hint)
            epoch_state = {}
    log_shared_shards(inputs)
    with report_divergence(run, world):
        return run.finish(learner, inputs.train.classes, heads)


def evaluate(recipe: TrainRecipe, inputs: Inputs, learner: Learner, batch: int, world: World) -> Scores:
    """Top-1 in percent by head, of the weights and of their moving average ({} without one).

    All processes call this and share the images.
    """
    workers = loader_workers(recipe.machine.workers, next(learner.student.parameters()).device.type)
    scores = measure(learner.networks(), inputs.val, recipe, batch, workers, world)
    return {"accuracy": scores["raw"], "accuracy_ema": scores.get("ema", {})}


@contextmanager
def report_divergence(run: Run, world: World) -> Iterator[None]:
    """Turn a FloatingPointError (a loss or weight is NaN or infinite) into DivergedError.

    All processes get the error at the same step. Only rank 0 reports it.
    """
    try:
        yield
    except FloatingPointError as error:
        advice = "try a lower optim.lr, optim.clip_grad = 1.0 or more warm-up, with another --out"
        diverged = DivergedError(f"run '{run.folder}': {error}; {run.describe_last_checkpoint()}; {advice}")
        raise diverged if world.is_main else SystemExit(diverged.status) from None


def build_student(recipe: TrainRecipe, inputs: Inputs, device: torch.device) -> Student:
    """Create the network with random weights or those of model.init_from.

    Raises RecipeError if it cannot take the size of the views or of the evaluation images.
    """
    torch.manual_seed(torch_seed(recipe.train.seed, "weights"))
    student = create_student(recipe.model, len(inputs.train.classes), "distill" in recipe.loss.heads)
    initialize_from(student.network, recipe.model, inputs.train.classes)
    student.to(device)
    if is_convnet(student.network):
        student.to(memory_format=torch.channels_last)  # as the mixed pixels are: convolutions then copy nothing
    check_size(student, "model", recipe.model.name, "views.size", inputs.policy.size)
    check_size(student, "model", recipe.model.name, "eval.size", recipe.eval.size)
    return student


def create_plan_spec(recipe: TrainRecipe, inputs: Inputs) -> PlanSpec:
    """The plan of a recipe. train.seed determines the order of the images and, without a cache, the views."""
    train = recipe.train
    first_seed = train.seed * inputs.seeds if inputs.cache is None else 0
    return PlanSpec(
        inputs.policy, inputs.seeds, train.batch, train.streams, order=train.seed, first_seed=first_seed
    )


def torch_seed(*names: str | int) -> int:
    """A seed for torch's global generator, derived from a named generator."""
    return int(generator("torch", *names).integers(2**63))
