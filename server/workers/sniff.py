"""Check the type and size of an image by its header, before memory is allocated for its pixels."""

import warnings
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from server.errors import ImageSizeError, ImageTypeError
from teacher_cache.errors import ImageError

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Supported types. Pillow opens others, some with rarely used parsers, and EPS by running Ghostscript."""

Image.init()  # load Pillow's plugins before forking

MAX_SCANNED_PIXELS = 4_000_000_000
"""Limit of pixels times scans of a JPEG, some seconds of decoding. A progressive JPEG has about 12 scans."""
_START_OF_SCAN = b"\xff\xda"

_ADVICE = "send JPEG, PNG or WebP"

_SIGNATURES = {
    b"%!PS": "EPS",
    b"\xc5\xd0\xd3\xc6": "EPS",
    b"%PDF": "PDF",
    b"8BPS": "PSD",
    b"\0\0\1\0": "ICO",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"SIMPLE  =": "FITS",
    b"DDS ": "DDS",
    b"qoif": "QOI",
    b"\x1aE\xdf\xa3": "Matroska",
}
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_XML_BYTES = 4096  # that are searched for <svg


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
            with Image.open(BytesIO(image)) as opened:
                if opened.format in FORMATS:
                    return opened.format, *opened.size
                raise UnidentifiedImageError
    except UnidentifiedImageError:
        if kind := _unsupported_type(image):
            raise ImageTypeError(f"{kind} images are not supported; {_ADVICE}") from None
        raise ImageError(f"the {len(image)} bytes are not an image of a known type; {_ADVICE}") from None
    except Image.DecompressionBombError:
        raise ImageSizeError("the image has too many pixels; send a smaller image") from None
    except Exception:  # Pillow's parsers raise many exceptions for invalid data
        raise ImageError("the image's header is truncated or damaged; send the complete file") from None


def _unsupported_type(image: bytes) -> str:
    """The name of a known type that is not supported; "" if the type is unknown."""
    if image[4:8] == b"ftyp":
        return "HEIC" if image[8:12] in _HEIF_BRANDS else "ISO media"
    text = image[:_XML_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n")
    if b"<svg" in text and text[:1] == b"<":
        return "SVG"
    if text.startswith((b"<?xml", b"<!--")):
        return "XML"
    return next((name for signature, name in _SIGNATURES.items() if image.startswith(signature)), "")
