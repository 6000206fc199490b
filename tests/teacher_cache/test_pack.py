import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from teacher_cache.errors import ShardError
from teacher_cache.pack import pack
from teacher_cache.pixels import decode
from teacher_cache.shards import Record, ShardIndex, load_index, read_shard
from teacher_cache.source import open_images


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def records(index: ShardIndex) -> list[Record]:
    return [record for number in range(len(index.shards)) for record in read_shard(index, number)]


def metadata(index: ShardIndex) -> dict[str, dict[str, object]]:
    """The .json member of each sample, by key."""
    found = {}
    for number in range(len(index.shards)):
        with tarfile.open(index.url(number)) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file and member.name.endswith(".json"):
                    found[member.name.removesuffix(".json")] = json.load(file)
    return found


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


def write_idx(folder: Path, stem: str, images: np.ndarray, labels: np.ndarray, zipped: bool = True) -> None:
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
        data = header + array.astype(np.uint8).tobytes()
        path = folder / f"{stem}-{kind}-ubyte{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(data, 1) if zipped else data)


def test_the_same_images_give_the_same_bytes(photos: Path, shards: ShardIndex, tmp_path: Path) -> None:
    again = pack(photos, tmp_path / "out", shard_rows=16)
    assert contents(tmp_path / "out") == contents(Path(shards.folder))
    assert again.contents() == shards.contents()
    assert [shard.rows for shard in shards.shards] == [16, 16, 8]
    assert shards.classes == ("hopper", "logo", "parcel")


def test_files_lie_in_the_shards_byte_for_byte(photos: Path, shards: ShardIndex) -> None:
    facts = metadata(shards)
    seen = set()
    for record in records(shards):
        path = photos / str(facts[record.key]["filename"])
        assert record.image == path.read_bytes()
        assert facts[record.key]["class"] == shards.classes[record.label] == path.relative_to(photos).parts[0]
        seen.add(path)
    assert len(seen) == shards.rows == 40


def test_keys_number_the_sorted_paths_and_the_seed_shuffles_them(photos: Path, tmp_path: Path) -> None:
    paths = sorted(str(path.relative_to(photos)) for path in photos.rglob("*") if path.suffix not in ("", ".json"))
    orders = []
    for seed in (1, 2):
        index = pack(photos, tmp_path / str(seed), seed=seed)
        orders.append([record.key for record in records(index)])
        assert {key: facts["filename"] for key, facts in metadata(index).items()} == {
            f"{number:08d}": path for number, path in enumerate(paths)
        }
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]) != orders[0]


def test_a_sidecar_adds_to_the_metadata(shards: ShardIndex) -> None:
    facts = {str(fields["filename"]): fields for fields in metadata(shards).values()}
    assert facts["logo/2.jpg"].keys() == {"from", "class", "filename"} and facts["logo/2.jpg"]["class"] == "logo"
    assert facts["logo/3.jpg"].keys() == {"class", "filename"}


def test_webdataset_reads_the_shards(shards: ShardIndex) -> None:
    with ExitStack() as stack:
        streams = [stack.enter_context(Path(shards.url(number)).open("rb")) for number in range(3)]
        tars = tar_file_expander([{"url": stream.name, "stream": stream} for stream in streams])
        samples = list(group_by_keys(tars))
    assert [sample["__key__"] for sample in samples] == [record.key for record in records(shards)]
    assert [int(sample["cls"]) for sample in samples] == [record.label for record in records(shards)]


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar", "photos.tar.gz", "photos.tgz"])
@pytest.mark.parametrize("top", ["", "wrapped"])
def test_an_archive_packs_as_its_folder_does(
    photos: Path, shards: ShardIndex, tmp_path: Path, name: str, top: str
) -> None:
    pack(archive(photos, tmp_path / name, top), tmp_path / "out", shard_rows=16)
    assert contents(tmp_path / "out").keys() == contents(Path(shards.folder)).keys()
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


