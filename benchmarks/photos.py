"""Prepare large photos for a network: the server's decode and preparation compared with Pillow's resize and crop.

    python benchmarks/photos.py [--rounds 7]

For each size, one synthetic JPEG is prepared for 224 px (crop 0.9) on one thread, the two pipelines alternating.
Prints the median CPU milliseconds of each, the speed-up, and the mean and largest difference of the pixel values
(0 to 255).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from io import BytesIO

import numpy as np
import torch
from PIL import Image

from teacher_cache.rng import generator
from teacher_cache.views.decode import Pixels
from teacher_cache.views.eval_transform import decode_for_eval

SIZES = ((500, 375), (1920, 1440), (4000, 3000))
SIDE, CROP = 224, 0.9


def make_photo(width: int, height: int) -> bytes:
    """A JPEG with structure at all scales and a little noise, as in a photo."""
    rng, pixels = generator("photo", width), np.zeros((height, width, 3), np.float32)
    for cells in (4, 16, 64, 256):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        pixels += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / 4
    pixels += rng.normal(0, 4, pixels.shape)
    file = BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def prepare_with_pillow(data: bytes) -> Pixels:
    """Decode, resize and crop with Pillow, as torchvision and timm do: (224, 224, 3) uint8."""
    image = Image.open(BytesIO(data)).convert("RGB")
    short = int(SIDE / CROP)
    width, height = (short * side // min(image.size) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((image.width - SIDE) / 2), round((image.height - SIDE) / 2)
    return np.asarray(image.crop((left, top, left + SIDE, top + SIDE)))


def cpu_milliseconds(pipeline: Callable[[], Pixels]) -> float:
    start = time.process_time()
    pipeline()
    return 1000 * (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="runs of each pipeline")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    for width, height in SIZES:
        photo = make_photo(width, height)
        pipelines = (partial(prepare_with_pillow, photo), partial(decode_for_eval, photo, SIDE, CROP))
        expected, actual = (pipeline().astype(int) for pipeline in pipelines)
        times = [[cpu_milliseconds(pipeline) for pipeline in pipelines] for _ in range(rounds)]
        pillow, server = (statistics.median(column) for column in zip(*times, strict=True))
        difference = np.abs(expected - actual)
        print(
            f"{width} x {height}: Pillow {pillow:.1f} ms, server {server:.1f} ms, {pillow / server:.1f}x; "
            f"pixels differ by {difference.mean():.2f} on average and by at most {difference.max()}"
        )


if __name__ == "__main__":
    main()
