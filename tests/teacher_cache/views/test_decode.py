import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageOps
from timm.data import create_transform
from xxhash import xxh3_64_intdigest

from teacher_cache.cache.manifest import PIXEL_LIBRARIES, library_versions
from teacher_cache.errors import ImageError
from teacher_cache.models.spec import MEAN, STD
from teacher_cache.views.decode import Pixels, count_pixels, decode
from teacher_cache.views.eval_transform import center_crop, decode_for_eval
from teacher_cache.views.render import FILL, digest, render
from teacher_cache.views.resize import resize
from teacher_cache.views.view import Erase, View

ORIENTATION = 0x0112


def photo(width: int, height: int) -> Image.Image:
    path = Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")
    return Image.open(path).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def reference(data: bytes) -> Pixels:
    """The image decoded by Pillow."""
    return np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB"))


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def palette(colors: int) -> Image.Image:
    return photo(31, 20).quantize(colors)


PLAIN = {
    "jpeg": encode(photo(53, 37), "JPEG", quality=90),
    "jpeg without subsampling": encode(photo(53, 37), "JPEG", quality=95, subsampling=0),
    "jpeg 4:2:2": encode(photo(53, 37), "JPEG", subsampling=1),
    "progressive jpeg": encode(photo(53, 37), "JPEG", progressive=True),
    "optimized jpeg": encode(photo(53, 37), "JPEG", optimize=True, restart_marker_blocks=2),
    "gray jpeg": encode(photo(53, 37).convert("L"), "JPEG"),
    "cmyk jpeg": encode(photo(53, 37).convert("CMYK"), "JPEG"),
    "rgb jpeg": encode(photo(53, 37), "JPEG", keep_rgb=True),
    "jpeg with a profile": encode(photo(53, 37), "JPEG", icc_profile=bytes(70_000), comment=b"hello"),
    "png": encode(photo(31, 20), "PNG"),
    "png of one pixel": encode(photo(1, 1), "PNG"),
    "gray png": encode(photo(31, 20).convert("L"), "PNG"),
    "gray png with alpha": encode(photo(31, 20).convert("LA"), "PNG"),
    "black and white png": encode(photo(31, 20).convert("1"), "PNG"),
    "png with alpha": encode(photo(31, 20).convert("RGBA"), "PNG"),
    "png with a transparent color": encode(photo(31, 20), "PNG", transparency=(1, 2, 3)),
    "palette png": encode(palette(200), "PNG"),
    "palette png of 4 bits": encode(palette(9), "PNG", bits=4),
    "palette png with transparency": encode(palette(50), "PNG", transparency=3),
    "png with gamma": encode(photo(31, 20), "PNG")[:33]
    + struct.pack(">I4sII", 4, b"gAMA", 20_000, zlib.crc32(b"gAMA" + struct.pack(">I", 20_000)))
    + encode(photo(31, 20), "PNG")[33:],
    "webp": encode(photo(31, 20), "WEBP"),
    "webp with alpha": encode(photo(31, 20).convert("RGBA"), "WEBP", lossless=True),
    "gif": encode(photo(31, 20), "GIF"),
    "bmp": encode(photo(31, 20), "BMP"),
    "tiff": encode(photo(31, 20), "TIFF"),
    "ppm": encode(photo(31, 20), "PPM"),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_every_kind_of_image_decodes_as_pillow_decodes_it(kind: str) -> None:
    pixels = decode(PLAIN[kind])
    assert (pixels == reference(PLAIN[kind])).all()
    assert pixels.shape[2] == 3 and pixels.dtype == np.uint8 and pixels.flags.writeable


@pytest.mark.parametrize("kind", PLAIN)
def test_the_header_has_the_number_of_pixels(kind: str) -> None:
    assert 3 * count_pixels(PLAIN[kind]) == decode(PLAIN[kind]).nbytes
    assert count_pixels(PLAIN[kind][:9]) == 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_images_are_turned_upright(kind: str, orientation: int) -> None:
    data = encode(photo(31, 20), kind, exif=oriented(orientation))
    assert decode(data).shape == ((20, 31, 3) if orientation < 5 else (31, 20, 3))
    assert (decode(data) == reference(data)).all()


def test_an_orientation_behind_a_large_profile_is_found() -> None:
    data = encode(photo(31, 20), "JPEG", exif=oriented(6), icc_profile=bytes(30_000))
    segment = data.index(b"\xff\xe1")
    length = 2 + int.from_bytes(data[segment + 2 : segment + 4])
    exif, rest = data[segment : segment + length], data[:segment] + data[segment + length :]
    table = rest.index(b"\xff\xdb")
    moved = rest[:table] + exif + rest[table:]
    assert moved.index(b"Exif") > 30_000 and decode(moved).shape == (31, 20, 3)
    assert (decode(moved) == reference(moved)).all()


@settings(max_examples=40, deadline=None)
@given(pixels=arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_any_png_decodes_to_its_pixels(pixels: Pixels) -> None:
    assert (decode(encode(Image.fromarray(pixels), "PNG")) == pixels).all()
    assert (decode(encode(Image.fromarray(pixels[:, :, 0]), "PNG")) == pixels[:, :, :1]).all()


SMALL = {
    "png": encode(photo(7, 5), "PNG"),
    "gray png": encode(photo(7, 5).convert("L"), "PNG"),
    "jpeg": encode(photo(24, 17), "JPEG"),
    "progressive jpeg": encode(photo(24, 17), "JPEG", progressive=True),
}


@pytest.mark.parametrize("kind", SMALL)
def test_an_image_cut_anywhere_is_an_error_or_whole(kind: str) -> None:
    data = SMALL[kind]
    whole = decode(data)
    raised = 0
    for cut in range(len(data)):
        try:
            assert (decode(data[:cut]) == whole).all()
        except ImageError as error:
            raised += 1
            assert "\n" not in str(error)
    assert raised > len(data) * 0.8


@pytest.mark.parametrize("kind", SMALL)
def test_a_flipped_bit_gives_what_pillow_gives_or_an_error(kind: str) -> None:
    data = SMALL[kind]
    raised = 0
    for at in range(0, len(data), 1 if len(data) < 300 else 3):
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about the size in the header
            try:
                pixels = decode(bytes(flipped))
            except ImageError:
                raised += 1
                continue
            assert (pixels == reference(bytes(flipped))).all(), at
    assert raised > 10


def huge_png() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"<html>404</html>",
        bytes(1000),
        b"P6 4 4 255\n1",
        huge_png(),
    ],
)
def test_invalid_image_is_one_line_error(data: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert str(caught.value) and "\n" not in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(head=st.sampled_from([b"", *(data[:30] for data in SMALL.values())]), rest=st.binary(max_size=60))
def test_random_bytes_raise_only_image_errors(head: bytes, rest: bytes) -> None:
    with pytest.raises(ImageError):
        decode(head + rest)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_resizing_is_pillows_within_one_step(interpolation: str) -> None:
    image = photo(200, 150)
    resampling = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[interpolation]
    for height, width in ((64, 64), (224, 224), (151, 33), (1, 1)):
        difference = np.abs(
            resize(np.array(image), height, width, interpolation).astype(int)
            - np.asarray(image.resize((width, height), resampling))
        )
        assert difference.mean() <= 0.1 and difference.max() <= 2


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    "size", [(500, 375), (333, 500), (1023, 257), (225, 224), (101, 77), (40, 300), (33, 33), (1, 7)]
)
def test_center_crop_is_timms_eval_transform(size: tuple[int, int], interpolation: str) -> None:
    image = photo(*size)
    for side, crop in ((224, 0.875), (160, 0.95), (33, 0.7), (32, 1.0)):
        transform = create_transform(
            (3, side, side), crop_pct=crop, interpolation=interpolation, mean=(0, 0, 0), std=(1, 1, 1)
        )
        theirs = (255 * transform(image)).round().permute(1, 2, 0).numpy()
        ours = center_crop(np.array(image), side, crop, interpolation)
        assert ours.shape == theirs.shape and ours.flags.c_contiguous
        difference = np.abs(ours - theirs)
        assert difference.mean() <= 0.25 and difference.max() <= 2, (side, crop)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    size=st.integers(1, 40),
    crop=st.floats(0.2, 1.0),
)
def test_center_crop_has_its_size_for_any_image(height: int, width: int, size: int, crop: float) -> None:
    image = np.full((height, width, 3), 7, dtype=np.uint8)
    cropped = center_crop(image, size, crop)
    assert cropped.shape == (size, size, 3) and (cropped == 7).all()


