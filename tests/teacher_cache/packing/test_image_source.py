import gzip
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal
from unicodedata import normalize

import numpy as np
import pytest
from facts import assert_facts
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from teacher_cache.data.index import IMAGE_SUFFIXES, ShardIndex, load_index
from teacher_cache.data.shards import read_shard
from teacher_cache.errors import ShardError
from teacher_cache.packing.image_source import open_images
from teacher_cache.packing.pack import pack
from teacher_cache.views.decode import decode


def archive(source: Path, path: Path, top: str = "") -> Path:
    files = sorted(file for file in source.rglob("*") if file.is_file())
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
            for file in files:
                zipped.write(file, Path(top) / file.relative_to(source))
    else:
        with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as tar:
            tar.add(source, top or ".")
    return path


def tree(root: Path, *paths: str) -> Path:
    """A folder with tiny images at these paths."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), (len(path), 0, 0)).save(root / path, "PNG")
    return root


def write_idx(folder: Path, stem: str, images: np.ndarray, labels: np.ndarray, zipped: bool = True) -> None:
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
        data = header + array.astype(np.uint8).tobytes()
        path = folder / f"{stem}-{kind}-ubyte{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(data, 1) if zipped else data)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar", "photos.tar.gz", "photos.tgz"])
@pytest.mark.parametrize("top", ["", "wrapped"])
def test_an_archive_packs_as_its_folder_does(
    photos: Path, shards: ShardIndex, tmp_path: Path, name: str, top: str
) -> None:
    pack(archive(photos, tmp_path / name, top), tmp_path / "out", shard_rows=16)
    assert names(tmp_path / "out") == names(Path(shards.folder))
    assert load_index(tmp_path / "out").contents() == shards.contents()


NAME = st.text(st.sampled_from("ab1é_-"), min_size=1, max_size=3)


@settings(max_examples=25, deadline=None)
@given(
    tree=st.dictionaries(st.tuples(NAME, NAME, NAME), st.sampled_from(["jpg", "PNG", "json", "txt"]), min_size=1)
)
def test_any_tree_lists_alike_as_folder_and_archive(
    tree: dict[tuple[str, str, str], str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("tree")
    source = root / "source"
    for (first, second, third), suffix in {("a", "b", "c"): "jpg", ("b", "b", "c"): "jpg", **tree}.items():
        (source / first / second).mkdir(parents=True, exist_ok=True)
        (source / first / second / f"{third}.{suffix}").write_bytes(b"x")
    listings = []
    for name in ("source", "source.zip", "source.tar", "source.tgz"):
        path = source if name == "source" else archive(source, root / name)
        with open_images(path, "", (), root) as images:
            listings.append((images.paths, images.labels, images.classes, images.read(0)))
    assert all(listing == listings[0] for listing in listings)
    assert listings[0][0] == sorted(listings[0][0])


def test_a_damaged_member_of_a_zip_is_a_broken_image(photos: Path, tmp_path: Path) -> None:
    path = archive(photos, tmp_path / "photos.zip")
    with zipfile.ZipFile(path) as zipped:
        info = zipped.getinfo("logo/3.jpg")
    data = bytearray(path.read_bytes())
    data[info.header_offset + 100] ^= 255
    path.write_bytes(data)
    index = pack(path, tmp_path / "out", skip_broken=True)
    assert index.rows == 39 and "logo/3.jpg" in (tmp_path / "out/broken.txt").read_text()


@settings(max_examples=15, deadline=None)
@given(
    images=arrays(np.uint8, array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=7)),
    data=st.data(),
    zipped=st.booleans(),
)
def test_idx_files_keep_every_pixel(
    images: np.ndarray, data: st.DataObject, zipped: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("idx")
    labels = data.draw(arrays(np.uint8, len(images)).filter(lambda found: len(set(found)) > 1))
    write_idx(root, "train", images, labels, zipped)
    index = pack(root, root / "out", shard_rows=3)
    assert index.classes == tuple(str(label) for label in range(int(labels.max()) + 1))
    for number in range(len(index.shards)):
        with tarfile.open(index.url(number)) as tar:
            assert not [name for name in tar.getnames() if name.endswith(".json")]
        for record in read_shard(index, number):
            assert (decode(record.image) == images[int(record.key)][:, :, None]).all()
            assert record.label == labels[int(record.key)]


def test_idx_splits_are_chosen_and_their_classes_named(tmp_path: Path, limbeck: Callable[..., str]) -> None:
    rng = np.random.default_rng(0)
    for stem, rows in (("train", 6), ("t10k", 4)):
        write_idx(tmp_path, stem, rng.integers(0, 256, (rows, 5, 4)), np.arange(rows) % 3)
    names = tmp_path / "names.txt"
    names.write_text("shirt\ncoat\nbag\n")
    limbeck("pack", tmp_path, tmp_path / "out", "--split", "test", "--classes", names)
    assert (
        load_index(tmp_path / "out").classes == ("shirt", "coat", "bag") and load_index(tmp_path / "out").rows == 4
    )
    with pytest.raises(ShardError, match=r"--split train\b.*\btest\b"):
        pack(tmp_path, tmp_path / "none")
    with pytest.raises(ShardError, match=r"\b0\D+2\D+2 class"):
        pack(tmp_path, tmp_path / "none", split="train", classes=("shirt", "coat"))


def test_splits_are_never_packed_as_classes(tmp_path: Path) -> None:
    source = tree(tmp_path / "s", "train/a/1.png", "train/b/1.png", "Val/a/1.png", "Val/b/1.png")
    for whole in (source, archive(source, tmp_path / "s.zip"), archive(source, tmp_path / "s.tgz", "s")):
        with pytest.raises(ShardError, match=r"Val, train.*--split train\b"):
            pack(whole, tmp_path / "none")
        index = pack(whole, tmp_path / whole.name.replace(".", "_"), split="Val")
        assert index.classes == ("a", "b") and index.rows == 2
        with pytest.raises(ShardError, match=r"'test'.*Val, train\b"):
            pack(whole, tmp_path / "none", split="test")


def test_every_split_takes_its_labels_from_the_training_split(tmp_path: Path) -> None:
    source = tree(
        tmp_path / "s", "train/a/1.png", "train/b/1.png", "train/c/1.png", "test/a/1.png", "test/c/1.png"
    )
    index = pack(source, tmp_path / "out", split="test")
    assert index.classes == ("a", "b", "c") and sorted(record.label for record in read_shard(index, 0)) == [0, 2]
    tree(source, "test/d/1.png")
    with pytest.raises(ShardError) as caught:
        pack(source, tmp_path / "none", split="test")
    assert_facts(caught.value, "'d'", "3 classes", "a, b, c", "--classes")
    index = pack(source, tmp_path / "named", split="test", classes=("d", "c", "b", "a"))
    assert sorted(record.label for record in read_shard(index, 0)) == [0, 1, 3]


def test_file_manager_leftovers_are_ignored(tmp_path: Path) -> None:
    source = tree(tmp_path / "s", "a/1.png", "b/1.png", "a/._1.png", "__MACOSX/a/1.png", ".thumbs/1.png")
    (source / "README.txt").write_text("hello")
    assert pack(source, tmp_path / "out").rows == 2
    assert pack(archive(source, tmp_path / "s.zip", "s"), tmp_path / "zip").rows == 2


def test_names_need_not_be_utf8(tmp_path: Path) -> None:
    source = tree(tmp_path / "s", "a/1.png", "b/1.png")
    odd = Path(os.fsdecode(os.fsencode(source) + b"/b/\xff.png"))
    odd.write_bytes(b"broken")
    assert pack(source, tmp_path / "out", skip_broken=True).rows == 2
    assert r"b/\xff.png" in (tmp_path / "out/broken.txt").read_text()
    with pytest.raises(ShardError, match="--skip-broken"):
        pack(source, tmp_path / "stopped")


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    source = tree(tmp_path / "s", "a/1.png", "b/1.png")
    (source / "a/2.png").symlink_to("1.png")
    assert pack(source, tmp_path / "out").rows == 3
    assert pack(archive(source, tmp_path / "s.tar"), tmp_path / "tar").rows == 3
    (source / "a/3.png").symlink_to("nothing.png")
    for number, whole in enumerate((source, archive(source, tmp_path / "t.tar"))):
        with pytest.raises(ShardError, match=r"3\.png"):
            pack(whole, tmp_path / str(number))


def no_source(root: Path) -> Path:
    return root / "nothing"


def no_archive(root: Path) -> Path:
    (root / "photos.rar").write_bytes(b"Rar!")
    return root / "photos.rar"


def no_images(root: Path) -> Path:
    (root / "a").mkdir()
    (root / "a/1.txt").write_text("hello")
    return root


def no_class_folders(root: Path) -> Path:
    return tree(root, "1.png", "2.png")


def one_class(root: Path) -> Path:
    return tree(root, "a/1.png", "a/2.png")


def cut_zip(root: Path) -> Path:
    path = archive(tree(root / "s", "a/1.png", "b/1.png"), root / "s.zip")
    path.write_bytes(path.read_bytes()[:-30])
    return path


def cut_tgz(root: Path) -> Path:
    path = archive(tree(root / "s", "a/1.png", "b/1.png"), root / "s.tgz")
    path.write_bytes(path.read_bytes()[:-30])
    return path


def cut_tar(root: Path) -> Path:
    path = archive(tree(root / "s", "a/1.png", "b/1.png"), root / "s.tar")
    path.write_bytes(path.read_bytes()[:2048])
    return path


def flipped_tar(root: Path) -> Path:
    path = archive(tree(root / "s", "a/1.png", "b/1.png"), root / "s.tar")
    data = bytearray(path.read_bytes())
    data[data.index(b"./b/1.png")] ^= 1
    path.write_bytes(data)
    return path


def uneven_idx(root: Path) -> Path:
    write_idx(root, "train", np.zeros((3, 2, 2)), np.zeros(2))
    return root


def cut_idx(root: Path) -> Path:
    write_idx(root, "train", np.zeros((3, 2, 2)), np.arange(3), zipped=False)
    path = root / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    return root


def unlabelled_idx(root: Path) -> Path:
    write_idx(root, "train", np.zeros((3, 2, 2)), np.arange(3))
    (root / "train-labels-idx1-ubyte.gz").unlink()
    return root


def all_broken(root: Path) -> Path:
    tree(root, "a/1.png", "b/1.png")
    for path in root.glob("*/1.png"):
        path.write_bytes(b"broken")
    return root


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (no_source, ["/in/nothing'"]),
        (no_archive, ["/in/photos.rar'", ".zip", ".tar", ".tar.gz", ".tgz"]),
        (no_images, ["/in'", "1 .txt", *IMAGE_SUFFIXES]),
        (no_class_folders, ["/in/1.png'", "class"]),
        (one_class, ["/in'", "'a'", "2 images", "class 0"]),
        (cut_zip, ["/in/s.zip'", "not a zip file"]),  # text of zipfile; the next ones are of gzip and tarfile
        (cut_tgz, ["/in/s.tgz'", "Compressed file ended before"]),
        (cut_tar, ["/in/s.tar'", "byte 2048"]),
        (flipped_tar, ["/in/s.tar'", "bad checksum", "byte"]),
        (uneven_idx, ["train-images-idx3-ubyte.gz'", "3 images", "train-labels-idx1-ubyte.gz'", "2 labels"]),
        (cut_idx, ["/in/train-images-idx3-ubyte'", "3 dimensions"]),
        (unlabelled_idx, ["/in'", "'train-labels-idx1-ubyte[.gz]'"]),
        (all_broken, ["/out/broken.txt'"]),
    ],
)
def test_invalid_source_is_one_line_error(
    make: Callable[[Path], Path], facts: list[str], tmp_path: Path, limbeck: Callable[..., str]
) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(ShardError) as caught:
        limbeck("pack", make(tmp_path / "in"), tmp_path / "out", "--skip-broken")
    assert_facts(caught.value, *facts)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").glob("*.tar"))
    assert (tmp_path / "out").exists() == (make is all_broken)  # it holds broken.txt


def test_class_folder_without_images_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tree(tmp_path / "s", "train/cat/1.png", "train/dog/1.png", "test/cats/1.png")
    (source / "train" / "owl").mkdir()
    (source / "train" / ".hidden").mkdir()
    assert pack(source, tmp_path / "out", split="train").classes == ("cat", "dog")
    assert_facts(capsys.readouterr().err, f"'{source}/train/owl'", "1 folder")
    with pytest.raises(ShardError) as caught:
        pack(source, tmp_path / "none", split="test")
    assert_facts(caught.value, "'cats'", "cat, dog", "'cat'")


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("asked", ["NFC", "NFD"])
def test_folders_may_be_in_another_normal_form(
    on_disk: Literal["NFC", "NFD"],
    asked: Literal["NFC", "NFD"],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The names of a wrapper, a split, a class and an empty folder are as macOS writes them."""
    paths = [f"été/{split}/{name}/1.png" for split in ("trainé", "testé") for name in ("élan", "owl")]
    source = tree(tmp_path / "s", *(normalize(on_disk, path) for path in paths))
    (source / normalize(on_disk, "été/trainé/fée")).mkdir()
    split = normalize(asked, "trainé")
    index = pack(source, tmp_path / "out", split=split)
    assert index.classes == ("owl", "élan") and index.rows == 2
    err = capsys.readouterr().err
    assert_facts(err, f"'{source}/été/trainé/fée'", "1 folder")
    assert pack(source, tmp_path / "out", split=normalize("NFC", split)).rows == 2  # already complete
    wrapped = tree(tmp_path / "w", *(normalize(on_disk, f"é/{name}/1.png") for name in ("ça", "owl")))
    capsys.readouterr()
    assert pack(wrapped, tmp_path / "wrapped").classes == ("owl", "ça")
    assert "no images" not in capsys.readouterr().err


def test_a_foreign_list_of_broken_images_is_not_overwritten(tmp_path: Path) -> None:
    source, out = tree(tmp_path / "s", "a/1.png", "b/1.png", "b/2.png"), tmp_path / "out"
    (source / "a/2.png").write_bytes(b"broken")
    out.mkdir()
    (out / "broken.txt").write_text("mine")
    for skip_broken in (True, False):
        with pytest.raises(ShardError) as caught:
            pack(source, out, skip_broken=skip_broken)
        assert_facts(caught.value, f"'{out}'", "'broken.txt'")
    assert (out / "broken.txt").read_text() == "mine" and names(out) == {"broken.txt"}
