"""The training loop: teachers from their own views, students from a cache, with one and the same steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from student.data.inputs import Inputs, open_inputs, open_teacher
from student.data.loader import Feed
from student.evaluation.predict import measure
from student.model.initialize import initialize_from
from student.model.student import Student, create_student
from student.recipe import TrainRecipe
from student.training.learner import Learner
from student.training.meter import Meter
from student.training.optim import create_schedule
from student.training.out_of_memory import enough_memory, micro_batch, too_many_images
from student.training.run import Run, describe
from teacher_cache.console import log_line, progress, quiet
from teacher_cache.data.plan import PlanSpec
from teacher_cache.distributed.collectives import process_group, sync_errors
from teacher_cache.distributed.device import local_device
from teacher_cache.distributed.world import World
from teacher_cache.errors import DivergedError
from teacher_cache.models.teacher import check_size
from teacher_cache.rng import generator

SMALLER = "free some of it and run this again, or begin anew with a larger train.accumulate or a smaller eval.size"


def train(recipe: TrainRecipe, folder: Path, skip_damaged: bool = False) -> dict[str, float]:
    """Train (or go on training) a recipe in a run folder; returns top-1 in percent by head.

    skip_damaged: go on from the last checkpoint that is whole. Under torchrun, all processes train one student.
    Raises RecipeError, RunError, CacheError or ShardError before the first step where something does not fit.
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
        spec = plan_of(recipe, inputs)
        cache = inputs.cache if recipe.train.targets == "cached" else None
        feed = Feed(spec, inputs.train, cache, recipe.loss.soft_tau, world)
        steps, shown = feed.steps_per_epoch(), micro_batch(recipe.train, world.size)
        learner = Learner(recipe, student, classes, teacher.to(device) if teacher else None, world)
        schedule = create_schedule(recipe.schedule, learner.optimizer, steps)

    # resume
    with sync_errors(world):
        run = Run(folder, recipe, inputs, world)
    done, begun = run.resume(learner, skip_damaged)
    batches = feed.batches(range(done // steps, epochs), done % steps, recipe.machine.workers)
    first = (done - 1 if begun else done) // steps  # an epoch may have all its steps, and not its evaluation

    with progress(f"train {folder.name}", epochs * steps, "steps", start=done) as bar, sound(run, world):
        for epoch in range(first, epochs):
            meter, last = Meter(begun), (epoch + 1) * steps
            for step, batch in meter.over(batches, range(max(done, epoch * steps), last)):
                # step
                torch.manual_seed(name_seed(recipe.train.seed, "step", step, world.rank))  # dropout
                schedule.step_update(step)
                losses = learner.learn(batch, step)
                meter.add(step, losses)
                bar.advance(1, f"epoch {epoch + 1}/{epochs}  {meter.summary(recipe.train.batch)}")

                # save
                every = recipe.machine.checkpoint_every
                if every and (step + 1) % every == 0 and step + 1 < last:
                    run.save(step + 1, learner, meter.state())

            # evaluate
            gave, accuracy, accuracy_ema = meter.finish(), {}, {}
            learner.check(last)
            due = (epoch + 1) % recipe.train.evaluate_every == 0 or epoch + 1 == epochs
            if due and last > done:
                run.save(last, learner, meter.state())  # should the evaluation fail, no step is lost
            if due and world.is_main:
                how = (inputs.val, recipe.eval, heads, shown, recipe.machine.workers)
                with enough_memory(lambda: too_many_images(device, shown, SMALLER)):
                    accuracy = measure(student, *how)
                    accuracy_ema = measure(learner.ema.module, *how) if learner.ema else {}
            if world.is_main:
                lr = max(group["lr"] for group in learner.optimizer.param_groups)
                told = gave.means(recipe.train.batch) | {"accuracy": accuracy, "accuracy_ema": accuracy_ema}
                run.journal.write(epoch=epoch + 1, step=last, lr=lr, **told)
                log_line(f"epoch {epoch + 1}/{epochs}: loss {told['loss']:.4f}  {describe(accuracy)}".rstrip())

            # save
            run.save(last, learner, {})
            begun = {}
    with sound(run, world):
        return run.finish(learner, inputs.train.classes, heads)


@contextmanager
def sound(run: Run, world: World) -> Iterator[None]:
    """A loss or weight that is no number ends the run; every process sees it at one step, and rank 0 tells."""
    try:
        yield
    except FloatingPointError as error:
        advice = "try a lower optim.lr, optim.clip_grad = 1.0 or more warm-up, with another --out"
        told = DivergedError(f"run '{run.folder}': {error}; {run.last_checkpoint()}; {advice}")
        raise told if world.is_main else SystemExit(told.status) from None


def build_student(recipe: TrainRecipe, inputs: Inputs, device: torch.device) -> Student:
    """Weights of train.seed, or those that the recipe begins from; checked to take the views and the crops."""
    torch.manual_seed(name_seed(recipe.train.seed, "weights"))
    student = create_student(recipe.model, len(inputs.train.classes), "distill" in recipe.loss.heads)
    initialize_from(student.network, recipe.model, inputs.train.classes)
    student.to(device)
    check_size(student, "model", recipe.model.name, "views.size", inputs.policy.size)
    check_size(student, "model", recipe.model.name, "eval.size", recipe.eval.size)
    return student


def plan_of(recipe: TrainRecipe, inputs: Inputs) -> PlanSpec:
    """Another train.seed goes through the images in another order and, where no cache fixes them, other views."""
    train = recipe.train
    first = train.seed * inputs.seeds if inputs.cache is None else 0
    return PlanSpec(inputs.policy, inputs.seeds, train.batch, train.streams, order=train.seed, first_seed=first)


def name_seed(*names: str | int) -> int:
    """A seed for torch's own generator, named as dice are."""
    return int(generator("torch", *names).integers(2**63))
