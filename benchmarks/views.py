"""Training views from real photos: Limbeck's against timm's, side by side on one core.

python benchmarks/views.py --photos FOLDER_OR_TAR [--count 64] [--rounds 7]

Both make 224 px uint8 views as DeiT augments (bicubic crop, flip, rand-m9-mstd0.5-inc1) from the same JPEG bytes,
by turns, a round each, in processes of their own on one core; timm leaves erasing to the device. Times are the one
thread's CPU time, since other work on a shared machine would show in the clock.
"""

import argparse
import io
import multiprocessing
import os
import platform
import random
import statistics
import tarfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform

from teacher_cache.views.decode import decode
from teacher_cache.views.mix import draw_mix
from teacher_cache.views.policy import ViewPolicy
from teacher_cache.views.render import digest, render
from teacher_cache.views.view import VIEW_VERSION, draw_view

AUGMENT = "rand-m9-mstd0.5-inc1"
SIZE = 224
POLICY = ViewPolicy(size=SIZE, hflip=0.5, auto_augment=AUGMENT, re_prob=0.25, mixup=0.8, cutmix=1.0)
VIEWS_A_DECODE = (1, 8)
SHARD_ROWS = 1000


def photos(source: Path, count: int) -> list[bytes]:
    """The bytes of some JPEGs, spread evenly over a folder or a tar."""
    if source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        found = [path.read_bytes() for path in paths]
    else:
        with tarfile.open(source) as tar:
            members = sorted(
                (one for one in tar if one.name.lower().endswith((".jpg", ".jpeg"))), key=lambda m: m.name
            )
            found = [file.read() for one in members if (file := tar.extractfile(one))]
    if not found:
        raise SystemExit(f"no JPEG in '{source}'; name a folder or a tar of photos")
    return found[:: max(1, len(found) // count)][:count]


def by_timm(images: Sequence[bytes], views: int) -> None:
    """timm's own way: Pillow decodes, then one transform a view."""
    transform = create_transform(
        SIZE, is_training=True, auto_augment=AUGMENT, re_prob=0.25, interpolation="bicubic", use_prefetcher=True
    )
    for data in images:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        for _ in range(views):
            try:
                transform(image)
            except (
                ValueError
            ) as error:  # one in 600: timm asks Pillow 13 to keep 0 bits; that view stays unfinished
                assert "bits" in str(error), error


def by_limbeck(images: Sequence[bytes], views: int) -> None:
    """As ShardReader does it: decode, draw, render, digest."""
    for number, data in enumerate(images):
        image = decode(data)
        for seed in range(views):
            digest(render(image, draw_view(POLICY, seed, f"{number:08d}", *image.shape[:2]), SIZE))


CONTENDERS = {"timm": by_timm, "limbeck": by_limbeck}


def contend(name: str, images: Sequence[bytes], pipe: Connection) -> None:
    """In a process of its own: make views when told, and answer with the CPU microseconds of one."""
    work = CONTENDERS[name]
    torch.set_num_threads(1)
    for number, views in enumerate(iter(pipe.recv, 0)):
        random.seed(number), np.random.seed(number), torch.manual_seed(number)
        pipe.send(cost(lambda views=views: work(images, views), len(images) * views))


def cost(work: Callable[[], object], times: int) -> float:
    """CPU microseconds of one of `times` things that `work` does."""
    start = time.thread_time()
    work()
    return (time.thread_time() - start) / times * 1e6


def compare(images: Sequence[bytes], rounds: int) -> dict[tuple[str, int], list[float]]:
    """CPU us a view of each contender and number of views a decode, round by round, by turns."""
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name in CONTENDERS:
        pipes[name], theirs = context.Pipe()
        context.Process(target=contend, args=(name, images, theirs), daemon=True).start()
    times: dict[tuple[str, int], list[float]] = {(name, k): [] for name in CONTENDERS for k in VIEWS_A_DECODE}
    for number in range(rounds + 1):
        for name, views in times:
            pipes[name].send(views)
            taken = pipes[name].recv()
            if number:  # the first round warms up
                times[name, views].append(taken)
    for pipe in pipes.values():
        pipe.send(0)
    return times


def overheads(rounds: int) -> dict[str, float]:
    """CPU us a view, the best of the rounds, of what replay adds: drawing, the digest, and mixing parameters."""
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    work: dict[str, Callable[[], object]] = {
        "drawing": lambda: [draw_view(POLICY, seed, "n01440764_10026", 375, 500) for seed in range(SHARD_ROWS)],
        "digest": lambda: [digest(pixels) for _ in range(SHARD_ROWS)],
        f"mixing, of a shard of {SHARD_ROWS} rows": lambda: draw_mix(POLICY, 3, 7, SHARD_ROWS).fingerprints,
    }
    return {name: min(cost(one, SHARD_ROWS) for _ in range(4 * rounds)) for name, one in work.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    images = photos(chosen.photos, chosen.count)
    times = compare(images, chosen.rounds)
    print(f"{platform.machine()}, {len(images)} photos, {chosen.rounds} rounds, view version {VIEW_VERSION}")
    for (name, views), taken in times.items():
        label = f"{name}, {views} a decode"
        print(f"{label:40} {statistics.median(taken):7.0f} us a view ({min(taken):.0f} to {max(taken):.0f})")
    for views in VIEWS_A_DECODE:
        for theirs in sorted({1, views}):
            ratios = [a / b for a, b in zip(times["timm", theirs], times["limbeck", views], strict=True)]
            print(
                f"limbeck, {views} a decode, against timm, {theirs} a decode: {statistics.median(ratios):.2f}"
                f" ({min(ratios):.2f} to {max(ratios):.2f})"
            )
    parts = overheads(chosen.rounds)
    for name, taken in parts.items():
        print(f"{name:40} {taken:7.1f} us a view")
    print(f"{'together':40} {sum(parts.values()):7.1f} us a view")


if __name__ == "__main__":
    main()
