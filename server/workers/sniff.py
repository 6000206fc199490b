"""Check the type and size of an image by its header, before memory is allocated for its pixels."""

import warnings

from PIL import Image

from server.errors import ImageSizeError
from teacher_cache.errors import ImageError
from teacher_cache.views.formats import open_image

Image.init()  # load Pillow's plugins before forking

MAX_SCANNED_PIXELS = 4_000_000_000
"""Limit of pixels times scans of a JPEG, some seconds of decoding. A progressive JPEG has about 12 scans."""
_START_OF_SCAN = b"\xff\xda"


def check(image: bytes, max_pixels: int) -> None:
    """Check an image's header.

    Raises ImageError if it is not an image, ImageTypeError if its type is unsupported, ImageSizeError if it has
    too many pixels or scans.
    """
    kind, width, height = _read_header(image)
    if min(width, height) < 1:
        raise ImageError(f"the image has {width} x {height} pixels; both must be at least 1")
    if width * height > max_pixels:
        raise ImageSizeError(f"the image has {width} x {height} pixels; the maximum is {max_pixels:,} pixels")
    if kind == "JPEG" and (scans := image.count(_START_OF_SCAN)) * width * height > MAX_SCANNED_PIXELS:
        raise ImageSizeError(
            f"the JPEG has {scans} scans of {width} x {height} pixels; send it as a baseline JPEG"
        )


def _read_header(image: bytes) -> tuple[str, int, int]:
    """Type, width and height, from the Pillow plugin that would decode it: some files match several types."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow only warns up to twice its limit; `check` has our limit
            with open_image(image) as opened:
                return opened.format or "", *opened.size
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageSizeError("the image has too many pixels; send a smaller image") from None
    except Exception:  # Pillow's parsers raise many exceptions for invalid data
        raise ImageError("the image's header is truncated or damaged; send the complete file") from None