def test_read_only_pixels_give_the_same_view() -> None:
    image = np.array(photo(80, 60))
    frozen = image.copy()
    frozen.flags.writeable = False
    for box in ((0, 0, 60, 80), (5, 0, 40, 80), (3, 4, 50, 60), (0, 0, 32, 32)):  # the first two are contiguous
        view = View(box, "bicubic", hflip=True, vflip=False, ops=(), erase=(Erase((0, 0, 4, 4), "rand", 1),))
        assert (render(frozen, view, 32) == render(image, view, 32)).all()


def test_center_crop_of_a_long_strip_takes_its_middle() -> None:
    strip = np.zeros((2, 40_000, 3), dtype=np.uint8)
    strip[:, 19_990:20_010] = 200
    assert (center_crop(strip, 8, 1.0) == 200).all()
    assert (center_crop(np.ascontiguousarray(strip.transpose(1, 0, 2)), 8, 1.0) == 200).all()


GRAY = np.full((64, 64, 3), 100, dtype=np.uint8)


def erased(*holes: Erase) -> Pixels:
    return render(GRAY, View((0, 0, 64, 64), "bicubic", hflip=False, vflip=False, ops=(), erase=holes), 64)


def test_erasing_touches_its_box_alone() -> None:
    for mode in ("const", "rand", "pixel"):
        pixels = erased(Erase((3, 5, 20, 30), mode, 1))
        hole = np.zeros((64, 64), dtype=bool)
        hole[3:23, 5:35] = True
        assert (pixels[~hole] == 100).all() and (pixels[hole] != 100).any(axis=1).mean() > 0.95
    assert (GRAY == 100).all()


