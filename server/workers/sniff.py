"""What an image is and how large, by its first bytes: before its pixels take memory."""

import warnings
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from server.errors import ImageSizeError, ImageTypeError
from teacher_cache.errors import ImageError

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""What strangers may send. Pillow opens more, some with parsers hardly used, one (EPS) by running a program."""

Image.init()  # Pillow loads its plugins late

MOST_SCANNED = 4_000_000_000
"""Pixels of a JPEG times its scans: some seconds' work. A progressive one of 50 million has a dozen or so."""
_SCAN = b"\xff\xda"

SENDABLE = "send JPEG, PNG or WebP"

_STARTS = {
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
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_XML_BYTES = 4096


def check(image: bytes, max_pixels: int) -> None:
    """Refuse by the header, before pixels take memory.

    Raises ImageError for no image, ImageTypeError for a type that is not taken, ImageSizeError for too many
    pixels.
    """
    kind, width, height = _header(image)
    if min(width, height) < 1:
        raise ImageError(f"an image of {width} x {height} pixels is empty")
    if width * height > max_pixels:
        raise ImageSizeError(f"{width} x {height} pixels are too many; send at most {max_pixels:,} in one image")
    if kind == "JPEG" and image.count(_SCAN) * width * height > MOST_SCANNED:  # each goes over every pixel
        raise ImageSizeError("the image has too many scans; send it as a baseline JPEG")


def _header(image: bytes) -> tuple[str, int, int]:
    """Type, width and height, by the very plugin of Pillow's that would decode it: some bytes suit several."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow only warns of sizes up to twice its limit; ours is strict
            with Image.open(BytesIO(image)) as opened:
                if opened.format in FORMATS:
                    return opened.format, *opened.size
                raise UnidentifiedImageError
    except UnidentifiedImageError:
        if image[:1] == b"{":
            raise ImageError("this looks like JSON; send it with 'Content-Type: application/json'") from None
        if kind := _foreign(image):
            raise ImageTypeError(f"{kind} images are not taken; {SENDABLE}") from None
        raise ImageError(f"not an image of a known type ({len(image)} bytes); {SENDABLE}") from None
    except Image.DecompressionBombError:
        raise ImageSizeError("far too many pixels; send a smaller image") from None
    except Exception:  # Pillow's parsers meet hostile bytes with any exception there is
        raise ImageError("the image's header is cut short or damaged; send the whole file") from None


def _foreign(image: bytes) -> str:
    """The name of a type that is not taken; "" where it is not known either."""
    if image[4:8] == b"ftyp":
        return "HEIC" if image[8:12] in _HEIF else "ISO media"
    text = image[:_XML_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n")
    if b"<svg" in text and text[:1] == b"<":
        return "SVG"
    if text.startswith((b"<?xml", b"<!--")):
        return "XML"
    return next((name for start, name in _STARTS.items() if image.startswith(start)), "")
