import io
from collections import Counter
from pathlib import Path

import pillow_heif
import pytest
from facts import assert_facts
from PIL import Image

from teacher_cache.data.index import IMAGE_SUFFIXES, ShardIndex
from teacher_cache.data.shards import scan_shard
from teacher_cache.data.tar import members
from teacher_cache.errors import ImageTypeError, ShardError
from teacher_cache.packing.file_tree import open_tree
from teacher_cache.packing.image_formats import describe_left_out, member_suffix, split_images, suffix_of
from teacher_cache.packing.pack import pack
from teacher_cache.views.decode import decode
from teacher_cache.views.formats import FORMATS


def encoded(form: str) -> bytes:
    file = io.BytesIO()
    Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 20).convert("RGB").save(file, form)
    return file.getvalue()


JPEG, PNG = encoded("JPEG"), encoded("PNG")
OTHERS = {
    "notes.txt": b"hello",
    "0.json": b"[1, 2]",
    "clip.mp4": b"\0\0\0\x18ftypmp42" + bytes(40),
    "scan.pdf": b"%PDF-1.7",
    "raw.cr2": encoded("TIFF"),
    "raw.NEF": encoded("TIFF"),
    "art.psd": b"8BPS\0\1",
    "art.svg": b"<svg></svg>",
    "labels.mat": b"MATLAB 5.0",
    "Makefile": b"all:\n",
    "empty": b"",
}


def write(root: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def packed_suffixes(index: ShardIndex) -> list[str]:
    """The suffixes of the images in the first shard."""
    names = [name for name, _ in members(Path(index.url(0)).read_bytes())]
    return sorted(name.partition(".")[2] for name in names if not name.endswith((".cls", ".json")))


def test_images_are_recognized_by_suffix_or_content(tmp_path: Path) -> None:
    images = {
        "a/1.jfif": JPEG,
        "a/2.jpe": JPEG,
        "a/3.JPG": JPEG,
        "a/4": PNG,
        "a/5.jpg!large": JPEG,
        "a/6.2024": PNG,
        "a/7": encoded("TIFF"),
        "a/8": encoded("PPM"),
        "a/9.unknown": encoded("WEBP"),
        "a/broken.jpg": b"",
    }
    source = write(tmp_path, images | OTHERS)
    with open_tree(source, tmp_path) as tree:
        found, others = split_images(tree)
    assert sorted(found) == sorted(images)
    assert others == {name: name.partition(".")[2].lower() for name in OTHERS}


EXTENSIONS = Image.registered_extensions()


WRITABLE = {
    f".{suffix}" for suffix in IMAGE_SUFFIXES if EXTENSIONS.get(f".{suffix}") in {*FORMATS} & {*Image.SAVE}
}


@pytest.mark.parametrize("suffix", sorted(suffix[1:] for suffix in WRITABLE))
def test_a_member_has_the_suffix_of_its_content(suffix: str) -> None:
    form = EXTENSIONS[f".{suffix}"]
    data = encoded(form)
    with Image.open(io.BytesIO(data)) as image:
        written = str(image.format)
    for name in (f"x.{suffix}", f"x.{suffix.upper()}", "x.wrong", "x"):
        found = member_suffix(name, data)
        assert found in IMAGE_SUFFIXES and EXTENSIONS[f".{found}"] == written
        assert found in ("jpg", suffix) or name.startswith("x.w") or name == "x"


def test_wrong_suffixes_are_corrected_and_readable(tmp_path: Path) -> None:
    files = {
        "a/1.png": JPEG,
        "a/2.jpg": PNG,
        "b/3": encoded("WEBP"),
        "b/4.jpeg": JPEG,
        "b/5.tiff": encoded("TIFF"),
    }
    index = pack(write(tmp_path / "in", files), tmp_path / "out")
    assert packed_suffixes(index) == ["jpg", "jpg", "png", "tiff", "webp"]
    assert len(list(scan_shard(index.url(0), Path(index.url(0)).read_bytes()))) == 5


def test_a_drawing_with_the_suffix_of_a_photo_is_named() -> None:
    numbers = (1, 0, 0, 0, 3, 0, 1, 0, 1, 8, 3, *(0,) * 7)  # version, 3 channels, 1 x 1 pixel of 8 bits, RGB
    drawing = b"8BPS" + b"".join(number.to_bytes(2) for number in numbers) + bytes(3)
    assert decode(drawing).shape == (1, 1, 3)
    with pytest.raises(ImageTypeError, match="PSD"):
        member_suffix("x.jpg", drawing)


def test_what_is_not_an_image_keeps_its_suffix() -> None:
    assert member_suffix("x.jpg", b"<html>") == "jpg"
    assert member_suffix("x.jpg", JPEG[:40]) == "jpg"
    assert member_suffix("x.png", PNG[:20]) == "png"


def test_heic_is_packed_if_pillow_heif_is_installed(tmp_path: Path) -> None:
    photo = io.BytesIO()
    pillow_heif.from_pillow(Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 20).convert("RGB")).save(photo)
    data = photo.getvalue()
    source = write(tmp_path / "in", {"a/1.HEIC": data, "a/2.jpg": data, "b/1.jpg": JPEG, "b/2": data})
    with open_tree(source, tmp_path) as tree:
        images, others = split_images(tree)
        suffixes = sorted(member_suffix(path, tree.read(path)) for path in images)
    assert suffixes == ["heic", "heic", "heic", "jpg"] and not others
    assert packed_suffixes(pack(source, tmp_path / "out")) == suffixes


