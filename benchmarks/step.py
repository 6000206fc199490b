"""Time of a training step with cached targets, relative to no distillation and to live teachers.

    python benchmarks/step.py [--model deit_tiny_distilled_patch16_224] [--batch 16] [--teachers resnet18 ...]
    python benchmarks/step.py --device cuda --dtype bfloat16 --compile --batch 1024 --teachers regnety_160

The steps alternate: without distillation on synthetic images (the limit), with cached hard labels and cached
top-10 targets, and with each live teacher (random weights). Cached targets are read from a real cache of 1000
classes, their digests are checked, and they are decoded within the step; in training, a worker process does this.
On a CPU the time is CPU time, so that other processes count less. On a GPU it is wall time, after
synchronization.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from rich.console import Console
from rich.table import Table

from student.data.batch import Batch
from student.data.replay import Replay
from student.model.student import create_student
from student.recipe import TrainRecipe
from student.training.learner import Learner
from teacher_cache.cache.manifest import Manifest
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.config import parse_recipe
from teacher_cache.data.view_batch import ViewBatch
from teacher_cache.data.view_reader import ShardViews
from teacher_cache.models.spec import MEAN, STD
from teacher_cache.models.teacher import Teacher
from teacher_cache.rng import generator
from teacher_cache.views.policy import ViewPolicy

ROWS, CLASSES = 2048, 1000
KINDS = {"cached, hard": "hard", "cached, top-10": "topk"}


def make_cache(where: Path, kind: str, size: int, shards: int = 1) -> TargetCache:
    """Create a cache of shards with the same random targets."""
    views = {"size": size, "hflip": 0.5, "auto_augment": "", "re_prob": 0.0, "mixup": 0.8, "cutmix": 1.0}
    encoding = {"kind": kind, "k": 10 if kind == "topk" else 0, "values": "float16", "digest_bits": 16}
    contents = {"classes": [str(label) for label in range(CLASSES)], "rows": [ROWS] * shards, "md5": [""] * shards}
    teacher = {"model": "none", "sha256": "", "classes": CLASSES, "dtype": "float32"}
    policy = ViewPolicy.model_validate(views).model_dump(mode="json")
    cache = TargetCache.create(where, Manifest(policy, teacher, encoding, contents, 1, 1, recipe={}))
    rng = generator("targets", kind)
    columns = cache.encoding.encode(
        rng.standard_normal((ROWS, CLASSES)).astype(np.float32), rng.integers(2**63, size=ROWS).astype(np.uint64)
    )
    layout = cache.encoding.columns(ROWS)
    unit_columns = {name: np.empty((1, *column.sizes), column.dtype) for name, column in layout.items()}
    for name, values in columns.items():
        unit_columns[name][0][layout[name].index_of(np.arange(ROWS))] = values
    for unit in cache.layout.units():
        cache.write(unit, unit_columns)
    return cache


def make_views(cache: TargetCache, size: int, batch: int) -> ShardViews:
    """Views of noise, mixed in pairs, with the digests stored in the cache."""
    rng, rows = generator("views"), np.arange(batch)
    label = torch.from_numpy(rng.integers(CLASSES, size=batch))
    partner = torch.arange(batch) ^ 1
    views = ViewBatch(
        pixels=torch.from_numpy(rng.integers(256, size=(batch, size, size, 3), dtype=np.uint8)),
        label=label,
        partner_label=label[partner],
        partner=partner,
        lam=torch.full((batch,), 0.7),
        cutmix=torch.arange(batch) % 2 == 0,
        box=torch.tensor([[0, 0, size // 2, size // 2]]).repeat(batch, 1),
    )
    digests = cache.read(0, 0).digest[rows].astype(np.uint64)
    return ShardViews(0, 0, tuple(map(str, rows)), rows, digests, batch, views)


def make_recipe(options: argparse.Namespace, distillation: str) -> TrainRecipe:
    soft = {"tau": 3.0, "balance": 0.1} if distillation == "soft" else {}
    tables = {
        "data": {"train": "none", "val": "none"},
        "cache": {"path": "none"},
        "model": {"name": options.model, "args": {"drop_path_rate": 0.1}},
        "loss": {"distillation": distillation, "smoothing": 0.1, **soft},
        "optim": {"name": "adamw", "lr": 1e-4, "weight_decay": 0.05},
        "schedule": {"epochs": 2, "warmup_epochs": 1, "warmup_lr": 1e-6, "min_lr": 1e-5},
        "train": {"batch": options.batch, "streams": 1, "accumulate": options.accumulate},
        "eval": {"size": options.size, "crop": 0.9},
        "machine": {"dtype": options.dtype, "compile": options.compile},
    }
    return parse_recipe(tables, TrainRecipe, "the benchmark's recipe")


def make_steps(options: argparse.Namespace, folder: Path) -> dict[str, Callable[[int], object]]:
    """Step functions by name; the argument is the step's number."""
    device = torch.device(options.device)

    def learner(distillation: str, teacher: Teacher | None = None) -> Learner:
        recipe = make_recipe(options, distillation)
        return Learner(recipe, create_student(recipe.model, CLASSES, True).to(device), CLASSES, teacher)

    def step_on_batch(one: Learner, batch: Batch) -> Callable[[int], object]:
        return lambda step: one.learn(batch, step)

    def step_with_cache(one: Learner, cache: TargetCache, tau: float | None) -> Callable[[int], object]:
        views, replay = make_views(cache, options.size, options.batch), Replay(cache.where, tau, 1)

        def step(number: int) -> None:
            hard, soft = replay.targets(views)
            one.learn(Batch(**vars(views.batch), hard=hard, soft=soft), number)

        return step

    caches = {name: make_cache(folder / kind, kind, options.size) for name, kind in KINDS.items()}
    images = Batch(**vars(make_views(caches["cached, hard"], options.size, options.batch).batch))
    steps = {"without distillation": step_on_batch(learner("none"), images)}
    for name, tau in zip(KINDS, (None, 3.0), strict=True):
        steps[name] = step_with_cache(learner("soft" if tau else "hard"), caches[name], tau)
    for name in options.teachers:
        teacher = Teacher(timm.create_model(name, num_classes=CLASSES), name, CLASSES, MEAN, STD, options.dtype)
        steps[f"live {name}"] = step_on_batch(learner("hard", teacher.to(device)), images)
    return steps


def time_step(step: Callable[[int], object], number: int, device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    step(number)
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_distilled_patch16_224")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--teachers", nargs="*", default=["resnet18", "regnety_160"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        steps = make_steps(options, Path(folder))
        seconds_by_step: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(-2, options.rounds):  # the first two rounds are warm-up
            names = list(steps)[number % len(steps) :] + list(steps)[: number % len(steps)]
            for name in names:
                seconds = time_step(steps[name], number + 2, options.device)
                if number >= 0:
                    seconds_by_step[name].append(seconds)
    table = Table(title=f"{options.model}, batch {options.batch}, {options.dtype}, {options.device}")
    for title in ("step", "images/s", "relative to no distillation (median)", "min", "max"):
        table.add_column(title)
    limit = seconds_by_step["without distillation"]
    for name, times in seconds_by_step.items():
        ratios = [mine / none for mine, none in zip(times, limit, strict=True)]
        cells = (statistics.median(ratios), min(ratios), max(ratios))
        table.add_row(
            name, f"{options.batch / statistics.median(times):,.1f}", *(f"{ratio:.3f}" for ratio in cells)
        )
    Console().print(table)
    if options.device != "cpu":
        print(f"peak GPU memory of all steps together: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
