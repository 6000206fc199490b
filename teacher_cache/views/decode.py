"""Decode an encoded image into pixels."""

import zlib
from collections.abc import Callable
from io import BytesIO

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

from teacher_cache.errors import ImageError
from teacher_cache.views.formats import open_image
from teacher_cache.views.pixel_range import Storage, check_color, check_sign, gray_of, storage_of

Pixels = NDArray[np.uint8]
"""(H, W, 3) RGB, unless a docstring states another shape."""

_ORIENTATION = 0x0112
_TO_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda image: np.ascontiguousarray(image[:, ::-1]),
    3: lambda image: np.ascontiguousarray(image[::-1, ::-1]),
    4: lambda image: np.ascontiguousarray(image[::-1]),
    5: lambda image: np.ascontiguousarray(image.transpose(1, 0, 2)),
    6: lambda image: np.ascontiguousarray(image[::-1].transpose(1, 0, 2)),
    7: lambda image: np.ascontiguousarray(image[::-1, ::-1].transpose(1, 0, 2)),
    8: lambda image: np.ascontiguousarray(image[:, ::-1].transpose(1, 0, 2)),
}
"""EXIF orientation -> the function that makes an image upright; orientation 1 is upright."""
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PLAIN_PNG_TYPES = (b"\x08\x00", b"\x08\x02")  # 8 bits, gray or RGB: all decoders return the same pixels

cv2.setNumThreads(0)  # views are small; parallelism is across workers


def decode(data: bytes, min_side: int = 0) -> Pixels:
    """Decode any image into (H, W, 3) uint8 RGB, upright by its EXIF orientation.

    Gray, palette and CMYK images are converted to RGB, alpha is dropped (as timm does). Pixels of more than 8 bits
    are scaled to 8. The type is that of the content, one of `formats.FORMATS`, or HEIC with pillow-heif.
    min_side: a JPEG may be decoded at a fraction of its size, with both sides at least min_side; 0: full size.
    Raises ImageError if the bytes are not a complete image of such a type, or if it is not certain which value of
    its pixels is white.
    """
    if data[:2] == b"\xff\xd8":
        try:
            _, _, colorspace, _ = simplejpeg.decode_jpeg_header(data)
            if colorspace != "CMYK":
                orientation = _orientation(data) if b"Exif\0\0" in _jpeg_header(data) else 1
                pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=min_side, min_width=min_side)
                return _TO_UPRIGHT[orientation](pixels) if orientation in _TO_UPRIGHT else pixels
        except ValueError:
            pass  # Pillow decodes some files that libjpeg-turbo warns about, and has better error messages
    elif data.startswith(_PNG_SIGNATURE) and data[24:26] in _PLAIN_PNG_TYPES and _is_plain_png(data):
        try:
            pixels_or_none = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        except cv2.error:  # too many pixels; Pillow has the better message
            pixels_or_none = None
        if pixels_or_none is not None:
            return np.asarray(pixels_or_none, dtype=np.uint8)
    return _decode_with_pillow(data)


def _orientation(jpeg: bytes) -> int:
    try:
        with Image.open(BytesIO(jpeg), formats=("JPEG",)) as opened:
            return int(opened.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow may raise anything on malicious bytes; _decode_with_pillow reports the cause
        raise ValueError from None


def _is_plain_png(png: bytes) -> bool:
    """Whether all CRCs are correct and no chunk sets an orientation or transparency.

    The CRCs are checked here because libpng prints to standard error.
    """
    position = len(_PNG_SIGNATURE)
    while position < len(png):
        end = position + 12 + int.from_bytes(png[position : position + 4])
        kind, crc = png[position + 4 : position + 8], png[end - 4 : end]
        if kind in (b"eXIf", b"tRNS") or zlib.crc32(png[position + 4 : end - 4]) != int.from_bytes(crc):
            return False
        if kind == b"IEND":
            return True
        position = end
    return False


def _jpeg_header(data: bytes) -> bytes:
    """The segments before the first scan; all bytes if the segments cannot be parsed."""
    position = 2
    while data[position : position + 1] == b"\xff" and data[position + 1 : position + 2] != b"\xda":
        position += 2 + max(int.from_bytes(data[position + 2 : position + 4]), 2)
    return data[:position] if data[position : position + 2] == b"\xff\xda" else data


def _decode_with_pillow(data: bytes) -> Pixels:
    try:
        with open_image(data) as opened:
            storage = storage_of(opened, data)
            upright = opened.getexif().get(_ORIENTATION, 1) == 1
            return _to_rgb(opened if upright else ImageOps.exif_transpose(opened), storage, data)
    except ImageError:
        raise
    except Exception as error:  # a decoder may raise anything on malicious bytes
        reason = " ".join(str(error).split())
        raise ImageError(f"cannot be decoded: {reason}; is the file of {len(data):,} bytes complete?") from None


def _to_rgb(image: Image.Image, storage: Storage, data: bytes) -> Pixels:
    check_sign(storage)
    if image.mode.startswith(("I", "F")):  # Pillow would clip, not scale
        return np.repeat(gray_of(image, storage)[:, :, None], 3, axis=2)
    if image.mode == "LAB":
        raise ImageError("has colors in CIELAB, which cannot be converted; convert it to RGB")
    if (image.mode == "P" and "transparency" in image.info) or image.mode == "La":
        image = image.convert("RGBA" if image.mode == "P" else "LA")
    pixels = np.array(image.convert("RGB"))
    if image.mode != "CMYK":
        check_color(pixels, storage, data)
    return pixels