ZYGOTE = """
import os, sys
from pathlib import Path
from teacher_cache.pack import pack
for line in sys.stdin:
    source, out = line.strip().split("\\t")
    child = os.fork()
    if child == 0:
        pack(Path(source), Path(out), shard_rows=2, skip_broken=True)
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def packer() -> Iterator[Callable[[Path, Path, int], bool]]:
    """Packs in a process of its own and kills it with SIGKILL once OUT holds so many names; was it killed?"""
    command = [sys.executable, "-c", ZYGOTE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as zygote:
        assert zygote.stdin and zygote.stdout
        stdin, stdout = zygote.stdin, zygote.stdout

        def run(source: Path, out: Path, names: int) -> bool:
            stdin.write(f"{source}\t{out}\n")
            stdin.flush()
            child = int(stdout.readline())
            with suppress(ProcessLookupError):  # it may have ended
                while len(list(out.glob("*"))) < names:
                    os.kill(child, 0)
                    time.sleep(0.0002)
                os.kill(child, signal.SIGKILL)
            return int(stdout.readline()) == signal.SIGKILL

        yield run
        stdin.close()


@pytest.fixture(scope="module")
def spoiled(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos, four of them broken, each in its own way."""
    root = tmp_path_factory.mktemp("spoiled") / "photos"
    shutil.copytree(photos, root)
    whole = (root / "logo/2.jpg").read_bytes()
    (root / "logo/2.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "logo/3.jpg").write_bytes(b"")
    (root / "parcel/4.png").write_bytes(b"<html>404</html>")
    (root / "hopper/2.json").write_text("[1, 2]")
    return root


SPOILED = ["hopper/2.jpg", "logo/2.jpg", "logo/3.jpg", "parcel/4.png"]


def test_killed_and_run_again_it_equals_a_whole_pack(
    spoiled: Path, packer: Callable[[Path, Path, int], bool], tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"
    pack(spoiled, whole, shard_rows=2, skip_broken=True)
    kills = 0
    while packer(spoiled, out, len(list(out.glob("*"))) + 3):
        kills += 1
        assert not (out / "index.json").exists() or load_index(out).rows == 36
    assert kills >= 5
    assert contents(out) == contents(whole)  # shards, index, list of the broken, and nothing left over


def test_a_broken_image_stops_the_pack_by_name(spoiled: Path, tmp_path: Path, limbeck: Callable[..., str]) -> None:
    with pytest.raises(ShardError, match=r"is broken: .*; remove it, or pass --skip-broken") as caught:
        limbeck("pack", spoiled, tmp_path / "out")
    assert any(path in str(caught.value) for path in SPOILED)
    limbeck("pack", spoiled, tmp_path / "out", "--skip-broken")  # what was written before may stay


def test_skipped_images_are_listed_with_their_reason(
    spoiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = pack(spoiled, tmp_path, skip_broken=True)
    listed = dict(line.split("\t") for line in (tmp_path / "broken.txt").read_text().splitlines())
    assert list(listed) == SPOILED and all(listed.values())
    kept = {str(facts["filename"]) for facts in metadata(index).values()}
    assert len(kept) == index.rows == 36 and not kept & set(SPOILED)
    assert "4 broken images are left out" in capsys.readouterr().err


def test_a_shard_of_only_broken_images_is_not_written(spoiled: Path, tmp_path: Path) -> None:
    index = pack(spoiled, tmp_path, shard_rows=1, skip_broken=True)
    assert index.rows == len(index.shards) == 36 and len(list(tmp_path.glob("*.tar"))) == 36


def test_a_damaged_member_of_a_zip_is_a_broken_image(photos: Path, tmp_path: Path) -> None:
    path = archive(photos, tmp_path / "photos.zip")
    with zipfile.ZipFile(path) as zipped:
        info = zipped.getinfo("logo/3.jpg")
    data = bytearray(path.read_bytes())
    data[info.header_offset + 100] ^= 255
    path.write_bytes(data)
    index = pack(path, tmp_path / "out", skip_broken=True)
    assert index.rows == 39 and "logo/3.jpg" in (tmp_path / "out/broken.txt").read_text()


def test_a_finished_pack_says_so_and_changes_nothing(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], limbeck: Callable[..., str]
) -> None:
    told = limbeck("pack", photos, tmp_path / "out", "--shard-rows", 15)
    assert f"packed 40 images of 3 classes into 3 shards (0 MB) in {tmp_path}/out/" in told
    before = contents(tmp_path / "out")
    pack(photos, tmp_path / "out", shard_rows=15)
    assert "is complete" in capsys.readouterr().err
    (tmp_path / "out/000001.tar").unlink()
    pack(photos, tmp_path / "out", shard_rows=15)
    assert contents(tmp_path / "out") == before


def test_a_shard_that_changed_since_is_not_indexed(photos: Path, shards: ShardIndex, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(shards.folder, out)
    shutil.copyfile(out / "000002.tar", out / "000001.tar")
    with pytest.raises(ShardError, match=r"lacks sample .*; remove it and run again"):
        pack(photos, out, shard_rows=16)
    (out / "000001.tar").write_bytes((out / "000002.tar").read_bytes()[:5000])
    with pytest.raises(ShardError, match="is damaged or cut short"):
        pack(photos, out, shard_rows=16)


def test_another_source_or_other_options_need_another_folder(photos: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(photos, source)
    pack(source, tmp_path / "out")
    with pytest.raises(ShardError, match=r"\(shard_rows, seed changed\); choose an empty folder"):
        pack(source, tmp_path / "out", seed=1, shard_rows=7)
    (source / "logo/2.json").write_text("{}")
    with pytest.raises(ShardError, match=r"\(source changed\)"):
        pack(source, tmp_path / "out")


def test_foreign_shards_are_not_overwritten(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "000000.tar").write_bytes(b"mine")
    with pytest.raises(ShardError, match="choose an empty folder"):
        pack(photos, tmp_path)
    assert (tmp_path / "000000.tar").read_bytes() == b"mine"


def test_a_limit_takes_the_first_of_the_shuffle(photos: Path, shards: ShardIndex, tmp_path: Path) -> None:
    index = pack(photos, tmp_path, limit=5)
    assert records(index) == records(shards)[:5] and index.classes == shards.classes


def test_a_size_shrinks_what_is_larger_and_keeps_the_rest(photos: Path, tmp_path: Path) -> None:
    index = pack(photos, tmp_path, size=64)
    facts = metadata(index)
    shrunk = 0
    for record in records(index):
        data = (photos / str(facts[record.key]["filename"])).read_bytes()
        before, after = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(record.image))
        assert after.format == before.format
        if min(before.size) <= 64:
            assert record.image == data
        else:
            shrunk += 1
            assert min(after.size) == 64
            assert after.width * before.height == pytest.approx(after.height * before.width, rel=0.02)
    assert 5 < shrunk < 35


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm"])
def test_every_format_shrinks_into_itself(photos: Path, tmp_path: Path, suffix: str) -> None:
    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        image = Image.open(photos / "hopper/2.jpg").resize((90, 60))
        exif = Image.Exif()
        exif[0x0112] = 6  # lies on its side: upright it is 60 x 90
        options = {"exif": exif} if suffix == "jpg" else {}
        image.save(tmp_path / "in" / name / f"x.{suffix.upper()}", **options)
    upright = decode((tmp_path / f"in/a/x.{suffix.upper()}").read_bytes())
    record = records(pack(tmp_path / "in", tmp_path / "out", size=30))[0]
    assert Image.open(io.BytesIO(record.image)).format == Image.registered_extensions()[f".{suffix}"]
    assert decode(record.image).shape == ((45, 30, 3) if suffix == "jpg" else (30, 45, 3))
    assert abs(decode(record.image).mean((0, 1)) - upright.mean((0, 1))).max() < 5


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
    assert index.classes == tuple(str(label) for label in range(int(labels.max()) + 1)) and not metadata(index)
    for record in records(index):
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
    with pytest.raises(ShardError, match="choose with --split train or test"):
        pack(tmp_path, tmp_path / "none")
    with pytest.raises(ShardError, match="labels run from 0 to 2, which does not fit 2 class names"):
        pack(tmp_path, tmp_path / "none", split="train", classes=("shirt", "coat"))


def tree(root: Path, *paths: str) -> Path:
    """A folder with tiny images at these paths."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), (len(path), 0, 0)).save(root / path, "PNG")
    return root


def test_splits_are_never_packed_as_classes(tmp_path: Path) -> None:
    source = tree(tmp_path / "s", "train/a/1.png", "train/b/1.png", "Val/a/1.png", "Val/b/1.png")
    for whole in (source, archive(source, tmp_path / "s.zip"), archive(source, tmp_path / "s.tgz", "s")):
        with pytest.raises(ShardError, match=r"holds the splits Val, train; choose one, e\.g\. --split Val"):
            pack(whole, tmp_path / "none")
        index = pack(whole, tmp_path / whole.name.replace(".", "_"), split="Val")
        assert index.classes == ("a", "b") and index.rows == 2
        with pytest.raises(ShardError, match=r"no images in split 'test' of .*; its folders are Val, train"):
            pack(whole, tmp_path / "none", split="test")


def test_every_split_takes_its_labels_from_the_training_split(tmp_path: Path) -> None:
    source = tree(
        tmp_path / "s", "train/a/1.png", "train/b/1.png", "train/c/1.png", "test/a/1.png", "test/c/1.png"
    )
    index = pack(source, tmp_path / "out", split="test")
    assert index.classes == ("a", "b", "c") and sorted(record.label for record in records(index)) == [0, 2]
    tree(source, "test/d/1.png")
    with pytest.raises(ShardError, match=r"'d' .* is not among the 3 classes of the training split"):
        pack(source, tmp_path / "none", split="test")
    index = pack(source, tmp_path / "named", split="test", classes=("d", "c", "b", "a"))
    assert sorted(record.label for record in records(index)) == [0, 1, 3]


def test_what_a_file_manager_leaves_behind_is_no_image(tmp_path: Path) -> None:
    source = tree(tmp_path / "s", "a/1.png", "b/1.png", "a/._1.png", "__MACOSX/a/1.png", ".thumbs/1.png")
    (source / "README.txt").write_text("hello")
    assert pack(source, tmp_path / "out").rows == 2
    assert pack(archive(source, tmp_path / "s.zip", "s"), tmp_path / "zip").rows == 2


def test_names_need_not_be_utf8(tmp_path: Path) -> None:
    source = tree(tmp_path / "s", "a/1.png", "b/1.png")
    odd = Path(os.fsdecode(os.fsencode(source) + b"/b/\xff.png"))
    odd.write_bytes(b"broken")
    assert pack(source, tmp_path / "out", skip_broken=True).rows == 2
    assert "b/\\udcff.png" in (tmp_path / "out/broken.txt").read_text()
    with pytest.raises(ShardError, match="is broken"):
        pack(source, tmp_path / "stopped")


def test_links_lead_to_their_images(tmp_path: Path) -> None:
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
    ("make", "told"),
    [
        (no_source, "is not there; check the path"),
        (no_archive, "is no folder and no .zip, .tar, .tar.gz, .tgz archive"),
        (no_images, "no images in"),
        (no_class_folders, "lies in no class folder; make one for each class"),
        (one_class, "every image has the class 0; a classifier needs two classes or more"),
        (cut_zip, "cannot be read (File is not a zip file); fetch it again"),
        (cut_tgz, "cannot be read (Compressed file ended before"),
        (cut_tar, "cannot be read (empty header at byte 1536); fetch it again"),
        (flipped_tar, "cannot be read (bad checksum at byte"),
        (uneven_idx, "must agree, fetch both again"),
        (cut_idx, "is no whole IDX file of 3 dimensions of bytes; fetch it again"),
        (unlabelled_idx, "has no 'train-labels-idx1-ubyte[.gz]'; put it there"),
        (all_broken, "every image is broken; see"),
    ],
)
def test_what_cannot_be_packed_is_told_in_one_line(
    make: Callable[[Path], Path], told: str, tmp_path: Path, limbeck: Callable[..., str]
) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(ShardError) as caught:
        limbeck("pack", make(tmp_path / "in"), tmp_path / "out", "--skip-broken")
    assert told in str(caught.value) and "\n" not in str(caught.value)
    assert not list((tmp_path / "out").glob("*.tar"))


def test_an_out_that_is_a_file_is_told_in_one_line(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ShardError, match=r"'.*/out': File exists; mend that"):
        pack(photos, tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "told"), [("a\n\nb\n", "line 2 is empty"), ("", "is empty"), ("a\na", "'a' twice")]
)
def test_class_names_are_checked(
    photos: Path, tmp_path: Path, text: str, told: str, limbeck: Callable[..., str]
) -> None:
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(ShardError, match=told):
        limbeck("pack", photos, tmp_path / "out", "--classes", tmp_path / "names.txt")
