"""Scale pixels of more than 8 bits to 8, if their range is certain."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from teacher_cache.errors import ImageError

BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
"""TIFF tags."""
WHITE_IS_ZERO, SIGNED = 0, (2,)
"""Values of PHOTOMETRIC and SAMPLE_FORMAT."""
LEAST_SHARE = 1 / 16
"""A range is certain only if the largest value is at least this share of it. 16-bit files with values up to 4095
are mostly from devices of 10 or 12 bits. ImageJ and DICOM viewers stretch them; here they would be black."""
_ADVICE = "scale the pixels to 0..255 and save the image with 8 bits"


@dataclass(frozen=True)
class Storage:
    """How a file stores its pixels, which Pillow's modes do not say.

    raw: Pillow's raw mode. largest: the value of white that the format itself declares; None without it.
    """

    raw: str
    white_is_zero: bool
    is_signed: bool
    largest: int | None

    @property
    def has_16_bits(self) -> bool:
        """Whether channels have 16 unsigned bits."""
        return ";16" in self.raw and not self.is_signed


def storage_of(opened: Image.Image, data: bytes) -> Storage:
    """The storage of an opened image, before its pixels are loaded. data: the bytes of the file."""
    tags: Any = getattr(opened, "tag_v2", {})
    tiles: Any = getattr(opened, "tile", ())
    codec, arguments = (tiles[0][0], tiles[0][3]) if tiles else ("", "")
    raw = str(arguments if isinstance(arguments, str) or not arguments else arguments[0])
    largest = 4095 if tags.get(BITS_PER_SAMPLE) == (12,) else None
    if codec == "ppm":  # Pillow has scaled the values by the maximum in the header
        raw, largest = (f"{raw};16", None) if arguments[1] == 65535 else (raw, 65535)
    elif opened.format == "PNG" and ";16" in raw and b"sBIT" in data.partition(b"IDAT")[0]:
        largest = 65535  # sBIT: values of fewer bits have been scaled to 16
    elif codec == "SGI16":
        raw = f"{opened.mode};16B"
    return Storage(raw, tags.get(PHOTOMETRIC) == WHITE_IS_ZERO, tags.get(SAMPLE_FORMAT) == SIGNED, largest)


def gray_of(image: Image.Image, storage: Storage) -> NDArray[np.uint8]:
    """(H, W) pixels of an image of mode I, I;16 or F, scaled to 0..255.

    The range is 0..1 (floats), 0..255 or 0..65535. Raises ImageError if it is not certain.
    """
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ImageError(f"has NaN or infinite pixels (mode {image.mode}); replace them, then {_ADVICE}")
    largest = _largest(image.mode, values, storage)
    if largest is None:
        raise ImageError(
            f"has pixels from {values.min():g} to {values.max():g} (mode {image.mode}), and it is not certain "
            f"which value is white; {_ADVICE}"
        )
    gray = np.rint(np.clip(values, 0, largest) * (255.0 / largest)).astype(np.uint8)
    return 255 - gray if storage.white_is_zero else gray


def check_color(pixels: NDArray[np.uint8], storage: Storage, data: bytes) -> None:
    """Raise ImageError if 16-bit channels use too little of their range.

    pixels: as scaled to 8 bits by Pillow. data: the bytes of the file; OpenCV reads its 16-bit values if in doubt.
    """
    largest = int(pixels.max(initial=0))
    if not storage.has_16_bits or storage.largest is not None or largest > 256 * LEAST_SHARE:
        return
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16 or not _use_16_bits(np.atleast_3d(values)[:, :, :3]):
        raise ImageError(
            f"has 16-bit colors ({storage.raw}) up to {256 * largest + 255} of 65535 at most, and it is not "
            f"certain which value is white; {_ADVICE}"
        )


def check_sign(storage: Storage) -> None:
    """Raise ImageError for signed 8-bit pixels, which Pillow reads as unsigned."""
    if storage.is_signed and ";" not in storage.raw:
        raise ImageError(f"has signed 8-bit pixels, and it is not certain which value is white; {_ADVICE}")


def _use_16_bits(values: NDArray[Any]) -> bool:
    """Whether white is certainly 65535 in unsigned 16-bit values: all black, bright, or scaled from 8 bits."""
    return bool(values.max(initial=0) >= LEAST_SHARE * 65536 or (values % 257 == 0).all())


def _largest(mode: str, values: NDArray[np.float64], storage: Storage) -> float | None:
    """The value of white; None if it is not certain."""
    low, high = values.min(initial=0), values.max(initial=0)
    if low < 0:
        return None
    if storage.largest is not None:
        return storage.largest
    if high == 0 or (mode == "F" and LEAST_SHARE <= high <= 1):
        return 1.0
    if storage.has_16_bits:
        return 65535 if _use_16_bits(values) else None
    ranges: tuple[int, ...] = (255, 65535)
    if storage.is_signed and ";16" in storage.raw:
        ranges = (255,)
    is_whole = mode != "F" or bool((values == np.rint(values)).all())
    return next((top for top in ranges if LEAST_SHARE * (top + 1) <= high <= top and is_whole), None)
