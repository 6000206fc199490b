"""Images are opened by content, by one function for views, evaluation and serving."""

import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
import pillow_heif
import pytest
from facts import assert_facts
from PIL import Image, ImageOps

from teacher_cache.errors import ImageError, ImageTypeError
from teacher_cache.views.decode import decode
from teacher_cache.views.eval_transform import decode_for_eval

with Image.open(Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")) as opened:
    PHOTO = opened.convert("RGB").resize((64, 48))
PIXELS = np.asarray(PHOTO)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


LOSSLESS = {
    "JPEG2000": encode(PHOTO, "JPEG2000"),
    "PPM": encode(PHOTO, "PPM"),
    "plain PPM": b"P3 64 48 255\n" + b" ".join(b"%d" % value for value in PIXELS.ravel().tolist()),
    "TGA": encode(PHOTO, "TGA"),
    "compressed TGA": encode(PHOTO, "TGA", compression="tga_rle"),
    "ICO": encode(PHOTO, "ICO", sizes=[(64, 48)]),
    "ICO of bitmaps": encode(PHOTO, "ICO", sizes=[(64, 48)], bitmap_format="bmp"),
    "PCX": encode(PHOTO, "PCX"),
    "SGI": encode(PHOTO, "SGI"),
    "QOI": encode(PHOTO, "QOI"),
    "BMP": encode(PHOTO, "BMP"),
    "DDS": encode(PHOTO, "DDS"),
    "TIFF": encode(PHOTO, "TIFF", compression="tiff_lzw"),
    "BigTIFF": encode(PHOTO, "TIFF", big_tiff=True),
    "WEBP": encode(PHOTO, "WEBP", lossless=True),
}
GRAY = {"PGM": encode(PHOTO.convert("L"), "PPM"), "gray JPEG2000": encode(PHOTO.convert("L"), "JPEG2000")}
BILEVEL = {"PBM": encode(PHOTO.convert("1"), "PPM"), "TIFF": encode(PHOTO.convert("1"), "TIFF")}
pillow_heif.register_heif_opener()
LOSSY = {
    "AVIF": encode(PHOTO, "AVIF", quality=95),
    "HEIC": encode(PHOTO, "HEIF", quality=95),
    "MPO": encode(PHOTO, "MPO", quality=95, save_all=True, append_images=[PHOTO]),
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_every_lossless_type_has_its_pixels(kind: str) -> None:
    assert (decode(LOSSLESS[kind]) == PIXELS).all()
    assert (decode_for_eval(LOSSLESS[kind], 48, 1.0) == PIXELS[:, 8:56]).all()


@pytest.mark.parametrize("kind", GRAY)
def test_gray_types_have_their_pixels(kind: str) -> None:
    assert (decode(GRAY[kind]) == np.asarray(PHOTO.convert("L"))[:, :, None]).all()


@pytest.mark.parametrize("kind", BILEVEL)
def test_bilevel_types_are_black_and_white(kind: str) -> None:
    assert (decode(BILEVEL[kind]) == 255 * np.asarray(PHOTO.convert("1"))[:, :, None]).all()


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_types_nearly_have_their_pixels(kind: str) -> None:
    assert np.abs(decode(LOSSY[kind]).astype(int) - PIXELS).mean() < 8


@pytest.mark.parametrize("kind", ["AVIF", "HEIF", "TIFF", "JPEG2000"])
def test_phone_photos_are_upright(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(PHOTO, kind, exif=exif.tobytes())  # pillow-heif also writes HEIF's own rotation, like phones
    upright = np.asarray(PHOTO.transpose(Image.Transpose.ROTATE_270))
    if kind == "JPEG2000":  # Pillow writes no EXIF data into it
        upright = PIXELS
    pixels = decode(data)
    assert pixels.shape == upright.shape and np.abs(pixels.astype(int) - upright).mean() < 8
    with Image.open(BytesIO(data)) as image:
        assert (pixels == np.asarray(ImageOps.exif_transpose(image).convert("RGB"))).all()


REFUSED = {
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    "PDF": encode(PHOTO, "PDF"),
    "WMF": b"\xd7\xcd\xc6\x9a\0\0" + bytes(80),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "CUR": b"\0\0\2\0" + LOSSLESS["ICO of bitmaps"][4:],
    "MPEG": b"\0\0\1\xba" + bytes(12) + b"\x18\0" + bytes(3000),
    "JPEG XL": b"\xff\x0a" + bytes(50),
    "FITS": b"SIMPLE  =                    T".ljust(2880),
    "ISO media": b"\0\0\0\x18ftypisom\0\0\0\0isomavc1" + bytes(100),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_types_are_never_opened(kind: str) -> None:
    with pytest.raises(ImageTypeError) as caught:
        decode(REFUSED[kind])
    assert_facts(caught.value, kind)
    assert "\n" not in str(caught.value)


def test_a_tiff_of_unusual_channels_is_a_one_line_error() -> None:
    channels = struct.pack("<HHII", 277, 3, 1, 3)
    data = encode(PHOTO, "TIFF")
    assert channels in data
    with pytest.raises(ImageError) as caught:
        decode(data.replace(channels, struct.pack("<HHII", 277, 3, 1, 7)))
    assert_facts(caught.value, "TIFF", 8)


@pytest.mark.parametrize("kind", ["AVIF", "HEIC", "MPO"])
def test_a_file_cut_anywhere_is_an_error(kind: str) -> None:
    data = LOSSY[kind]
    raised = 0
    for cut in range(16, len(data), len(data) // 20):
        try:
            decode(data[:cut])
        except ImageError as error:
            raised += 1
            assert "\n" not in str(error)
    assert raised > 5  # the first image of an MPO may be complete


def icon(width: int, height: int) -> bytes:
    """An icon of 16 x 16 pixels by its directory, with a PNG of another size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    chunks = ((struct.pack(">I", len(body)), kind + body) for kind, body in parts)
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        size + chunk + struct.pack(">I", zlib.crc32(chunk)) for size, chunk in chunks
    )
    return b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(png), 22) + png


def test_an_icon_with_a_huge_image_is_refused() -> None:
    with pytest.raises(ImageError) as caught:
        decode(icon(13_000, 12_000))
    assert_facts(caught.value, 13_000, 12_000)
    for damaged in (b"\0\0\1\0", b"\0\0\1\0\xff\xff", LOSSLESS["ICO"][:30]):
        with pytest.raises(ImageError):
            decode(damaged)


WITHOUT_HEIF = """
import sys

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "pillow_heif":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refusing())
from teacher_cache.errors import ImageTypeError
from teacher_cache.views.decode import decode
try:
    decode(sys.stdin.buffer.read())
except ImageTypeError as error:
    print(error)
"""


def test_heic_without_its_package_says_what_to_install() -> None:
    command = [sys.executable, "-c", WITHOUT_HEIF]
    printed = subprocess.run(command, input=LOSSY["HEIC"], stdout=subprocess.PIPE, check=True).stdout.decode()
    assert_facts(printed, "HEIC", "limbeck[heif]", "JPEG")