def test_files_left_out_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in", {"a/1.jpg": JPEG, "b/1.jpg": JPEG} | OTHERS)
    assert pack(source, tmp_path / "out").rows == 2
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("left out"))
    assert_facts(line, "2 without suffix", "1 .json", "--sidecar", "1 .cr2", "1 .pdf", "1 .mp4")


def test_only_the_chosen_split_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {f"{split}/{name}/1.jpg": JPEG for split in ("train", "test") for name in ("a", "b")}
    source = write(tmp_path / "in", files | {"train/a/1.txt": b"", "test/a/1.xml": b"", "README.md": b""})
    pack(source, tmp_path / "out", split="test")
    err = capsys.readouterr().err
    assert_facts(err, "1 .xml")
    assert ".txt" not in err and ".md" not in err


def test_kinds_of_files_left_out_are_listed_by_count() -> None:
    line = describe_left_out(Counter({"txt": 1, "": 1200, **{f"k{number}": 3 for number in range(14)}}))
    assert_facts(line, "1,200 without suffix, 3 .k0", "10 files")


def test_a_source_without_images_names_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(ShardError) as caught:
        pack(write(tmp_path / "in", {"a/1.mp4": b"", "a/2.mp4": b""}), tmp_path / "out")
    assert_facts(caught.value, "/in'", "2 .mp4")


FLAT = [
    (
        {"train/cat.0.jpg": JPEG, "train/cat.1.jpg": JPEG, "train/dog.0.jpg": JPEG, "train/dog.1.jpg": JPEG},
        ["'train'", "cat, dog"],
    ),
    (
        {
            "images/Beagle_1.jpg": JPEG,
            "images/Beagle_2.jpg": JPEG,
            "images/Pug_1.jpg": JPEG,
            "images/Pug_2.jpg": JPEG,
        },
        ["'images'", "Beagle, Pug"],
    ),
    (
        {"jpg/image_1.jpg": JPEG, "jpg/image_2.jpg": JPEG, "imagelabels.mat": b"MATLAB"},
        ["'jpg'", "imagelabels.mat"],
    ),
    ({"1.jpg": JPEG, "2.jpg": JPEG, "metadata.csv": b"file_name,label"}, ["/in/1.jpg'", "metadata.csv"]),
]


@pytest.mark.parametrize(("files", "facts"), FLAT)
def test_labels_outside_of_folders_are_one_clear_line(
    files: dict[str, bytes], facts: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ShardError) as caught:
        pack(write(tmp_path / "in", files), tmp_path / "out")
    assert_facts(caught.value, *facts)


def test_a_test_split_without_class_folders_is_one_clear_line(tmp_path: Path) -> None:
    files = {"train/n01/images/1.jpg": JPEG, "train/n02/images/1.jpg": JPEG, "val/images/1.jpg": JPEG}
    source = write(tmp_path / "in", files | {"val/val_annotations.txt": b"1.jpg n01"})
    with pytest.raises(ShardError) as caught:
        pack(source, tmp_path / "out", split="val")
    assert_facts(caught.value, "/in/val'", "'images'", "val/val_annotations.txt")


BACKUPS = (
    *("1.jpg~", "1.jpg.~1~", "1.jpg_original", "1.jpg.bak", "1.bak", "1.jpg.orig", "1.orig", "1.JPG.old"),
    *("1.jpg.tmp", "1.jpg.part", "1.jpg.save"),
)


@pytest.mark.parametrize("name", BACKUPS)
def test_a_backup_beside_its_image_is_left_out_and_counted(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = "1.JPG" if "JPG" in name else "1.jpg"
    source = write(tmp_path / "in", {f"a/{original}": JPEG, f"a/{name}": JPEG, "b/1.jpg": JPEG})
    assert pack(source, tmp_path / "out").rows == 2
    assert_facts(capsys.readouterr().err, f"1 .{suffix_of(name)}" if suffix_of(name) else "1 without suffix")
    (source / "a" / original).unlink()  # then it is the image
    assert pack(source, tmp_path / "alone").rows == 2


def test_every_suffix_that_shards_may_have_is_packed(tmp_path: Path) -> None:
    names = [f"{number}.{suffix}" for number, suffix in enumerate(IMAGE_SUFFIXES) if suffix != "psd"]
    with open_tree(write(tmp_path, dict.fromkeys(names, b"")), tmp_path) as tree:
        assert split_images(tree) == (sorted(names), {})


@pytest.mark.parametrize("size", [0, 8])
def test_bitmaps_and_stereo_photos_keep_their_pixels(size: int, tmp_path: Path) -> None:
    files = {"a/1.dib": encoded("BMP"), "b/1.mpo": JPEG, "b/2.dib": encoded("BMP")}
    index = pack(write(tmp_path / "in", files), tmp_path / "out", size=size)
    assert packed_suffixes(index) == (["bmp", "bmp", "jpg"] if size else ["dib", "dib", "jpg"])
    for _, data in members(Path(index.url(0)).read_bytes()):
        if len(data) > 200:
            assert min(decode(data).shape[:2]) == (size or 30)
