"""CPU time of training views with and without the decoded cache, on one core.

    python benchmarks/decoded_cache.py --photos FOLDER_OR_TAR [--size 256] [--rounds 9]

The photos are packed with `--size`. A ViewReader reads the same plan from the JPEGs and from the decoded cache,
alternating by round. A round is one epoch; the first one fills the cache and is reported apart. Reading the shard,
drawing, decoding or verifying, rendering and the digest count. The times are CPU times of one thread, since wall
time would include other processes; files are in the page cache. The digests of both are compared.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from views import POLICY, SIZE, load_photos

from teacher_cache.console import format_bytes
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.plan import PlanSpec, plan
from teacher_cache.data.shards import with_decoded_cache
from teacher_cache.data.view_reader import ViewReader
from teacher_cache.disk_cache.decoded_cache import DecodedCacheSpec
from teacher_cache.distributed.world import World
from teacher_cache.packing.pack import pack

STREAMS, SLICE = 8, 12


class EpochReader:
    """Renders the views of whole epochs with one ViewReader, into memory that is used again."""

    def __init__(self, index: ShardIndex) -> None:
        self._rows = [shard.rows for shard in index.shards]
        self._spec = PlanSpec(POLICY, seeds=1000, batch=STREAMS * SLICE, streams=STREAMS)
        self._reader = ViewReader(index, POLICY, cached_shards=STREAMS + 1)
        self._pixels = np.zeros((2 * SLICE, SIZE, SIZE, 3), np.uint8)

    def read(self, epoch: int) -> tuple[float, int]:
        """CPU microseconds per view of an epoch, and the XOR of all digests."""
        views, digests, start = 0, 0, time.thread_time()
        for request in plan(self._spec, self._rows, epoch, World()):
            for drawn in self._reader.draw(request.shard, request.rows, request.seeds):
                identity = drawn.render(self._pixels[: drawn.samples], self._pixels[drawn.samples :])
                views += len(identity.rows)
                digests ^= int(np.bitwise_xor.reduce(identity.digest))
        return (time.thread_time() - start) / views * 1e6, digests


def pack_photos(source: Path, size: int, folder: Path) -> ShardIndex:
    """Pack the photos into shards of 100 rows whose short sides are at most `size`."""
    for number, data in enumerate(load_photos(source, 10**6)):
        path = folder / "photos" / f"class{number % 2}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return pack(folder / "photos", folder / "shards", shard_rows=100, size=size)


def describe(times: Sequence[float]) -> str:
    """Median and quartiles of microseconds per view, and views per second."""
    low, middle, high = statistics.quantiles(times, n=4)
    return f"{middle:7.0f} us per view ({low:.0f} to {high:.0f}), {1e6 / middle:,.0f} views/s"


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        index = pack_photos(options.photos, options.size, Path(folder))
        cached = Path(folder, "decoded")
        spec = DecodedCacheSpec(decoded_cache=str(cached))
        readers = {"JPEG": EpochReader(index), "cache": EpochReader(with_decoded_cache(index, spec, "machine"))}
        times: dict[str, list[float]] = {name: [] for name in readers}
        for epoch in range(options.rounds + 1):
            digests = set()
            for name, reader in readers.items():
                taken, digest = reader.read(epoch)
                times[name].append(taken)
                digests.add(digest)
            assert len(digests) == 1, "the views differ"
        size = sum(path.stat().st_size for path in cached.glob("*.pixels"))
        encoded = sum(shard.bytes for shard in index.shards)
    print(f"{index.rows} photos, short side at most {options.size} px; views of {SIZE} px, equal digests")
    print(
        f"shards {format_bytes(encoded)}, decoded {format_bytes(size)}: {size / index.rows:,.0f} bytes per image"
    )
    print(f"first epoch, filling the cache: {times['cache'][0]:.0f} us per view")
    later = {name: taken[1:] for name, taken in times.items()}
    for name, taken in later.items():
        print(f"later epochs, {name:6} {describe(taken)}")
    ratios = [a / b for a, b in zip(later["JPEG"], later["cache"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"decoded cache: {middle:.2f} times the views a second ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
