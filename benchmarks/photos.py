"""Decoding and preparing large photos, compared with Pillow's resize and crop.

    python benchmarks/photos.py [--rounds 7]

One JPEG per size, prepared for 224 px (crop 0.9), alternating on one thread. Prints the median milliseconds of
both, the speed-up, and the mean and the largest difference of the pixels (of 255).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from io import BytesIO

import numpy as np
import torch
from PIL import Image

from teacher_cache.rng import generator
from teacher_cache.views.decode import Pixels
from teacher_cache.views.eval_transform import prepare

SIZES = ((500, 375), (1920, 1440), (4000, 3000))
SIDE, CROP = 224, 0.9


def make_photo(width: int, height: int) -> bytes:
    """A JPEG of blobs of all sizes, similar to a photo, and some noise."""
    rng, pixels = generator("photo", width), np.zeros((height, width, 3), np.float32)
    for cells in (4, 16, 64, 256):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        pixels += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / 4
    pixels += rng.normal(0, 4, pixels.shape)
    file = BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def prepare_with_pil(data: bytes) -> Pixels:
    """Prepare an image as torchvision and timm do: Pillow's decode, resize and center crop."""
    image = Image.open(BytesIO(data)).convert("RGB")
    short = int(SIDE / CROP)
    width, height = (short * side // min(image.size) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((image.width - SIDE) / 2), round((image.height - SIDE) / 2)
    return np.asarray(image.crop((left, top, left + SIDE, top + SIDE)))


def milliseconds(work: Callable[[], Pixels], rounds: int) -> list[float]:
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - started))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    for width, height in SIZES:
        photo = make_photo(width, height)
        functions = (lambda photo=photo: prepare_with_pil(photo), lambda photo=photo: prepare(photo, SIDE, CROP))
        pil, ours = (way().astype(int) for way in functions)
        times = [[milliseconds(way, 1)[0] for way in functions] for _ in range(rounds)]
        slow, fast = (statistics.median(one) for one in zip(*times, strict=True))
        difference = np.abs(pil - ours)
        print(
            f"{width} x {height}: PIL {slow:.1f} ms, prepare {fast:.1f} ms, {slow / fast:.1f}x; "
            f"pixel difference: mean {difference.mean():.2f}, largest {difference.max()}"
        )


if __name__ == "__main__":
    main()
