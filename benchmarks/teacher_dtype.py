"""Agreement of a teacher in bfloat16 with itself in float32, and of a bfloat16 cache with live bfloat16 targets.

    python benchmarks/teacher_dtype.py PHOTOS.tar.gz

The teacher is that of targets.py. Both dtypes label the same pixels: views of DeiT's recipe, mixed and not mixed.
The live targets are computed for training batches, which have another size than the batches of the labeling job.
On a GPU, tf32 is compared, too.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from targets import CLASSES, POLICY, load_teacher
from torch import Tensor

from student.data.loader import Feed
from student.recipe import CacheRef
from student.training.learner import labeled
from teacher_cache.config import parse_recipe
from teacher_cache.console import progress
from teacher_cache.data.index import ShardIndex, save_index
from teacher_cache.data.plan import PlanSpec, pair_order
from teacher_cache.data.view_reader import ViewReader
from teacher_cache.distributed.device import pick_device
from teacher_cache.distributed.world import World
from teacher_cache.labeling.job import build
from teacher_cache.models.teacher import Teacher
from teacher_cache.models.teacher import load_teacher as load_recipe_teacher
from teacher_cache.packing.pack import pack
from teacher_cache.recipe import CacheRecipe
from teacher_cache.views.policy import ViewPolicy

ROWS, SEEDS, BATCH, TRAIN_BATCH = 1000, 2, 64, 40
TOP = 10


@dataclass(frozen=True)
class Agreement:
    """How far (N, C) logits agree with exact ones.

    same: share of equal top classes. gap: if they differ, the largest difference in exact probability between the
    two. mean, largest: over the views, of the largest difference in the probability of a class. top: share of the
    top 10 classes that are in the other top 10.
    """

    same: float
    gap: float
    mean: float
    largest: float
    top: float

    @classmethod
    def of(cls, exact: Tensor, other: Tensor) -> "Agreement":
        p, q = exact.double().softmax(dim=1), other.double().softmax(dim=1)
        labels, others = p.argmax(dim=1, keepdim=True), q.argmax(dim=1, keepdim=True)
        gap = float((p.gather(1, labels) - p.gather(1, others)).max())
        apart = (p - q).abs().amax(dim=1)
        first, second = p.topk(TOP, dim=1).indices, q.topk(TOP, dim=1).indices
        overlap = (first[:, :, None] == second[:, None, :]).any(dim=2).double().mean()
        same = float((labels == others).double().mean())
        return cls(same, gap, float(apart.mean()), float(apart.max()), float(overlap))


def mixed_views(index: ShardIndex, policy: ViewPolicy, device: torch.device) -> Iterator[Tensor]:
    """The pixels of all rows under all seeds, in the labeling job's batches."""
    reader, rows = ViewReader(index, policy, decoded_cache_bytes=2**30), index.shards[0].rows
    for seed in range(SEEDS):
        order = pair_order(policy, seed, 0, rows)
        for start in range(0, rows, BATCH):
            (views,) = reader.read(0, order[start : start + BATCH].tolist(), [seed])
            yield views.batch.mixed(device)


def compared(device: torch.device) -> tuple[str, ...]:
    """The dtypes that differ from float32 on a device."""
    return ("bfloat16",) if device.type == "cpu" else ("tf32", "bfloat16")


def logits_by_dtype(index: ShardIndex, policy: ViewPolicy, device: torch.device) -> dict[str, Tensor]:
    """(N, C) float32 logits of each dtype, on the CPU."""
    network = load_teacher().to(device)
    teachers = {
        dtype: Teacher(network.network, network.name, CLASSES, network.mean, network.std, dtype).to(device)
        for dtype in ("float32", *compared(device))
    }
    found: dict[str, list[Tensor]] = {dtype: [] for dtype in teachers}
    with progress("teacher", SEEDS * index.rows, "views") as bar:
        for pixels in mixed_views(index, policy, device):
            for dtype, teacher in teachers.items():
                found[dtype].append(teacher(pixels).cpu())
            bar.advance(len(pixels))
    return {dtype: torch.cat(parts) for dtype, parts in found.items()}


def build_recipe(folder: Path, index: ShardIndex) -> CacheRecipe:
    """The recipe of a bfloat16 cache of these shards, with a teacher of a local file."""
    teacher = load_teacher()
    torch.save(teacher.network.state_dict(), folder / "teacher.pth")
    tables = {
        "data": {"train": index.folder},
        "views": POLICY.model_dump(mode="json"),
        "teacher": {
            "model": teacher.name,
            "weights": str(folder / "teacher.pth"),
            "mean": list(teacher.mean),
            "std": list(teacher.std),
            "dtype": "bfloat16",
        },
        "cache": {"path": str(folder / "cache.zarr"), "seeds": SEEDS, "encoding": "topk"},
        "job": {"batch": BATCH},
    }
    return parse_recipe(tables, CacheRecipe, "the benchmark's recipe")


def cached_equals_live(folder: Path, index: ShardIndex, device: torch.device) -> tuple[float, int]:
    """Share of equal hard labels of a bfloat16 cache and the same teacher in training batches; number of views."""
    recipe = build_recipe(folder, index)
    cache = build(recipe)
    teacher = load_recipe_teacher(recipe.teacher, index.classes, POLICY.size).to(device)
    spec = PlanSpec(POLICY, SEEDS, batch=TRAIN_BATCH, streams=4)
    feed = Feed(spec, index, CacheRef(path=cache.where), None, World())
    equal, views = 0, 0
    with progress("live", SEEDS * feed.steps_per_epoch() * TRAIN_BATCH, "views") as bar:
        for batch in feed.batches(range(SEEDS), 0, 1):
            pixels, truth = batch.on(device, CLASSES)
            live = labeled(teacher, pixels, truth, None)
            assert live.hard is not None and truth.hard is not None
            equal += int((live.hard == truth.hard).sum())
            views += len(pixels)
            bar.advance(len(pixels))
    return equal / views, views


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    photos, device = parser.parse_args().photos, pick_device("auto")
    table = Table(title=f"{load_teacher().name} on {device}, compared with float32")
    for name in ("views", "dtype", "same label", "gap of others", "mean", "largest", "top 10 kept"):
        table.add_column(name)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        packed = pack(photos, folder / "shards", split="train", shard_rows=ROWS)
        unused = tuple(f"unused {number}" for number in range(len(packed.classes), CLASSES))
        index = replace(packed, classes=(*packed.classes, *unused))  # as many as the teacher has
        save_index(index, index.path)
        plain = POLICY.model_copy(update={"mixup": 0.0, "cutmix": 0.0})
        for views, policy in (("mixed", POLICY), ("not mixed", plain)):
            logits = logits_by_dtype(index, policy, device)
            for dtype in compared(device):
                found = Agreement.of(logits["float32"], logits[dtype])
                same = f"{100 * found.same:.2f} %"
                differences = (f"{value:.3f}" for value in (found.gap, found.mean, found.largest))
                table.add_row(views, dtype, same, *differences, f"{100 * found.top:.2f} %")
        equal, count = cached_equals_live(folder, index, device)
    Console(width=120).print(table)
    print(f"cached and live bfloat16 have the same hard label for {100 * equal:.2f} % of {count:,} views")


if __name__ == "__main__":
    main()
