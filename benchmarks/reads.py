"""Reading targets one (seed, shard) at a time: the cache, zarr-python, np.load and a flat file.

    python benchmarks/reads.py

1000 rows per chunk, units of 4 seeds, files in the page cache, one core. The flat file has TinyViT's layout: one
record per target (digest, then the stored classes and values), so that a shard is one range of bytes. Only the
cache verifies checksums. "hard" reads labels and digests, "topk" also tails, classes and values of the top 10.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from rich.console import Console
from rich.table import Table

from teacher_cache.cache.manifest import Manifest
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.rng import generator
from teacher_cache.views.policy import ViewPolicy

ROWS, SHARDS, SEEDS, CLASSES = 1000, 4, 8, 1000
POLICY = ViewPolicy(size=224, hflip=0.5, auto_augment="", re_prob=0.0, mixup=0.8, cutmix=1.0)
GOALS = {"hard": 800_000, "topk": 300_000}


def make_cache(where: Path, kind: str) -> TargetCache:
    """Create a complete cache of random targets."""
    encoding = {"kind": kind, "k": 10 if kind == "topk" else 0, "values": "float16", "digest_bits": 16}
    shards = {"classes": [str(label) for label in range(CLASSES)], "rows": [ROWS] * SHARDS, "md5": [""] * SHARDS}
    teacher = {"model": "none", "sha256": "", "classes": CLASSES, "dtype": "float32"}
    views = POLICY.model_dump(mode="json")
    cache = TargetCache.create(where, Manifest(views, teacher, encoding, shards, SEEDS, 4, recipe={}))
    for unit in cache.layout.units():
        rng = generator("reads", unit.block, unit.shard)
        encoded = [
            cache.encoding.encode(
                3 * rng.standard_normal((ROWS, CLASSES), dtype=np.float32), rng.integers(0, 2**63, ROWS, np.uint64)
            )
            for _ in cache.layout.seeds(unit)
        ]
        cache.write(unit, {name: np.stack([columns[name] for columns in encoded]) for name in encoded[0]})
    return cache


def make_readers(cache: TargetCache, folder: Path) -> dict[str, Callable[[int, int], object]]:
    """Write the same targets as .npy files and as a flat file; returns a read function for each format."""
    group: Any = zarr.open_group(cache.where, mode="r")
    arrays = [group[name] for name in cache.layout.columns]
    record = np.dtype([(name, c.dtype, c.sizes[:-1]) for name, c in cache.layout.columns.items()])
    flat = np.zeros((SEEDS, SHARDS, ROWS), dtype=record)
    for seed in range(SEEDS):
        for shard in range(SHARDS):
            for name, values in cache.read(seed, shard).columns.items():
                np.save(folder / f"{name}-{seed}-{shard}.npy", values)
                flat[name][seed, shard] = values.T
    flat.tofile(folder / "flat.bin")
    size = ROWS * record.itemsize

    def from_flat(seed: int, shard: int) -> object:
        with (folder / "flat.bin").open("rb") as file:
            file.seek((seed * SHARDS + shard) * size)
            return np.frombuffer(file.read(size), record)

    return {
        "limbeck": cache.read,
        "zarr-python": lambda seed, shard: [np.asarray(array[seed, shard]) for array in arrays],
        "np.load": lambda seed, shard: [
            np.load(folder / f"{name}-{seed}-{shard}.npy") for name in cache.layout.columns
        ],
        "flat binary": from_flat,
    }


def targets_per_second(read: Callable[[int, int], object]) -> float:
    """Targets per second, over all (seed, shard)."""
    start = time.perf_counter()
    for seed in range(SEEDS):
        for shard in range(SHARDS):
            read(seed, shard)
    return SEEDS * SHARDS * ROWS / (time.perf_counter() - start)


def main() -> None:
    """Run the benchmark and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    table = Table(title="million targets per second, one core")
    for name in ("encoding", "goal", "limbeck", "zarr-python", "np.load", "flat binary"):
        table.add_column(name)
    for kind, goal in GOALS.items():
        with tempfile.TemporaryDirectory() as folder:
            readers = make_readers(make_cache(Path(folder) / "cache.zarr", kind), Path(folder))
            speeds: dict[str, list[float]] = {name: [] for name in readers}
            for _ in range(rounds):
                for name, read in readers.items():
                    speeds[name].append(targets_per_second(read))
        medians = [f"{statistics.median(rates) / 1e6:.2f}" for rates in speeds.values()]
        table.add_row(kind, f"{goal / 1e6}", *medians)
    Console().print(table)


if __name__ == "__main__":
    main()
