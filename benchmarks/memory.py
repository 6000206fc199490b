"""Memory growth while a student trains, and the fraction of time that training waits for data.

    python benchmarks/memory.py PHOTOS.tar.gz [--steps 2000] [--workers 1] [--width 96]

Builds a cache (top-10, 32 px views of the photos) and trains a small student from it with the loop of `limbeck
train`, with EMA and checkpoints. The resident memory of this process and its workers is sampled every 50 steps.
The first fifth of the samples is warm-up.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import psutil
import timm
import torch
from torch import Tensor

from student.data.batch import Batch
from student.recipe import TrainRecipe
from student.training.learner import Learner
from student.training.loop import train
from teacher_cache.config import parse_recipe
from teacher_cache.labeling.job import build
from teacher_cache.packing.pack import pack
from teacher_cache.recipe import CacheRecipe
from teacher_cache.storage.jsonl import Journal

SAMPLE_STEPS, BATCH, SEEDS = 50, 16, 4
VIEWS = {
    "size": 32,
    "hflip": 0.5,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "re_prob": 0.25,
    "mixup": 0.8,
    "cutmix": 1.0,
}


def resident_mib() -> float:
    """Resident memory of this process and its descendants, in MiB."""
    parent = psutil.Process()
    total = 0
    for process in (parent, *parent.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 2**20


@contextmanager
def sample_memory(samples: list[float]) -> Iterator[None]:
    """While active, append the resident memory to `samples` every SAMPLE_STEPS steps."""
    learn = Learner.learn

    def learn_and_sample(self: Learner, batch: Batch, step: int) -> Tensor:
        if step % SAMPLE_STEPS == 0:
            samples.append(resident_mib())
        return learn(self, batch, step)

    with patch.object(Learner, "learn", learn_and_sample):
        yield


def make_recipe(shards: str, cache: str, rows: int, options: argparse.Namespace) -> TrainRecipe:
    tables = {
        "data": {"train": shards, "val": shards},
        "cache": {"path": cache},
        "model": {
            "name": "deit_tiny_distilled_patch16_224",
            "args": {"img_size": 32, "patch_size": 4, "embed_dim": options.width, "depth": 4, "num_heads": 3},
        },
        "loss": {"distillation": "hard", "smoothing": 0.1},
        "optim": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05},
        "schedule": {
            "epochs": -(-options.steps // (rows // BATCH)),
            "warmup_epochs": 1,
            "warmup_lr": 0.0,
            "min_lr": 0.0,
        },
        "train": {"batch": BATCH, "streams": 4, "ema": 0.99, "evaluate_every": 10},
        "eval": {"size": 32, "crop": 0.9},
        "machine": {"workers": options.workers, "device": "cpu", "checkpoint_every": 25},
    }
    return parse_recipe(tables, TrainRecipe, "the benchmark's recipe")


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--width", type=int, default=96)
    options = parser.parse_args()
    torch.set_num_threads(1)
    samples: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        index = pack(options.photos, folder / "shards", split="train", shard_rows=64)
        torch.save(
            timm.create_model("resnet10t", num_classes=len(index.classes)).state_dict(), folder / "weights.pth"
        )
        tables = {
            "data": {"train": index.folder},
            "views": VIEWS,
            "teacher": {"model": "resnet10t", "weights": str(folder / "weights.pth")},
            "cache": {"path": str(folder / "cache.zarr"), "seeds": SEEDS, "encoding": "topk", "k": 10},
        }
        cache = build(parse_recipe(tables, CacheRecipe, "the benchmark's recipe"))
        with sample_memory(samples):
            train(make_recipe(index.folder, cache.where, index.rows, options), folder / "run")
        lines = Journal(folder / "run" / "journal.jsonl").read()
    steady = samples[len(samples) // 5 :]
    print(
        f"{lines[-1]['step']:,} steps: {steady[0]:.0f} MiB after a fifth, {max(steady):.0f} MiB at most, ", end=""
    )
    print(f"{steady[-1]:.0f} MiB at the end: {100 * (steady[-1] / steady[0] - 1):+.1f} % (limit: 2)")
    waiting = statistics.median(line["waiting"] for line in lines)
    print(f"waiting for data: {waiting:.1%} of the time, median of {len(lines)} epochs (limit: 2 %)")


if __name__ == "__main__":
    main()
