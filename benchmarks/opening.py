"""Time to open caches of 300 seeds x 1,300 and 10,000 shards, and time of `limbeck cache status`.

    python benchmarks/opening.py [--shards 10000]

The sizes are those of ImageNet and ImageNet-21k. Only markers are read, so one unit is written and the markers of
all other units are hard links to its marker.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from reads import POLICY

from teacher_cache.cache.layout import Unit
from teacher_cache.cache.manifest import Manifest
from teacher_cache.cache.target_cache import TargetCache

SEEDS, SEEDS_PER_UNIT, ROWS = 300, 4, 1000
SHARDS = (1300, 10_000)
MAX_LINKS = 60_000
GOALS = {"open": 1.0, "limbeck cache status": 5.0}


def make_cache(where: Path, count: int) -> TargetCache:
    """Create a cache in which every unit has a marker."""
    import numpy as np

    shards = {
        "classes": [str(label) for label in range(1000)],
        "rows": [ROWS] * count,
        "md5": ["0" * 32] * count,
    }
    encoding = {"kind": "hard", "k": 0, "values": "float16", "digest_bits": 16}
    teacher = {"model": "none", "sha256": "", "classes": 1000, "dtype": "float32"}
    views = POLICY.model_dump(mode="json")
    cache = TargetCache.create(where, Manifest(views, teacher, encoding, shards, SEEDS, SEEDS_PER_UNIT, recipe={}))
    first = Unit(0, 0)
    blank = {name: np.zeros((SEEDS_PER_UNIT, ROWS), column.dtype) for name, column in cache.layout.columns.items()}
    cache.write(first, blank)
    source = where / cache.layout.marker_key(first)
    for number, unit in enumerate(cache.layout.units()):
        path = where / cache.layout.marker(unit)
        if number % MAX_LINKS == 0 and number:
            source = Path(shutil.copy(source, path))
        elif number:
            os.link(source, path)
    return cache


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="*", default=SHARDS)
    for count in parser.parse_args().shards:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder) / "cache.zarr", count)


def measure(where: Path, count: int) -> None:
    """Create a cache of `count` shards and print the times."""
    cache = make_cache(where, count)
    print(f"{SEEDS} seeds x {count:,} shards, {cache.layout.unit_count:,} units")
    start = time.perf_counter()
    TargetCache.open(where)
    print(f"open: {time.perf_counter() - start:.3f} s (goal: {GOALS['open']})")
    start = time.perf_counter()
    cache.missing()
    print(f"list missing units: {time.perf_counter() - start:.2f} s")
    start = time.perf_counter()
    command = [sys.executable, "-m", "server.cli", "cache", "status", str(where)]
    print(subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout)
    taken = time.perf_counter() - start
    goal = GOALS["limbeck cache status"]
    print(f"limbeck cache status: {taken:.2f} s, including Python's own start (goal: {goal})")


if __name__ == "__main__":
    main()
