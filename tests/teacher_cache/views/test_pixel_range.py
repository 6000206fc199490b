"""Pixels of more than 8 bits are scaled if it is certain which value is white; otherwise the image is refused."""

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
from facts import assert_facts
from numpy.typing import NDArray
from PIL import Image

from teacher_cache.errors import ImageError
from teacher_cache.views.decode import decode
from teacher_cache.views.eval_transform import decode_for_eval

with Image.open(Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")) as opened:
    COLOR = np.asarray(opened.convert("RGB").resize((32, 20)))
GRAY = np.asarray(Image.fromarray(COLOR).convert("L"))
"""(20, 32) photo with values from about 5 to 255."""
BLACK_IS_ZERO, WHITE_IS_ZERO = 1, 0
Values = NDArray[np.generic]


def tiff(
    values: Values, photometric: int = BLACK_IS_ZERO, bits: int = 0, data: bytes = b"", alpha: int | None = None
) -> bytes:
    """A TIFF of (H, W) or (H, W, C) values, in their dtype and byte order. data: packed values of `bits` bits."""
    order = ">" if values.dtype.byteorder == ">" else "<"
    sample_format = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    channels = values.shape[2] if values.ndim == 3 else 1
    data, bits, short, long = data or values.tobytes(), bits or 8 * values.dtype.itemsize, 3, 4
    sample_bits = struct.pack(f"{order}{channels}H", *[bits] * channels)
    place = 8 + len(data) + len(sample_bits)
    tags = [
        (256, long, 1, values.shape[1]),
        (257, long, 1, values.shape[0]),
        (258, short, channels, 8 + len(data)),
    ]
    tags += [(259, short, 1, 1), (262, short, 1, photometric), (273, long, 1, 8), (277, short, 1, channels)]
    tags += [(278, long, 1, values.shape[0]), (279, long, 1, len(data)), (339, short, 1, sample_format)]
    if alpha is not None:  # the meaning of the last channel
        tags.insert(-1, (338, short, 1, alpha))
    if channels <= 2:  # these values are in the tag itself
        tags[2] = (258, short, channels, bits if channels == 1 else bits * (1 << 16 | 1))
    directory = struct.pack(order + "H", len(tags))
    for tag, kind, count, value in tags:
        inline = kind == short and count == 1
        directory += struct.pack(order + ("HHIHxx" if inline else "HHII"), tag, kind, count, value)
    start = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(order + "I", place)
    return start + data + sample_bits + directory + bytes(4)


def packed_12_bits(values: Values) -> bytes:
    pairs = values.reshape(-1, 2).astype(int)
    return b"".join(((a << 12) | b).to_bytes(3) for a, b in pairs.tolist())


def png(values: Values) -> bytes:
    return cv2.imencode(".png", values)[1].tobytes()


def pgm(values: Values, white: int) -> bytes:
    return b"P5 %d %d %d\n" % (values.shape[1], values.shape[0], white) + values.astype(">u2").tobytes()


def pfm(values: Values) -> bytes:
    return b"Pf\n%d %d\n-1.0\n" % (values.shape[1], values.shape[0]) + values[::-1].astype("<f4").tobytes()


def times(factor: float, kind: str) -> Values:
    return (GRAY.astype(np.float64) * factor).round(0 if kind[1] != "f" else 6).astype(kind)


TWELVE, SIXTEEN = times(4095 / 255, "<u2"), times(257, "<u2")

CERTAIN: dict[str, bytes] = {
    "16-bit png": png(SIXTEEN),
    "16-bit tiff": tiff(SIXTEEN),
    "16-bit big-endian tiff": tiff(times(257, ">u2")),
    "12-bit tiff": tiff(TWELVE, bits=12, data=packed_12_bits(TWELVE)),
    "16-bit tiff, white is zero": tiff(65535 - SIXTEEN, WHITE_IS_ZERO),
    "8-bit tiff, white is zero": tiff(255 - GRAY, WHITE_IS_ZERO),
    "32-bit tiff with 16-bit values": tiff(times(257, "<i4")),
    "32-bit tiff with 8-bit values": tiff(times(1, "<i4")),
    "unsigned 32-bit tiff with 16-bit values": tiff(times(257, "<u4")),
    "signed 16-bit tiff with 8-bit values": tiff(times(1, "<i2")),
    "float tiff, 0 to 1": tiff(times(1 / 255, "<f4")),
    "big-endian float tiff, 0 to 1": tiff(times(1 / 255, ">f4")),
    "float tiff, 0 to 1, white is zero": tiff(1 - times(1 / 255, "<f4"), WHITE_IS_ZERO),
    "float tiff with 8-bit values": tiff(times(1, "<f4")),
    "float tiff with 16-bit values": tiff(times(257, "<f4")),
    "16-bit pgm": pgm(SIXTEEN, 65535),
    "12-bit pgm": pgm(TWELVE, 4095),
    "10-bit pgm": pgm(times(1023 / 255, "<u2"), 1023),
    "pfm, 0 to 1": pfm(times(1 / 255, "<f4")),
}


@pytest.mark.parametrize("kind", CERTAIN)
def test_a_certain_range_is_scaled_to_8_bits(kind: str) -> None:
    pixels = decode(CERTAIN[kind])
    assert pixels.dtype == np.uint8 and np.abs(pixels.astype(int) - GRAY[:, :, None]).max() <= 1
    rounded = not any(word in kind for word in ("12-bit", "10-bit"))
    assert (pixels == GRAY[:, :, None]).all() or not rounded


DARK = (GRAY // 16).astype("<u2")
"""Values from 0 to 15: of a dark photo of 8 bits."""


def with_sbit(data: bytes, *bits: int) -> bytes:
    """The PNG with a chunk that gives the significant bits of each channel."""
    chunk = b"sBIT" + bytes(bits)
    return data[:33] + struct.pack(">I", len(bits)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (png(DARK * 257), DARK),
        (tiff(DARK * 257), DARK),
        (with_sbit(png(DARK * 256), 12), DARK),
        (png(cv2.merge([DARK * 257] * 3)), DARK),
        (tiff(cv2.merge([DARK * 257] * 3), photometric=2), DARK),
        (with_sbit(png(cv2.merge([DARK * 256] * 3)), 12, 12, 12), DARK),
        (png(cv2.merge([np.full_like(DARK, 4100)] * 3)), np.full_like(GRAY, 16)),
        (png(np.full_like(DARK, 4100)), np.full_like(GRAY, 16)),
    ],
)
def test_a_dark_image_of_a_certain_range_is_scaled(data: bytes, wanted: Values) -> None:
    assert (decode(data) == wanted[:, :, None]).all()


HOUNSFIELD = (times(12, "<i2") - 1024).astype("<i2")
DOUBTFUL: dict[str, tuple[bytes, list[object]]] = {
    "12-bit values in a 16-bit png": (png(TWELVE), [TWELVE.min(), TWELVE.max(), "I;16"]),
    "12-bit values in a 16-bit tiff": (tiff(TWELVE), [TWELVE.max(), "I;16"]),
    "12-bit values in a big-endian 16-bit tiff": (tiff(TWELVE.astype(">u2")), [TWELVE.max(), "I;16"]),
    "12-bit values in a 16-bit pgm": (pgm(TWELVE, 65535), [TWELVE.max()]),
    "12-bit values in a 32-bit tiff": (tiff(TWELVE.astype("<i4")), [TWELVE.max(), "mode I"]),
    "12-bit values in a float tiff": (tiff(TWELVE.astype("<f4")), [TWELVE.max(), "mode F"]),
    "8-bit values in a 16-bit png": (png(times(1, "<u2")), [GRAY.min(), GRAY.max(), "I;16"]),
    "8-bit values in a 16-bit pgm": (pgm(times(1, "<u2"), 65535), [GRAY.max()]),
    "class numbers in a 32-bit tiff": (tiff((GRAY // 20).astype("<i4")), [GRAY.max() // 20]),
    "signed 16-bit tiff": (tiff(times(128, "<i2")), [128 * int(GRAY.max()), "mode I"]),
    "Hounsfield units": (tiff(HOUNSFIELD), [HOUNSFIELD.min(), HOUNSFIELD.max()]),
    "24-bit values in a 32-bit tiff": (tiff(times(65793, "<i4")), ["mode I"]),
    "32-bit values in an unsigned tiff": (tiff(times(16843009, "<u4")), ["mode I"]),
    "8-bit values divided by 65535": (tiff((GRAY / 65535).astype("<f4")), ["to 0.0037", "mode F"]),
    "12-bit values divided by 65535": (tiff((TWELVE / 65535).astype("<f4")), ["0.06", "mode F"]),
    "floats from 0 to 1/257": (pfm((GRAY / 255 / 257).astype("<f4")), ["to 0.0037", "mode F"]),
    "floats around 0": (tiff((GRAY / 255 - 0.5).astype("<f4")), ["-0.4", "mode F"]),
    "floats a little above 1": (tiff((GRAY / 200).astype("<f4")), ["1.2", "mode F"]),
    "temperatures": (tiff((GRAY / 20 + 25.5).astype("<f4")), ["mode F"]),
    "infinite pixels": (tiff(np.where(GRAY > 99, np.inf, GRAY / 255).astype("<f4")), ["mode F", "infinite"]),
    "NaN pixels": (tiff(np.where(GRAY > 99, np.nan, GRAY / 255).astype("<f4")), ["mode F", "NaN"]),
    "pfm above 1": (pfm((GRAY / 100).astype("<f4")), ["mode F"]),
    "signed 8-bit tiff": (tiff((GRAY // 2).astype("i1")), ["signed", 8]),
    "12-bit values in a 16-bit color png": (png((COLOR.astype("<u2") * 16)[:, :, ::-1]), [65535, 16]),
    "8-bit values in a 16-bit color png": (png(COLOR.astype("<u2")), [255, 65535, 16]),
    "12-bit values in a 16-bit color tiff": (tiff(COLOR.astype("<u2") * 16, photometric=2), [65535, 16]),
    "12-bit values in a 16-bit ppm": (
        b"P6 32 20 65535\n" + (COLOR.astype("<u2") * 16).astype(">u2").tobytes(),
        [65535, 16],
    ),
    "CIELAB": (tiff(COLOR, photometric=8), ["CIELAB", "RGB"]),
}


@pytest.mark.parametrize("kind", DOUBTFUL)
@pytest.mark.parametrize("function", [decode, lambda data: decode_for_eval(data, 16, 1.0)])
def test_a_doubtful_range_is_a_one_line_error(kind: str, function: Callable[[bytes], object]) -> None:
    data, facts = DOUBTFUL[kind]
    with pytest.raises(ImageError) as caught:
        function(data)
    assert_facts(caught.value, *facts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        png(np.zeros((4, 4), "<u2")),
        png(np.zeros((4, 4, 3), "<u2")),
        png(np.concatenate([np.zeros((4, 4, 3), "<u2"), np.full((4, 4, 1), 65535, "<u2")], axis=2)),
        tiff(np.zeros((4, 4), "<f4")),
        tiff(np.zeros((4, 4), "<u2")),
        tiff(np.zeros((4, 4, 3), "<u2"), photometric=2),
        b"P6 4 4 65535\n" + bytes(96),
        pgm(SIXTEEN * 0, 4095),
    ],
)
def test_a_black_image_is_black(data: bytes) -> None:
    assert not decode(data).any()


def test_16_bit_colors_keep_their_high_bytes() -> None:
    wide = COLOR.astype("<u2") * 257
    for data in (png(wide[:, :, ::-1]), tiff(wide, photometric=2), tiff(wide.astype(">u2"), photometric=2)):
        assert (decode(data) == COLOR).all()


def test_premultiplied_gray_is_divided_by_its_alpha() -> None:
    opaque = np.stack([GRAY // 2, np.full_like(GRAY, 127)], axis=2)  # the alpha is a half
    data = tiff(opaque, alpha=1)
    assert np.abs(decode(data).astype(int) - GRAY[:, :, None]).max() <= 2


@pytest.mark.parametrize("associated", [0, 1, 2])
def test_alpha_is_dropped(associated: int) -> None:
    pixels = np.concatenate([COLOR, np.full_like(COLOR[:, :, :1], 255)], axis=2)
    assert (decode(tiff(pixels, photometric=2, alpha=associated)) == COLOR).all()


@pytest.mark.parametrize("transform", [0, 2])
def test_cmyk_and_ycck_of_adobe_are_decoded_like_pillow(transform: int) -> None:
    """The byte after "Adobe" and its flags says whether the first three of the four channels are YCbCr."""
    file = BytesIO()
    channels = [*Image.fromarray(255 - COLOR).split(), Image.fromarray(GRAY // 3)]
    Image.merge("CMYK", channels).save(file, "JPEG", quality=95)
    data = bytearray(file.getvalue())
    data[data.index(b"Adobe") + 11] = transform
    with Image.open(BytesIO(data)) as image:
        wanted = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(decode(bytes(data)) - wanted).max() <= 2 and wanted.std() > 10  # rounded twice
