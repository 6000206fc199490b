"""Opening a cache of 300 seeds x 1,300 shards, and of 10,000, and `limbeck cache status` on it.

    python benchmarks/opening.py [--shards 10000]

As large as ImageNet's, and as ImageNet-21k's, in markers, which are all that is looked at: one unit is written,
and every other unit's marker is a hard link to its own.
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

SEEDS, PER_UNIT, ROWS = 300, 4, 1000
SHARDS = (1300, 10_000)
LINKS = 60_000
WANTED = {"open": 1.0, "limbeck cache status": 5.0}


def make_cache(where: Path, count: int) -> TargetCache:
    """A cache whose every unit has a marker."""
    import numpy as np

    shards = {
        "classes": [str(label) for label in range(1000)],
        "rows": [ROWS] * count,
        "md5": ["0" * 32] * count,
    }
    encoding = {"kind": "hard", "k": 0, "values": "float16", "digest_bits": 16}
    teacher = {"model": "none", "sha256": "", "classes": 1000, "dtype": "float32"}
    views = POLICY.model_dump(mode="json")
    cache = TargetCache.create(where, Manifest(views, teacher, encoding, shards, SEEDS, PER_UNIT, recipe={}))
    first = Unit(0, 0)
    blank = {name: np.zeros((PER_UNIT, ROWS), column.dtype) for name, column in cache.layout.columns.items()}
    cache.write(first, blank)
    source = where / cache.layout.marker_key(first)
    for number, unit in enumerate(cache.layout.units()):
        path = where / cache.layout.marker_key(unit)
        if number % LINKS == 0 and number:
            source = Path(shutil.copy(source, path))
        elif number:
            os.link(source, path)
    return cache


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="*", default=SHARDS)
    for count in parser.parse_args().shards:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder) / "cache.zarr", count)


def measure(where: Path, count: int) -> None:
    """Make a cache of so many shards, and time what is asked of it."""
    cache = make_cache(where, count)
    print(f"{SEEDS} seeds x {count:,} shards, {cache.layout.unit_count:,} units")
    start = time.perf_counter()
    TargetCache.open(where)
    print(f"open: {time.perf_counter() - start:.3f} s (wanted: under {WANTED['open']})")
    start = time.perf_counter()
    cache.missing()
    print(f"what is missing: {time.perf_counter() - start:.2f} s")
    start = time.perf_counter()
    command = [sys.executable, "-m", "server.cli", "cache", "status", str(where)]
    print(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    taken = time.perf_counter() - start
    wanted = WANTED["limbeck cache status"]
    print(f"limbeck cache status: {taken:.2f} s, Python's own start included (wanted: under {wanted})")


if __name__ == "__main__":
    main()
