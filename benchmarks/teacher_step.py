"""Time of a teacher's training step from shards, relative to the same step on one repeated batch.

    python benchmarks/teacher_step.py PHOTOS.tar.gz [--model resnet18] [--size 160] [--batch 32] [--workers 1]

The two alternate: steps on batches from the training feed (decoded, augmented as RSB's A3, mixed), then as many
steps on one batch. The first steps from shards are not counted, since the loader continued during the other turn.
Without a GPU, one worker and one model thread have a core each.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import torch

from student.data.batch import Batch
from student.data.inputs import open_inputs
from student.data.loader import Feed
from student.model.student import create_student
from student.recipe import TrainRecipe
from student.training.learner import Learner
from student.training.loop import create_plan_spec
from teacher_cache.config import parse_recipe
from teacher_cache.distributed.device import pick_device
from teacher_cache.distributed.world import World
from teacher_cache.packing.pack import pack

WARMUP_STEPS, TIMED_STEPS = 4, 8
GOAL = 0.95


def make_recipe(shards: Path, model: str, size: int, batch: int, workers: int) -> TrainRecipe:
    """A teacher recipe with the views of RSB's A3, but another loss and batch."""
    views = {"size": size, "hflip": 0.5, "auto_augment": "rand-m6-mstd0.5-inc1", "re_prob": 0.0}
    tables = {
        "data": {"train": str(shards), "val": str(shards)},
        "model": {"name": model},
        "views": views | {"mixup": 0.1, "cutmix": 1.0},
        "loss": {"distillation": "none", "smoothing": 0.0},
        "optim": {"name": "lamb", "lr": 8e-3, "weight_decay": 0.02},
        "schedule": {"epochs": 1000, "warmup_epochs": 5, "warmup_lr": 1e-4, "min_lr": 1e-6},
        "train": {"batch": batch, "streams": 8},
        "eval": {"size": size, "crop": 0.95},
        "machine": {"workers": workers},
    }
    return parse_recipe(tables, TrainRecipe, "the benchmark's recipe")


def seconds_per_step(learner: Learner, batches: Iterator[Batch], device: torch.device) -> float:
    """Mean seconds of TIMED_STEPS steps, after WARMUP_STEPS steps."""
    for number, batch in zip(range(WARMUP_STEPS + TIMED_STEPS), batches, strict=False):
        if number == WARMUP_STEPS:
            _synchronize(device)
            start = time.perf_counter()
        learner.learn(batch, number)
    _synchronize(device)
    return (time.perf_counter() - start) / TIMED_STEPS


def seconds_per_batch(batches: Iterator[Batch]) -> float:
    """Mean seconds per batch of the feed alone."""
    for number, _ in zip(range(WARMUP_STEPS + TIMED_STEPS), batches, strict=False):
        if number == WARMUP_STEPS - 1:
            start = time.perf_counter()
    return (time.perf_counter() - start) / TIMED_STEPS


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device = pick_device("auto")
    if device.type == "cpu":
        torch.set_num_threads(1)
    shares = []
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        pack(options.photos, shards, split="train", shard_rows=100)
        recipe = make_recipe(shards, options.model, options.size, options.batch, options.workers)
        inputs = open_inputs(recipe)
        classes, spec = len(inputs.train.classes), create_plan_spec(recipe, inputs)
        learner = Learner(recipe, create_student(recipe.model, classes, distill_head=False).to(device), classes)
        feed = Feed(spec, inputs.train, None, None, World())
        batches = feed.batches(range(recipe.schedule.epochs), 0, options.workers)
        batch = next(batches)
        for _ in range(options.rounds):
            views = seconds_per_batch(batches)
            real = seconds_per_step(learner, batches, device)
            synthetic = seconds_per_step(learner, repeat(batch), device)
            shares.append(synthetic / real)
            slower = "the model" if synthetic > views else "the feed"
            print(
                f"step from shards {1000 * real:.0f} ms, synthetic {1000 * synthetic:.0f} ms: {shares[-1]:.1%}; "
                f"the feed alone {1000 * views:.0f} ms a batch, so {slower} is slower"
            )
    print(f"median {statistics.median(shares):.1%} (goal if the model is slower than the feed: {GOAL:.0%})")


if __name__ == "__main__":
    main()
