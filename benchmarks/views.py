"""CPU time of training views from real photos, Limbeck's and timm's, on one core.

    python benchmarks/views.py --photos FOLDER_OR_TAR [--count 64] [--rounds 7]

Both make 224 px uint8 views with DeiT's augmentation (bicubic crop, flip, rand-m9-mstd0.5-inc1) from the same
JPEGs. They alternate by round, each in its own process, on one core. timm leaves erasing to the device. The times
are CPU times of one thread, since wall time would include other processes.
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
VIEWS_PER_DECODE = (1, 8)
SHARD_ROWS = 1000


def load_photos(source: Path, count: int) -> list[bytes]:
    """Read `count` JPEGs, evenly spread over a folder or a tar."""
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
        raise SystemExit(f"no JPEG in '{source}'; give a folder or a tar with photos")
    return found[:: max(1, len(found) // count)][:count]


def run_timm(images: Sequence[bytes], views: int) -> None:
    """timm's pipeline: decode with Pillow once, then one transform per view."""
    transform = create_transform(
        SIZE, is_training=True, auto_augment=AUGMENT, re_prob=0.25, interpolation="bicubic", use_prefetcher=True
    )
    for data in images:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        for _ in range(views):
            try:
                transform(image)
            except ValueError as error:  # one view in 600: timm calls posterize with 0 bits, an error in Pillow 13
                assert "bits" in str(error), error


def run_limbeck(images: Sequence[bytes], views: int) -> None:
    """Limbeck's pipeline, in the order of ViewReader: decode all images of a read request once.

    Then for each seed draw all views, and render and digest each.
    """
    decoded = [decode(data) for data in images]
    for seed in range(views):
        drawn = [draw_view(POLICY, seed, f"{n:08d}", *image.shape[:2]) for n, image in enumerate(decoded)]
        for image, view in zip(decoded, drawn, strict=True):
            digest(render(image, view, SIZE))


PIPELINES = {"timm": run_timm, "limbeck": run_limbeck}


def run_worker(name: str, images: Sequence[bytes], pipe: Connection) -> None:
    """Worker process: receives views per decode, runs the pipeline, sends CPU microseconds per view; 0 ends it."""
    work = PIPELINES[name]
    torch.set_num_threads(1)
    for number, views in enumerate(iter(pipe.recv, 0)):
        random.seed(number), np.random.seed(number), torch.manual_seed(number)
        pipe.send(cpu_microseconds(lambda views=views: work(images, views), len(images) * views))


def cpu_microseconds(work: Callable[[], object], times: int) -> float:
    """CPU microseconds of `work` divided by `times`."""
    start = time.thread_time()
    work()
    return (time.thread_time() - start) / times * 1e6


def measure(images: Sequence[bytes], rounds: int) -> dict[tuple[str, int], list[float]]:
    """CPU us per view, by pipeline and views per decode: one value for each round."""
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name in PIPELINES:
        pipes[name], theirs = context.Pipe()
        context.Process(target=run_worker, args=(name, images, theirs), daemon=True).start()
    times: dict[tuple[str, int], list[float]] = {(name, k): [] for name in PIPELINES for k in VIEWS_PER_DECODE}
    for number in range(rounds + 1):
        for name, views in times:
            pipes[name].send(views)
            taken = pipes[name].recv()
            if number:  # the first round is warm-up
                times[name, views].append(taken)
    for pipe in pipes.values():
        pipe.send(0)
    return times


def after_decode(one: Sequence[float], many: Sequence[float]) -> list[float]:
    """CPU us per view without its decode, by round. one, many: with each number of VIEWS_PER_DECODE."""
    fewest, most = VIEWS_PER_DECODE
    return [(most * b - fewest * a) / (most - fewest) for a, b in zip(one, many, strict=True)]


def overheads(rounds: int) -> dict[str, float]:
    """CPU us per view of the parts that replay adds (drawing, digest, drawing the mix); minimum of the rounds."""
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    work: dict[str, Callable[[], object]] = {
        "drawing the view": lambda: [
            draw_view(POLICY, seed, "n01440764_10026", 375, 500) for seed in range(SHARD_ROWS)
        ],
        "digest": lambda: [digest(pixels) for _ in range(SHARD_ROWS)],
        f"drawing the mix of a shard of {SHARD_ROWS} rows": lambda: (
            draw_mix(POLICY, 3, 7, SHARD_ROWS).fingerprints
        ),
    }
    return {name: min(cpu_microseconds(one, SHARD_ROWS) for _ in range(4 * rounds)) for name, one in work.items()}


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    images = load_photos(options.photos, options.count)
    times = measure(images, options.rounds)
    print(f"{platform.machine()}, {len(images)} photos, {options.rounds} rounds, view version {VIEW_VERSION}")
    for (name, views), taken in times.items():
        label = f"{name}, {views} per decode"
        print(f"{label:40} {statistics.median(taken):7.0f} us per view ({min(taken):.0f} to {max(taken):.0f})")
    for views in VIEWS_PER_DECODE:
        for theirs in sorted({1, views}):
            ratios = [a / b for a, b in zip(times["timm", theirs], times["limbeck", views], strict=True)]
            print(
                f"limbeck, {views} per decode, against timm, {theirs} per decode: {statistics.median(ratios):.2f}"
                f" ({min(ratios):.2f} to {max(ratios):.2f})"
            )
    after = {name: after_decode(*(times[name, views] for views in VIEWS_PER_DECODE)) for name in PIPELINES}
    parts = overheads(options.rounds)
    for name, taken in parts.items():
        print(f"{name:40} {taken:7.1f} us per view")
    print(f"{'total':40} {sum(parts.values()):7.1f} us per view")
    shares = [ours / theirs for ours, theirs in zip(after["limbeck"], after["timm"], strict=True)]
    print(
        f"after the decode: limbeck {statistics.median(after['limbeck']):.0f} us, timm "
        f"{statistics.median(after['timm']):.0f} us per view; limbeck's share of timm's time "
        f"{statistics.median(shares):.3f} ({min(shares):.3f} to {max(shares):.3f})"
    )


if __name__ == "__main__":
    main()
