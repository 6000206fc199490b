"""The training loop: teachers from their own views, students from a cache, with one and the same steps."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from student.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from student.data import Feed
from student.evaluate import measure
from student.loss import distill_loss
from student.model import Student, create_student
from student.optim import create_optimizer, create_schedule
from student.recipe import TrainRecipe
from teacher_cache.cache import TargetCache
from teacher_cache.dice import dice
from teacher_cache.disk import write_durably
from teacher_cache.errors import CacheError, RecipeError, RunError
from teacher_cache.journal import Journal, Stopwatch, progress, say
from teacher_cache.manifest import require, shard_set
from teacher_cache.network import CARD_FORMAT, Card, save_network, weights_sha256
from teacher_cache.plan import PlanSpec, plan, steps_per_epoch
from teacher_cache.recipe import ViewPolicy, differences, digest_of, resolved
from teacher_cache.shards import ShardIndex, load_index
from teacher_cache.teacher import FINAL
from teacher_cache.view import VIEW_VERSION
from teacher_cache.world import World, pick_device


@dataclass(frozen=True)
class Source:
    """What there is to learn from: shards to train and to measure on, the views, and perhaps a cache."""

    train: ShardIndex
    val: ShardIndex
    policy: ViewPolicy
    seeds: int
    cache: Path | None


def train(recipe: TrainRecipe, run: Path) -> dict[str, float]:
    """Train (or go on training) a recipe in a run folder; returns top-1 in percent by head.

    Raises RecipeError, RunError, CacheError or ShardError before the first step where something does not fit.
    """
    # build
    source = open_source(recipe)
    heads = ("class",) if recipe.loss.distillation == "none" else ("class", "distill")
    torch.manual_seed(name_seed(recipe.train.seed, "weights"))
    device = pick_device(recipe.machine.device)
    student = create_student(recipe.model, len(source.train.classes), "distill" in heads).to(device)
    check_sizes(student, recipe, source.policy, device)
    spec = PlanSpec(source.policy, source.seeds, recipe.train.batch, recipe.train.streams)
    feed = Feed(spec, source.train, source.cache, recipe.loss.tau, World())
    rows = [shard.rows for shard in source.train.shards]
    next(plan(spec, rows, 0, feed.world))  # refuses what fills no batch before the run's folder is made
    steps = steps_per_epoch(spec, rows)
    optimizer = create_optimizer(recipe.optim, student.network)
    schedule = create_schedule(recipe.schedule, optimizer, steps)

    # resume
    open_run(run, recipe)
    journal = Journal(run / "journal.jsonl")
    first = resume(run, recipe, student.network, optimizer, journal)
    epochs = recipe.schedule.epochs

    with progress(f"train {run.name}", epochs * steps, "steps", start=first * steps) as bar:
        for epoch in range(first, epochs):
            with Stopwatch() as watch:
                student.train()
                sums = torch.zeros(3, device=device)
                for step, batch in enumerate(feed.batches(epoch, 0, recipe.machine.workers), start=epoch * steps):
                    # step
                    torch.manual_seed(name_seed(recipe.train.seed, "step", step))  # stochastic depth and dropout
                    schedule.step_update(step)
                    pixels, truth = batch.on(device, len(source.train.classes))
                    losses = distill_loss(student(pixels), truth, recipe.loss)
                    optimizer.zero_grad(set_to_none=True)
                    losses.total.backward()
                    if recipe.optim.clip_grad:
                        nn.utils.clip_grad_norm_(student.parameters(), recipe.optim.clip_grad)
                    optimizer.step()
                    sums += torch.stack([losses.total, losses.on_class, losses.on_distill]).detach()
                    bar.advance(1, f"epoch {epoch + 1}/{epochs}")
            means = (sums / steps).tolist()
            if not math.isfinite(means[0]):
                raise RunError(f"run '{run}': the loss is {means[0]} in epoch {epoch + 1}; lower optim.lr")

            # evaluate
            accuracy = {}
            if (epoch + 1) % recipe.train.evaluate_every == 0 or epoch + 1 == epochs:
                accuracy = measure(
                    student, source.val, recipe.eval, heads, recipe.train.batch, recipe.machine.workers
                )
            journal.write(
                epoch=epoch + 1,
                loss=means[0],
                loss_class=means[1],
                loss_distill=means[2],
                lr=optimizer.param_groups[0]["lr"],
                seconds=round(watch.seconds, 3),
                accuracy=accuracy,
            )
            say(f"epoch {epoch + 1}/{epochs}: loss {means[0]:.4f}  {describe(accuracy)}".rstrip())

            # save
            state = student.network.state_dict()
            save_checkpoint(
                run,
                Checkpoint(
                    digest_of(experiment(recipe)), epoch + 1, state, optimizer.state_dict(), journal.read()
                ),
            )
    return finish(run, recipe, source, heads, student, journal)


def open_source(recipe: TrainRecipe) -> Source:
    """Open what the recipe names and check that it fits together, field by field."""
    train_index, val_index = load_index(recipe.data.train), load_index(recipe.data.val)
    if train_index.classes != val_index.classes:
        raise RecipeError(
            f"data.train has {len(train_index.classes)} classes and data.val {len(val_index.classes)}, "
            "or in another order; pack both from the same classes"
        )
    if recipe.cache is None:
        assert recipe.views is not None, "the recipe's own check"
        epochs, repeats = recipe.schedule.epochs, recipe.views.repeats
        return Source(train_index, val_index, recipe.views, -(-epochs // repeats) * repeats, None)
    path = Path(recipe.cache.path)
    cache = TargetCache.open(path)
    wanted: dict[str, Any] = shard_set(train_index) | {"view_version": VIEW_VERSION}
    if recipe.views is not None:
        wanted["views"] = recipe.views.model_dump(mode="json")
    if recipe.cache.teacher:
        wanted["teacher"] = cache.manifest.teacher | {"model": recipe.cache.teacher}
    require(cache.manifest, wanted, str(path), "make the recipe agree or build a new cache")
    if recipe.loss.distillation == "soft" and cache.encoding.kind == "hard":
        raise RecipeError(f"cache '{path}' holds hard labels only; soft distillation needs topk or dense")
    if missing := cache.missing():
        raise CacheError(
            f"cache '{path}' lacks {len(missing)} of {len(list(cache.units()))} units; "
            "finish it with: limbeck cache build RECIPE"
        )
    return Source(train_index, val_index, cache.manifest.policy, cache.manifest.seeds, path)


@torch.no_grad()
def check_sizes(student: Student, recipe: TrainRecipe, policy: ViewPolicy, device: torch.device) -> None:
    """Raises RecipeError where the network cannot take the images of training or those of evaluation."""
    for name, size in (("views.size", policy.size), ("eval.size", recipe.eval.size)):
        try:
            student.eval()(torch.zeros(1, 3, size, size, device=device))
        except (AssertionError, RuntimeError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise RecipeError(
                f"model '{recipe.model.name}' cannot take images of {name} = {size} ({reason}); "
                "make model.args fit, e.g. img_size"
            ) from None


def experiment(recipe: TrainRecipe) -> dict[str, Any]:
    """The resolved recipe without [machine], which may change between two halves of a run."""
    return {name: table for name, table in resolved(recipe).items() if name != "machine"}


def open_run(run: Path, recipe: TrainRecipe) -> None:
    """Make the run's folder, or see that it is this recipe's; raises RunError with each differing key."""
    run.mkdir(parents=True, exist_ok=True)
    path = run / "recipe.json"
    mine = experiment(recipe)
    if not path.exists():
        if any(run.glob("*.pt")):
            raise RunError(f"'{run}' holds checkpoints but no recipe.json; choose another --out")
        write_durably(path, (json.dumps(mine, indent=1) + "\n").encode())
        return
    apart = differences(json.loads(path.read_text()), mine)
    if apart:
        told = "; ".join(f"{name} is {there!r} there and {here!r} here" for name, there, here in apart)
        raise RunError(f"run '{run}' is of another recipe: {told}; choose another --out")


def resume(run: Path, recipe: TrainRecipe, network: nn.Module, optimizer: Any, journal: Journal) -> int:
    """Load the run's checkpoint, if there is one; returns the number of epochs that are done."""
    checkpoint = load_checkpoint(run, digest_of(experiment(recipe)))
    if checkpoint is None:
        journal.keep([])
        return 0
    network.load_state_dict(checkpoint.network)
    optimizer.load_state_dict(checkpoint.optimizer)
    journal.keep(checkpoint.journal)
    say(f"run '{run}' goes on after epoch {checkpoint.epoch}")
    return checkpoint.epoch


def finish(
    run: Path, recipe: TrainRecipe, source: Source, heads: tuple[str, ...], student: Student, journal: Journal
) -> dict[str, float]:
    """Leave the finished network in the run's folder, which is what makes a run finished."""
    accuracy: dict[str, float] = journal.read()[-1]["accuracy"]
    if not (run / FINAL).exists():
        state = student.network.state_dict()
        card = Card(
            format=CARD_FORMAT,
            network=recipe.model,
            eval=recipe.eval,
            classes=source.train.classes,
            heads=heads,
            fusion="class" if len(heads) == 1 else "softmax-sum",
            sha256=weights_sha256(state),
            accuracy=accuracy,
            recipe=resolved(recipe),
        )
        save_network(run / FINAL, card, state)
    say(f"run '{run}' is finished: {describe(accuracy)}")
    return accuracy


def describe(accuracy: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.2f} %" for name, value in accuracy.items())


def name_seed(*names: str | int) -> int:
    """A seed for torch's own generator, named as dice are."""
    return int(dice("torch", *names).integers(2**63))
