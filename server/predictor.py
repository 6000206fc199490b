"""Bytes of images to predictions, in a few threads, each image on its own."""

import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO

import torch
from PIL import Image, UnidentifiedImageError

from server.settings import Settings
from student.bundle import Bundle, Prediction
from teacher_cache.errors import ImageError

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""What strangers may send. Pillow opens more, some with parsers hardly used, one (EPS) by running a program."""

_SENDABLE = "send JPEG, PNG or WebP"


class ImageSizeError(ImageError):
    """An image of more pixels than the server takes."""


@dataclass(frozen=True)
class Judged:
    """What became of one image: its Prediction (with B = 1), or what went wrong (ImageError: its bytes)."""

    outcome: Prediction | Exception
    queued_ms: float
    compute_ms: float


class Predictor:
    """Answers for images: decode, forward, fuse, on as many lanes (threads) as the settings say.

    Every image goes through the network alone, so an answer never depends on what is asked beside it. For
    speed the process should call torch.set_num_threads(1): the lanes are the parallelism.
    """

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        self.bundle = bundle
        self._max_pixels = settings.max_pixels
        self._lanes = ThreadPoolExecutor(settings.lanes, thread_name_prefix="lane")

    def predict(self, images: list[bytes], fusion: str = "") -> list[Judged]:
        """Judge encoded images; in their order. fusion: by name; "" is the card's."""
        return [judged.result() for judged in [self.submit(image, fusion) for image in images]]

    def submit(self, image: bytes, fusion: str = "") -> Future[Judged]:
        """As `predict`, for one image, without waiting; the future never raises what an image did."""
        return self._lanes.submit(self._judge, image, fusion, time.perf_counter())

    def probe(self) -> Future[Prediction]:
        """One blank image through a lane and the network: proof that both live, and the warming up."""
        size = self.bundle.card.eval.size
        return self._lanes.submit(self.bundle.predict, torch.zeros(1, size, size, 3, dtype=torch.uint8))

    def close(self) -> None:
        """Finish what the lanes are at; drop what still waits."""
        self._lanes.shutdown(cancel_futures=True)

    def _judge(self, image: bytes, fusion: str, arrived: float) -> Judged:
        began = time.perf_counter()
        outcome: Prediction | Exception
        try:
            self._check_size(image)
            pixels = torch.from_numpy(self.bundle.prepare(image))[None]
            outcome = self.bundle.predict(pixels, fusion)
        except Exception as error:  # whatever it is, it is this image's alone
            outcome = error
        return Judged(outcome, 1000 * (began - arrived), 1000 * (time.perf_counter() - began))

    def _check_size(self, image: bytes) -> None:
        """Refuse by the header, before pixels take memory. Raises ImageSizeError, and ImageError for no image."""
        width, height = _size(image)
        if width * height > self._max_pixels:
            raise ImageSizeError(
                f"{width} x {height} pixels are too many; send at most {self._max_pixels:,} in one image"
            )


def _size(image: bytes) -> tuple[int, int]:
    """Width and height by the header alone. Raises ImageError for what is no image of FORMATS."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow only warns of sizes up to twice its limit; ours is strict
            with Image.open(BytesIO(image)) as opened:
                name, (width, height) = opened.format, opened.size
    except UnidentifiedImageError:
        raise ImageError(f"not an image of a known type ({len(image)} bytes); {_SENDABLE}") from None
    except Image.DecompressionBombError:
        raise ImageSizeError("far too many pixels; send a smaller image") from None
    except Exception as error:  # Pillow's parsers meet hostile bytes with any exception there is
        raise ImageError(f"the header cannot be read ({type(error).__name__}); {_SENDABLE}") from None
    if name not in FORMATS:
        raise ImageError(f"{name} images are not taken; {_SENDABLE}")
    if min(width, height) < 1:
        raise ImageError(f"an image of {width} x {height} pixels is empty")
    return width, height
