"""The training loop: teachers from their own views, students from a cache, with one and the same steps."""

import math
from pathlib import Path

import torch
from torch import nn

from student.data import Feed
from student.evaluate import measure
from student.inputs import Inputs, open_inputs
from student.loss import distill_loss
from student.model import create_student
from student.optim import create_optimizer, create_schedule
from student.recipe import TrainRecipe
from student.run import Run, describe
from teacher_cache.dice import dice
from teacher_cache.errors import DivergedError
from teacher_cache.journal import Stopwatch, progress, say
from teacher_cache.plan import PlanSpec
from teacher_cache.teacher import check_size
from teacher_cache.world import World, pick_device


def train(recipe: TrainRecipe, folder: Path) -> dict[str, float]:
    """Train (or go on training) a recipe in a run folder; returns top-1 in percent by head.

    Raises RecipeError, RunError, CacheError or ShardError before the first step where something does not fit.
    """
    # build
    inputs = open_inputs(recipe)
    heads = ("class",) if recipe.loss.distillation == "none" else ("class", "distill")
    classes, epochs = len(inputs.train.classes), recipe.schedule.epochs
    torch.manual_seed(name_seed(recipe.train.seed, "weights"))
    device = pick_device(recipe.machine.device)
    student = create_student(recipe.model, classes, "distill" in heads).to(device)
    check_size(student, "model", recipe.model.name, "views.size", inputs.policy.size)
    check_size(student, "model", recipe.model.name, "eval.size", recipe.eval.size)
    spec = plan_of(recipe, inputs)
    feed = Feed(spec, inputs.train, inputs.cache, recipe.loss.soft_tau, World())
    steps = feed.steps_per_epoch()
    optimizer = create_optimizer(recipe.optim, student.network)
    schedule = create_schedule(recipe.schedule, optimizer, steps)

    # resume
    run = Run(folder, recipe, inputs)
    first = run.resume(student.network, optimizer)
    batches = feed.batches(range(first, epochs), 0, recipe.machine.workers)

    with progress(f"train {folder.name}", epochs * steps, "steps", start=first * steps) as bar:
        for epoch in range(first, epochs):
            student.train()
            sums = torch.zeros(3, device=device)
            with Stopwatch() as watch:
                for step, batch in zip(range(epoch * steps, (epoch + 1) * steps), batches, strict=False):
                    # step
                    torch.manual_seed(name_seed(recipe.train.seed, "step", step))  # stochastic depth and dropout
                    schedule.step_update(step)
                    pixels, truth = batch.on(device, classes)
                    losses = distill_loss(student(pixels), truth, recipe.loss)
                    optimizer.zero_grad(set_to_none=True)
                    losses.total.backward()
                    if recipe.optim.clip_grad:
                        nn.utils.clip_grad_norm_(student.parameters(), recipe.optim.clip_grad)
                    optimizer.step()
                    sums += torch.stack([losses.total, losses.on_class, losses.on_distill]).detach()
                    bar.advance(1, f"epoch {epoch + 1}/{epochs}")
            loss, loss_class, loss_distill = (sums / steps).tolist()
            if not math.isfinite(loss):
                raise DivergedError(f"run '{folder}': the loss is {loss} in epoch {epoch + 1}; lower optim.lr")

            # evaluate
            accuracy = {}
            if (epoch + 1) % recipe.train.evaluate_every == 0 or epoch + 1 == epochs:
                batch_size, workers = recipe.train.batch, recipe.machine.workers
                accuracy = measure(student, inputs.val, recipe.eval, heads, batch_size, workers)
            lr, seconds = optimizer.param_groups[0]["lr"], round(watch.seconds, 3)
            told = {"epoch": epoch + 1, "loss": loss, "loss_class": loss_class, "loss_distill": loss_distill}
            run.journal.write(**told, lr=lr, seconds=seconds, accuracy=accuracy)
            say(f"epoch {epoch + 1}/{epochs}: loss {loss:.4f}  {describe(accuracy)}".rstrip())

            # save
            run.save(epoch + 1, student.network, optimizer)
    return run.finish(student.network, inputs.train.classes, heads)


def plan_of(recipe: TrainRecipe, inputs: Inputs) -> PlanSpec:
    """Another train.seed goes through the images in another order and, where no cache fixes them, other views."""
    train = recipe.train
    first = train.seed * inputs.seeds if inputs.cache is None else 0
    return PlanSpec(inputs.policy, inputs.seeds, train.batch, train.streams, order=train.seed, first_seed=first)


def name_seed(*names: str | int) -> int:
    """A seed for torch's own generator, named as dice are."""
    return int(dice("torch", *names).integers(2**63))
