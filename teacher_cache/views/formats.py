"""The types of images that may be opened, by content: names of files do not matter."""

from functools import cache
from io import BytesIO

from PIL import AvifImagePlugin, Image, UnidentifiedImageError

from teacher_cache.errors import ImageError, ImageTypeError

FORMATS = (
    *("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM"),
    *("ICO", "PSD", "QOI", "DDS", "SGI", "SUN", "PCX", "TGA"),
)
"""Still images. Pillow opens others, some with rarely used parsers, and EPS and WMF with external programs. TGA is
last, because it has no signature."""
HEIF = "HEIF"
MAX_ICON_SIDE = 1024
_ADVICE = "convert it to JPEG, PNG or WebP"

_SIGNATURES = {
    b"%!PS": "EPS",
    b"\xc5\xd0\xd3\xc6": "EPS",
    b"%PDF": "PDF",
    b"\xd7\xcd\xc6\x9a": "WMF",
    b"\0\0\1\xba": "MPEG",
    b"\0\0\1\xb3": "MPEG",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"SIMPLE  =": "FITS",
    b"\x1aE\xdf\xa3": "Matroska",
    b"PF\n": "color PFM",
}
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ICON, _CURSOR, _PNG = b"\0\0\1\0", b"\0\0\2\0", b"\x89PNG\r\n\x1a\n"
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_XML_BYTES = 4096  # that are searched for <svg


AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # parallelism is across workers


def open_image(data: bytes) -> Image.Image:
    """Open an image without decoding its pixels.

    Raises ImageTypeError if its type is known but not supported, and ImageError if it is unknown. If the header is
    damaged, Pillow's plugins raise many other exceptions.
    """
    kind = _unsupported_type(data)
    if kind:
        raise ImageTypeError(f"{kind} images are not supported; {_ADVICE}")
    if data.startswith(_ICON):
        _check_icon(data)
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
            return _open_heif(data)
        if data.startswith(_TIFF):
            raise ImageError(
                "cannot be decoded: the TIFF is incomplete or has unsupported pixels (floats in color, 64 bits, "
                "unusual channels); save it with 8 bits for each of red, green and blue"
            ) from None
        if data[4:8] == b"ftyp":
            raise ImageTypeError(f"ISO media is not an image of a supported type; {_ADVICE}") from None
        raise ImageError(f"not an image of a known type ({len(data)} bytes); {_ADVICE}") from None


def _unsupported_type(data: bytes) -> str:
    """The name of a known type that is not supported; "" for other data."""
    text = data[:_XML_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n")
    if b"<svg" in text and text[:1] == b"<":
        return "SVG"
    if text.startswith((b"<?xml", b"<!--")):
        return "XML"
    if data.startswith(_CURSOR) and data[4:6] != b"\0\0":
        return "CUR"
    return next((name for signature, name in _SIGNATURES.items() if data.startswith(signature)), "")


def _open_heif(data: bytes) -> Image.Image:
    if not _has_heif():
        raise ImageTypeError(f"HEIC images need pillow-heif: pip install 'limbeck[heif]', or {_ADVICE}")
    try:
        return Image.open(BytesIO(data), formats=(HEIF,))
    except UnidentifiedImageError:
        raise ImageError("cannot be decoded: the HEIC image is damaged") from None


@cache
def _has_heif() -> bool:
    """Whether pillow-heif is installed; then it is registered as a plugin of Pillow."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.options.DECODE_THREADS = 1
    pillow_heif.register_heif_opener()
    return True


def _check_icon(data: bytes) -> None:
    """Raise ImageError for a large image in an icon: Pillow reports the size in the icon's directory instead."""
    for entry in range(6, 6 + 16 * int.from_bytes(data[4:6], "little"), 16):
        start = int.from_bytes(data[entry + 12 : entry + 16], "little")
        header = data[start : start + 24]
        if header.startswith(_PNG):
            sides = [int.from_bytes(header[place : place + 4]) for place in (16, 20)]
        else:
            sides = [abs(int.from_bytes(header[place : place + 4], "little", signed=True)) for place in (4, 8)]
        if max(sides) > 2 * MAX_ICON_SIDE:  # the height of a bitmap includes its mask
            raise ImageError(f"the icon has an image of {sides[0]} x {sides[1]} pixels; {_ADVICE}")
