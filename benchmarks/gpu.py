"""What a GPU does: synthetic images (the limit), cached distillation from JPEGs, a live teacher, and labeling.

    python benchmarks/gpu.py [--photos FOLDER_OR_TAR]     # one GPU and its cores, at most 8 minutes
    python benchmarks/gpu.py --tiny                       # the same on a CPU, with tiny networks, in seconds

DeiT-Ti and DeiT-S at 224 px in bfloat16, compiled, learn the hard labels of a RegNetY-16GF with random weights.
The shards have copies of the photos (generated ones without --photos), as they are and packed with a shorter side
of --side. The labeling job writes their caches; its share is that of its slower half, views or teacher alone.
Training runs as in `limbeck train`: plan, loader workers on all cores, digests, upload, step. Synthetic images are
one batch that lies on the device. Memory is the peak that torch has allocated. The last lines are the figures.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path

import timm
import torch
from build import CLASSES, pack_photos
from photos import make_photo
from views import load_photos

from student.data.batch import Batch
from student.data.loader import Feed
from student.model.student import create_student
from student.recipe import CacheRef, TrainRecipe
from student.training.learner import Learner, labeled
from student.training.meter import Meter
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.config import parse_recipe
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.plan import PlanSpec
from teacher_cache.distributed.device import pick_device
from teacher_cache.distributed.machine import loader_workers
from teacher_cache.distributed.upload import uploaded
from teacher_cache.distributed.world import World
from teacher_cache.labeling.labeler import Labeler
from teacher_cache.labeling.prepare import manifest_for, open_cache
from teacher_cache.labeling.unit_dataset import UnitBatch, UnitDataset, unit_loader
from teacher_cache.models.teacher import Teacher, load_teacher
from teacher_cache.recipe import CacheRecipe

GOAL = 0.95
SEEDS = 4
WARMUP_STEPS = 6
"""More than the loader has ready before the first step."""
VIEWS = {"hflip": 0.5, "auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "mixup": 0.8, "cutmix": 1.0}
TINY_STUDENT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}


@dataclass(frozen=True)
class Plan:
    """The settings of one benchmark."""

    device: torch.device
    students: dict[str, dict[str, object]]
    """The arguments of each network, by its name in timm."""
    teacher: str
    size: int
    batch: int
    workers: int
    compile: bool
    seconds: float
    """Time of one measurement of training steps, at least."""

    @property
    def machine(self) -> dict[str, object]:
        return {"device": str(self.device), "workers": self.workers, "compile": self.compile}


@dataclass(frozen=True)
class Source:
    """Shards and the cache of their views."""

    title: str
    index: ShardIndex
    cache: TargetCache

    def feed(self, plan: Plan, cached: bool) -> Feed:
        spec = PlanSpec(self.cache.manifest.policy, SEEDS, plan.batch, max(plan.workers, 1))
        return Feed(spec, self.index, CacheRef(path=self.cache.where) if cached else None, None, World())

    def batches(self, plan: Plan, cached: bool = True) -> Iterator[Batch]:
        """Batches on the device, without end."""
        return uploaded(self.feed(plan, cached).batches(range(1_000_000), 0, plan.workers), plan.device)


class Figures:
    """The figures, which are logged when they are measured and printed at the end."""

    def __init__(self) -> None:
        self._started, self._lines = time.monotonic(), list[str]()

    def add(self, line: str) -> None:
        self._lines.append(line)
        print(f"{time.monotonic() - self._started:5.0f} s  {line}", file=sys.stderr, flush=True)

    def print(self) -> None:
        self.add(f"time of the benchmark: {time.monotonic() - self._started:.0f} s")
        print("\n".join(self._lines))


def read_photos(source: Path | None, tiny: bool) -> list[bytes]:
    if source:
        return load_photos(source, 400)
    return [make_photo(width, 3 * width // 4) for width in (range(48, 64, 2) if tiny else range(400, 600, 5))]


def pack_copies(photos: list[bytes], folder: Path, plan: Plan, side: int) -> ShardIndex:
    """Pack copies of the photos into one shard for each worker, each of one batch: no batch is smaller."""
    for number in range(plan.batch * max(plan.workers, 2)):
        file = folder / "photos" / f"class {number % 10}" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(photos[number % len(photos)])
    return pack_photos(folder / "photos", folder / "shards", split="", shard_rows=plan.batch, size=side)


def create_teacher(plan: Plan, index: ShardIndex, weights: Path) -> tuple[CacheRecipe, Teacher]:
    """A recipe of the labeling job, and its teacher on the device."""
    tables = {
        "data": {"train": index.folder},
        "views": VIEWS | {"size": plan.size},
        "teacher": {"model": plan.teacher, "weights": str(weights), "dtype": "bfloat16"},
        "cache": {"path": "cache", "seeds": SEEDS, "seeds_per_unit": 1, "encoding": "hard"},
        "job": plan.machine | {"batch": plan.batch},
    }
    recipe = parse_recipe(tables, CacheRecipe, "the benchmark's recipe")
    teacher = load_teacher(recipe.teacher, index.classes, plan.size).to(plan.device)
    if plan.compile:
        teacher.network.compile()
    return recipe, teacher


def save_random_weights(plan: Plan, path: Path) -> None:
    """Random weights whose top class depends on the image: statistics of BatchNorm and a head without a mean."""
    torch.manual_seed(0)
    network = timm.create_model(plan.teacher, num_classes=CLASSES).to(plan.device)
    noise = torch.randn(32, 3, plan.size, plan.size, device=plan.device)
    images = noise + torch.randn(32, 3, 1, 1, device=plan.device)
    with torch.no_grad():
        for _ in range(20):
            network.train()(images)
        logits = network.eval()(images)
        head = network.get_classifier()
        head.weight /= logits.std()
        head.bias -= logits.mean(dim=0) / logits.std()
    torch.save(network.state_dict(), path)


def create_cache(recipe: CacheRecipe, teacher: Teacher, index: ShardIndex, where: Path) -> TargetCache:
    """Create the cache of some shards. Nothing is labeled yet."""
    cache = recipe.cache.model_copy(update={"path": str(where)})
    recipe = recipe.model_copy(update={"cache": cache})
    return open_cache(recipe, manifest_for(recipe, index, teacher), extend=False)


def measure_labeling(plan: Plan, recipe: CacheRecipe, teacher: Teacher, source: Source, figures: Figures) -> None:
    """The teacher alone, views alone, and the job, which writes the cache. The last two include their start."""
    cache = source.cache
    missing = {unit: [cache.where] for unit in cache.missing()}
    total = source.index.rows * SEEDS

    def batches() -> Iterator[UnitBatch]:
        return unit_loader(UnitDataset(cache.layout, missing, source.index, recipe.job, plan.workers))

    first = next(batches()).views
    assert first
    batch = first.batch.to(plan.device)
    alone = len(batch.label) / seconds_per_call(plan, lambda: teacher(batch.mixed(plan.device)).cpu())
    started = time.perf_counter()
    for _ in batches():
        pass
    views = total / (time.perf_counter() - started)
    started = time.perf_counter()
    with Labeler(teacher, cache, set(missing), plan.device) as labeler:
        for unit_batch in batches():
            labeler.submit(unit_batch)
    job = total / (time.perf_counter() - started)
    assert not cache.missing()
    figures.add(
        f"labeling, {source.title}: {job:,.0f} views/s; views alone {views:,.0f}, teacher alone {alone:,.0f}; "
        f"{job / min(views, alone):.3f} of the slower half; {peak_memory(plan.device)}"
    )


def seconds_per_call(plan: Plan, function: Callable[[], object]) -> float:
    """Mean time of some calls after the first two, which may compile."""
    for _ in range(2):
        function()
    started, calls = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < plan.seconds / 4 or not calls:
        function()
        calls += 1
    return elapsed / max(calls, 1)


def make_learner(plan: Plan, name: str, teacher: Teacher | None) -> Learner:
    size, args = plan.size, plan.students[name]
    tables = {
        "data": {"train": "none", "val": "none"},
        "cache": {"path": "none"},
        "model": {"name": name, "args": args | {"drop_path_rate": 0.1}},
        "loss": {"distillation": "hard", "smoothing": 0.1},
        "optim": {"name": "adamw", "lr": 1e-4, "weight_decay": 0.05},
        "schedule": {"epochs": 2, "warmup_epochs": 1, "warmup_lr": 1e-6, "min_lr": 1e-5},
        "train": {
            "batch": plan.batch,
            "streams": max(plan.workers, 1),
            "targets": "live" if teacher else "cached",
        },
        "eval": {"size": size, "crop": 0.9},
        "machine": plan.machine | {"dtype": "bfloat16"},
    }
    recipe = parse_recipe(tables, TrainRecipe, "the benchmark's recipe")
    student = create_student(recipe.model, CLASSES, distill_head=True).to(plan.device)
    return Learner(recipe, student, CLASSES, teacher)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_steps(plan: Plan, learner: Learner | None, batches: Iterator[Batch]) -> tuple[float, float]:
    """Images per second of training steps, or of the batches alone, and the share of the time that it waited."""
    for step, batch in zip(range(WARMUP_STEPS), batches, strict=False):
        if learner:
            learner.learn(batch, step)
    synchronize(plan.device)
    meter, step, started = Meter(), WARMUP_STEPS, time.perf_counter()
    while time.perf_counter() - started < plan.seconds:
        for number, batch in meter.over(batches, range(step, step + 5)):
            if learner:
                meter.add(number, learner.learn(batch, number))
        step += 5
    meter.finish()
    synchronize(plan.device)
    seconds = time.perf_counter() - started
    return (step - WARMUP_STEPS) * plan.batch / seconds, meter.epoch.waited / seconds


def peak_memory(device: torch.device) -> str:
    if device.type != "cuda":
        return "no GPU memory"
    used = torch.cuda.max_memory_allocated(device) / 2**30
    torch.cuda.reset_peak_memory_stats(device)
    return f"{used:.1f} GiB of GPU memory"


def measure_student(plan: Plan, name: str, teacher: Teacher, sources: list[Source], figures: Figures) -> None:
    """Synthetic images, cached targets of each source, and the live teacher."""
    learner = make_learner(plan, name, None)
    peak_memory(plan.device)
    batches = sources[0].batches(plan)
    limit, _ = measure_steps(plan, learner, repeat(next(batches).clone()))
    batches.close()  # type: ignore[attr-defined]  # a generator, which stops its workers
    figures.add(f"{name}, synthetic: {limit:,.0f} images/s; {peak_memory(plan.device)}")
    for source in sources:
        rate, waiting = measure_steps(plan, learner, source.batches(plan))
        share = f"{rate / limit:.3f} of the limit (goal {GOAL}), {waiting:.0%} waiting"
        figures.add(f"{name}, cached, {source.title}: {rate:,.0f} images/s; {share}; {peak_memory(plan.device)}")
    learner = make_learner(plan, name, teacher)
    rate, waiting = measure_steps(plan, learner, sources[-1].batches(plan, cached=False))
    share = f"{rate / limit:.3f} of the limit, {waiting:.0%} waiting"
    figures.add(f"{name}, live {plan.teacher}: {rate:,.0f} images/s; {share}; {peak_memory(plan.device)}")


def compare_labels(plan: Plan, teacher: Teacher, source: Source, figures: Figures) -> None:
    """Count the hard labels in the cache that equal those of the live teacher in the training step."""
    equal, labels, seen = 0, 0, set[int]()
    for batch in islice(source.batches(plan), 8):
        pixels, truth = batch.on(plan.device, CLASSES)
        cached, live = truth.hard, labeled(teacher, pixels, truth, None).hard
        assert cached is not None and live is not None
        equal, labels = equal + int((cached == live).sum()), labels + len(cached)
        seen.update(cached.tolist())
    figures.add(f"hard labels, cached equals live: {equal:,} of {labels:,} ({len(seen)} classes)")


def make_plan(options: argparse.Namespace) -> Plan:
    device = pick_device(options.device)
    workers = loader_workers(options.workers, device.type)
    if options.tiny:
        students = {"deit_tiny_distilled_patch16_224": TINY_STUDENT}
        return Plan(device, students, "resnet10t", 32, 8 * max(workers, 1), workers, False, 0.2)
    names = ("deit_tiny_distilled_patch16_224", "deit_small_distilled_patch16_224")
    batch = options.batch // max(workers, 1) * max(workers, 1)  # a stream for each worker
    students = {name: {} for name in names}
    return Plan(device, students, "regnety_160", 224, batch, workers, device.type == "cuda", options.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder or tar with JPEGs; generated ones without it")
    parser.add_argument("--side", type=int, default=256, help="shorter side of the second set of shards")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, help="loader processes; all cores but one without it")
    parser.add_argument("--batch", type=int, default=1024, help="views in a batch, about")
    parser.add_argument("--seconds", type=float, default=8.0, help="time of one measurement")
    parser.add_argument("--tiny", action="store_true", help="tiny networks and images, for a CPU")
    options = parser.parse_args()
    plan, figures = make_plan(options), Figures()
    if plan.device.type == "cpu":
        torch.set_num_threads(1)
    name = torch.cuda.get_device_name(plan.device) if plan.device.type == "cuda" else "CPU"
    figures.add(f"machine: {name}, {plan.workers} workers, batch {plan.batch:,}, {plan.size} px, bfloat16")
    with tempfile.TemporaryDirectory() as path:
        folder, photos = Path(path), read_photos(options.photos, options.tiny)
        sides = {"JPEG": 0, f"JPEG packed at {options.side} px": options.side}
        if options.tiny:
            sides = {"JPEG": 0, "JPEG packed at 40 px": 40}
        indexes = [pack_copies(photos, folder / title, plan, side) for title, side in sides.items()]
        save_random_weights(plan, folder / "weights.pth")
        recipe, teacher = create_teacher(plan, indexes[0], folder / "weights.pth")
        sources = [
            Source(title, index, create_cache(recipe, teacher, index, folder / f"{title}.zarr"))
            for title, index in zip(sides, indexes, strict=True)
        ]
        for source in sources:
            measure_labeling(plan, recipe, teacher, source, figures)
            rate, _ = measure_steps(plan, None, source.batches(plan))
            figures.add(f"feed alone, {source.title}: {rate:,.0f} views/s")
        compare_labels(plan, teacher, sources[-1], figures)
        for student in plan.students:
            measure_student(plan, student, teacher, sources, figures)
    figures.print()


if __name__ == "__main__":
    main()
