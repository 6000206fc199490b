"""Speed of `limbeck cache build` relative to the slower of its two parts: rendering views, and the teacher.

    python benchmarks/build.py PHOTOS.tar.gz [--teacher resnet10t] [--size 160] [--workers 1]

Each round measures three rates: views from the job's loader without a teacher, the teacher on one batch
repeatedly, and the whole job, which writes a cache (top-10 of 1000 classes). Each measurement starts after its
first batch. Without a GPU, one worker and one teacher thread have a core each. The teacher has random weights.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import timm
import torch

from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.config import parse_recipe
from teacher_cache.data.index import ShardIndex, load_index, save_index
from teacher_cache.distributed.device import pick_device
from teacher_cache.labeling.labeler import Labeler
from teacher_cache.labeling.prepare import manifest_for, open_cache
from teacher_cache.labeling.unit_dataset import UnitDataset, unit_loader
from teacher_cache.models.teacher import Teacher, load_teacher
from teacher_cache.packing.pack import pack
from teacher_cache.recipe import CacheRecipe

CLASSES, SEEDS = 1000, 4


def pack_photos(
    photos: Path, folder: Path, *, split: str = "train", shard_rows: int = 100, size: int = 0
) -> ShardIndex:
    """Pack the photos into shards, and add class names up to CLASSES."""
    packed = pack(photos, folder, split=split, shard_rows=shard_rows, size=size)
    names = (*packed.classes, *(f"class {number}" for number in range(len(packed.classes), CLASSES)))
    save_index(ShardIndex(packed.folder, packed.shards, names), folder / "index.json")
    return load_index(folder)


def make_recipe(index: ShardIndex, name: str, weights: Path, size: int, workers: int, batch: int) -> CacheRecipe:
    """A recipe with DeiT's views and the given teacher."""
    views = {"size": size, "hflip": 0.5, "auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25}
    tables = {
        "data": {"train": index.folder},
        "views": views | {"mixup": 0.8, "cutmix": 1.0},
        "teacher": {"model": name, "weights": str(weights)},
        "cache": {"path": "cache", "seeds": SEEDS, "seeds_per_unit": SEEDS, "encoding": "topk", "k": 10},
        "job": {"workers": workers, "batch": batch},
    }
    return parse_recipe(tables, CacheRecipe, "the benchmark's recipe")


def make_dataset(cache: TargetCache, index: ShardIndex, recipe: CacheRecipe) -> UnitDataset:
    missing = {unit: [cache.where] for unit in cache.missing()}
    return UnitDataset(cache.layout, missing, index, recipe.job, recipe.job.workers or 0)


def loader_rate(cache: TargetCache, index: ShardIndex, recipe: CacheRecipe) -> float:
    """Views per second of the loader alone."""
    count, start = 0, 0.0
    for piece in unit_loader(make_dataset(cache, index, recipe)):
        if start:
            count += len(piece.views.batch.label)
        start = start or time.perf_counter()
    return count / (time.perf_counter() - start)


def teacher_rate(teacher: Teacher, cache: TargetCache, index: ShardIndex, recipe: CacheRecipe) -> float:
    """Views per second of the teacher alone, including the copy of its logits to the CPU."""
    views = next(unit_loader(make_dataset(cache, index, recipe))).views
    device = pick_device(recipe.job.device)
    teacher(views.batch.mixed(device)).cpu()
    start = time.perf_counter()
    for _ in range(8):
        teacher(views.batch.mixed(device)).cpu()
    return 8 * len(views.batch.label) / (time.perf_counter() - start)


def job_rate(teacher: Teacher, cache: TargetCache, index: ShardIndex, recipe: CacheRecipe) -> float:
    """Views per second of the whole job: views, teacher, encoding and writing."""
    count, start = 0, 0.0
    with Labeler(teacher, cache, set(cache.missing()), pick_device(recipe.job.device)) as labeler:
        for piece in unit_loader(make_dataset(cache, index, recipe)):
            if start:
                count += len(piece.views.batch.label)
            start = start or time.perf_counter()
            labeler.submit(piece)
    assert not cache.missing()
    return count / (time.perf_counter() - start)


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--teacher", default="resnet10t")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    shares = []
    with tempfile.TemporaryDirectory() as folder:
        weights, index = Path(folder) / "weights.pth", pack_photos(options.photos, Path(folder) / "shards")
        torch.save(timm.create_model(options.teacher, num_classes=CLASSES).state_dict(), weights)
        recipe = make_recipe(index, options.teacher, weights, options.size, options.workers, options.batch)
        teacher = load_teacher(recipe.teacher, index.classes, options.size).to(pick_device(recipe.job.device))
        for number in range(options.rounds):
            spec = recipe.cache.model_copy(update={"path": f"{folder}/{number}.zarr"})
            manifest = manifest_for(recipe.model_copy(update={"cache": spec}), index, teacher)
            cache = open_cache(recipe.model_copy(update={"cache": spec}), manifest, extend=False)
            views = loader_rate(cache, index, recipe)
            labels = teacher_rate(teacher, cache, index, recipe)
            job = job_rate(teacher, cache, index, recipe)
            shares.append(job / min(views, labels))
            print(
                f"views alone {views:.0f}/s, teacher alone {labels:.0f}/s, job {job:.0f}/s: "
                f"{shares[-1]:.0%} of the slower part"
            )
    print(f"median {statistics.median(shares):.0%} (goal: 90%)")


if __name__ == "__main__":
    main()