def test_erasing_fills_with_the_mean_one_color_or_noise() -> None:
    whole = (0, 0, 64, 64)
    assert (erased(Erase(whole, "const", 1)) == FILL).all()
    one = erased(Erase(whole, "rand", 1))
    assert (one == one[0, 0]).all() and (one != erased(Erase(whole, "rand", 2))).any()
    noise = erased(Erase(whole, "pixel", 1))
    assert len(np.unique(noise.reshape(-1, 3), axis=0)) > 4000
    assert (noise == erased(Erase(whole, "pixel", 1))).all() and (noise != erased(Erase(whole, "pixel", 2))).any()


def test_noise_is_normal_with_the_channels_mean_and_deviation() -> None:
    noise = erased(Erase((0, 0, 64, 64), "pixel", 3)).reshape(-1, 3)
    lucky = np.array([erased(Erase((0, 0, 1, 1), "rand", seed))[0, 0] for seed in range(500)])
    for pixels, tolerance in ((noise, 0.03), (lucky, 0.1)):
        scaled = (pixels / 255 - MEAN) / STD
        assert abs(scaled.mean(axis=0)).max() < 2 * tolerance  # clipping to 0..255 pulls the tails in
        assert scaled.std(axis=0) == pytest.approx([1, 1, 1], abs=2 * tolerance + 0.05)


def test_a_digest_is_the_low_bits_of_xxh3() -> None:
    pixels = np.asarray(photo(8, 8))
    whole = xxh3_64_intdigest(pixels.tobytes())
    assert digest(pixels) == whole and digest(pixels, 16) == whole % 2**16 and digest(pixels, 32) == whole % 2**32


@settings(max_examples=30, deadline=None)
@given(at=st.integers(0, 8 * 8 * 3 - 1), bit=st.integers(0, 7))
def test_a_digest_changes_with_any_pixel(at: int, bit: int) -> None:
    pixels = np.array(photo(8, 8))
    before = digest(pixels)
    pixels.reshape(-1)[at] ^= 1 << bit
    assert digest(pixels) != before


def test_the_libraries_that_shape_pixels_are_named_with_their_versions() -> None:
    assert library_versions().keys() == set(PIXEL_LIBRARIES)
    assert library_versions()["pillow"] == Image.__version__ and library_versions()["numpy"] == np.__version__


def test_preparing_is_decoding_and_cropping_and_of_large_photos_nearly_so() -> None:
    for width, height in ((500, 375), (992, 992), (1600, 1200)):
        image = encode(photo(width, height), "JPEG", quality=90)
        whole = center_crop(decode(image), 224, 0.9)
        difference = np.abs(decode_for_eval(image, 224, 0.9).astype(int) - whole)
        assert difference.max() == 0 if min(width, height) <= 4 * 248 else 0 < difference.mean() < 0.5
