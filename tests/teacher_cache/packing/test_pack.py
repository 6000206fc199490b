import errno
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from facts import assert_facts
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from teacher_cache.data.index import ShardIndex, load_index
from teacher_cache.data.shards import Record, read_shard
from teacher_cache.errors import ShardError
from teacher_cache.packing.pack import pack
from teacher_cache.views.decode import decode


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


def test_the_same_images_give_the_same_bytes(photos: Path, shards: ShardIndex, tmp_path: Path) -> None:
    again = pack(photos, tmp_path / "out", shard_rows=16)
    assert contents(tmp_path / "out") == contents(Path(shards.folder))
    assert again.contents() == shards.contents()
    assert [shard.rows for shard in shards.shards] == [16, 16, 8]
    assert shards.classes == ("hopper", "logo", "parcel")


def test_files_are_packed_byte_for_byte(photos: Path, shards: ShardIndex) -> None:
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


def test_a_sidecar_adds_to_the_metadata(photos: Path, shards: ShardIndex, tmp_path: Path) -> None:
    index = pack(photos, tmp_path, sidecar="json")
    facts = {str(fields["filename"]): fields for fields in metadata(index).values()}
    assert facts["logo/2.jpg"].keys() == {"from", "class", "filename"} and facts["logo/2.jpg"]["class"] == "logo"
    assert facts["logo/3.jpg"].keys() == {"class", "filename"}
    assert all(fields.keys() == {"class", "filename"} for fields in metadata(shards).values())


def two_classes(root: Path, photos: Path, **counts: int) -> Path:
    """A folder with this number of images of each class."""
    for name, count in (counts or {"a": 2, "b": 2}).items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            shutil.copyfile(photos / "logo/3.jpg", root / name / f"{number}.jpg")
    return root


@pytest.mark.parametrize("content", [b"[1, 2]", b"{", b"\xff", b"[" * 100_000, b"7", b""])
def test_only_a_sidecar_that_is_asked_for_is_read(content: bytes, photos: Path, tmp_path: Path) -> None:
    source = two_classes(tmp_path / "in", photos)
    (source / "a/0.json").write_bytes(content)
    assert pack(source, tmp_path / "out").rows == 4
    for number, skip_broken in enumerate((False, True)):  # the image is not broken
        with pytest.raises(ShardError) as caught:
            pack(source, tmp_path / str(number), sidecar="json", skip_broken=skip_broken)
        assert_facts(caught.value, "'a/0.json'", "'a/0.jpg'", "--sidecar")
        assert "\n" not in str(caught.value)


def test_a_sidecar_may_have_the_whole_name_of_the_image(
    photos: Path, tmp_path: Path, limbeck: Callable[..., str]
) -> None:
    source = two_classes(tmp_path / "in", photos)
    (source / "a/0.jpg.json").write_text('{"who": "full"}')
    (source / "a/1.json").write_bytes(b"\xef\xbb\xbf" + b'{"who": "stem"}')
    (source / "a/info.json").write_text("[]")
    output = limbeck("pack", source, tmp_path / "out", "--sidecar", "json")
    found = {
        str(fields["filename"]): fields.get("who") for fields in metadata(load_index(tmp_path / "out")).values()
    }
    assert found == {"a/0.jpg": "full", "a/1.jpg": "stem", "b/0.jpg": None, "b/1.jpg": None}
    assert_facts(output, "2 images of 4", "1 .json")


def test_classes_found_are_printed_and_small_ones_reported(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {"ant": 20, "bee": 21, "cat": 22, "dog": 23, "elk": 24, "fox": 2}
    pack(two_classes(tmp_path / "in", photos, **counts), tmp_path / "out")
    lines = capsys.readouterr().err.splitlines()
    assert_facts(lines[0], "6 classes", "ant, bee, cat, dog, elk", "min 2", "median 21.5", "max 24")
    assert_facts(lines[1], "1 class", "fox (2)", "21.5")
    pack(two_classes(tmp_path / "in2", photos, ant=20, bee=3), tmp_path / "out2")
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_known_classes_need_not_be_present(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two_classes(tmp_path / "in/train", photos, cat=1, dog=1, owl=1)
    two_classes(tmp_path / "in/test", photos, dog=2)
    index = pack(tmp_path / "in", tmp_path / "test", split="test")
    assert index.classes == ("cat", "dog", "owl") and {record.label for record in records(index)} == {1}
    assert_facts(capsys.readouterr().err, "2 classes", "cat, owl")
    index = pack(two_classes(tmp_path / "one", photos, dog=2), tmp_path / "named", classes=("cat", "dog"))
    assert index.classes == ("cat", "dog") and {record.label for record in records(index)} == {1}
    with pytest.raises(ShardError) as caught:
        pack(two_classes(tmp_path / "lone", photos, dog=2), tmp_path / "none", classes=("dog",))
    assert_facts(caught.value, "'dog'", "/lone'")


def test_numbered_folders_are_sorted_by_number_if_asked(
    photos: Path, tmp_path: Path, limbeck: Callable[..., str]
) -> None:
    names = [str(number) for number in range(12)]
    source = two_classes(tmp_path / "in/train", photos, **dict.fromkeys(names, 1)).parent
    two_classes(tmp_path / "in/test", photos, **{"10": 1, "2": 1})
    assert_facts(limbeck("pack", source, tmp_path / "text", "--split", "train"), "--numeric", "class 2", "'10'")
    assert load_index(tmp_path / "text").classes == tuple(sorted(names))
    assert "--numeric" not in limbeck("pack", source, tmp_path / "number", "--split", "train", "--numeric")
    index = pack(source, tmp_path / "test", split="test", numeric=True)
    assert load_index(tmp_path / "number").classes == index.classes == tuple(names)
    assert sorted(record.label for record in records(index)) == [2, 10]
    with pytest.raises(ShardError) as caught:  # the labels would have another meaning
        pack(source, tmp_path / "text", split="train", numeric=True)
    assert_facts(caught.value, "classes", f"{tmp_path}/text")
    (tmp_path / "names.txt").write_text("\n".join(names))
    with pytest.raises(ShardError) as caught:
        limbeck(
            "pack", source, tmp_path / "none", "--split", "train", "--numeric", "--classes", tmp_path / "names.txt"
        )
    assert_facts(caught.value, "--numeric", "--classes")


def as_0_1_0(out: Path, source: Path) -> None:
    """Leave a pack as 0.1.0 would that was killed after its first shard: it read sidecars without being asked."""
    (out / "index.json").unlink()
    for shard in sorted(out.glob("*.tar"))[1:]:
        shard.unlink()
    manifest = json.loads((out / ".pack.json").read_text())
    del manifest["sidecar"]
    paths = sorted(path.relative_to(source).as_posix() for path in source.rglob("*.jpg"))
    states = [
        [[file.stat().st_size, file.stat().st_mtime_ns] if file.exists() else None for file in pair]
        for path in paths
        for pair in [(source / path, (source / path).with_suffix(".json"))]
    ]
    manifest["source"] = hashlib.sha256(json.dumps([paths, states]).encode()).hexdigest()
    (out / ".pack.json").write_text(json.dumps(manifest))


def test_a_pack_of_0_1_0_is_continued(photos: Path, tmp_path: Path) -> None:
    source, out = two_classes(tmp_path / "in", photos), tmp_path / "out"
    pack(source, out, shard_rows=2)
    before = contents(out)
    as_0_1_0(out, source)
    pack(source, out, shard_rows=2)
    assert contents(out) | {".pack.json": b""} == before | {".pack.json": b""}


def test_a_pack_of_0_1_0_with_sidecars_is_continued_with_sidecars(photos: Path, tmp_path: Path) -> None:
    source, out = two_classes(tmp_path / "in", photos), tmp_path / "out"
    (source / "a/0.json").write_text('{"who": "me"}')
    pack(source, out, shard_rows=2, sidecar="json")
    before = contents(out)
    as_0_1_0(out, source)
    with pytest.raises(ShardError) as caught:
        pack(source, out, shard_rows=2)
    assert_facts(caught.value, "source", "0.1.0", "--sidecar json", out)
    pack(source, out, shard_rows=2, sidecar="json")
    assert contents(out) | {".pack.json": b""} == before | {".pack.json": b""}


def test_webdataset_reads_the_shards(shards: ShardIndex) -> None:
    with ExitStack() as stack:
        streams = [stack.enter_context(Path(shards.url(number)).open("rb")) for number in range(3)]
        tars = tar_file_expander([{"url": stream.name, "stream": stream} for stream in streams])
        samples = list(group_by_keys(tars))
    assert [sample["__key__"] for sample in samples] == [record.key for record in records(shards)]
    assert [int(sample["cls"]) for sample in samples] == [record.label for record in records(shards)]


SPOILED = ["logo/2.jpg", "logo/3.jpg", "parcel/4.png"]


def test_a_broken_image_stops_the_pack_by_name(spoiled: Path, tmp_path: Path, limbeck: Callable[..., str]) -> None:
    with pytest.raises(ShardError, match=r"--skip-broken") as caught:
        limbeck("pack", spoiled, tmp_path / "out")
    assert any(path in str(caught.value) for path in SPOILED)
    limbeck("pack", spoiled, tmp_path / "out", "--skip-broken")  # shards written before are kept


def test_skipped_images_are_listed_with_their_reason(
    spoiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = pack(spoiled, tmp_path, skip_broken=True)
    listed = dict(line.split("\t") for line in (tmp_path / "broken.txt").read_text().splitlines())
    assert list(listed) == SPOILED and all(listed.values())
    kept = {str(facts["filename"]) for facts in metadata(index).values()}
    assert len(kept) == index.rows == 37 and not kept & set(SPOILED)
    assert_facts(capsys.readouterr().err, 3, "broken.txt")


def test_a_shard_of_only_broken_images_is_not_written(spoiled: Path, tmp_path: Path) -> None:
    index = pack(spoiled, tmp_path, shard_rows=1, skip_broken=True)
    assert index.rows == len(index.shards) == 37 and len(list(tmp_path.glob("*.tar"))) == 37


def test_rerun_of_a_finished_pack_changes_nothing(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], limbeck: Callable[..., str]
) -> None:
    output = limbeck("pack", photos, tmp_path / "out", "--shard-rows", 15)
    size = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.tar")) / 1000
    assert 100 < size < 999
    assert_facts(output, "40 images", "3 classes", "3 shards", f"{size:.0f} kB", f"{tmp_path}/out")
    before = contents(tmp_path / "out")
    index = tmp_path / "out" / "index.json"
    written = index.stat().st_mtime_ns
    pack(photos, tmp_path / "out", shard_rows=15)
    assert_facts(capsys.readouterr().err, f"{tmp_path}/out", "40 images")
    assert index.stat().st_mtime_ns == written
    (tmp_path / "out/000001.tar").unlink()
    pack(photos, tmp_path / "out", shard_rows=15)
    assert contents(tmp_path / "out") == before


def test_a_shard_that_changed_since_is_not_indexed(photos: Path, shards: ShardIndex, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(shards.folder, out)
    shutil.copyfile(out / "000002.tar", out / "000001.tar")
    with pytest.raises(ShardError) as caught:
        pack(photos, out, shard_rows=16)
    assert_facts(caught.value, "000001.tar", read_shard(shards, 1)[0].key)
    (out / "000001.tar").write_bytes((out / "000002.tar").read_bytes()[:5000])
    with pytest.raises(ShardError, match=r"000001\.tar"):
        pack(photos, out, shard_rows=16)


def test_another_source_or_other_options_need_another_folder(photos: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(photos, source)
    pack(source, tmp_path / "out")
    with pytest.raises(ShardError) as options:
        pack(source, tmp_path / "out", seed=1, shard_rows=7)
    assert_facts(options.value, tmp_path / "out", "shard_rows", "seed")
    (source / "logo/2.jpg").unlink()
    with pytest.raises(ShardError) as other:
        pack(source, tmp_path / "out")
    assert_facts(other.value, tmp_path / "out", "source")
    assert "shard_rows" not in str(other.value)


def test_foreign_shards_are_not_overwritten(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "000000.tar").write_bytes(b"mine")
    with pytest.raises(ShardError, match=rf"'{tmp_path}'.*\.tar\b"):
        pack(photos, tmp_path)
    assert (tmp_path / "000000.tar").read_bytes() == b"mine"
    other = tmp_path / "index_of_urls"
    other.mkdir()
    (other / "index.json").write_text("mine")
    with pytest.raises(ShardError, match=rf"'{other}'.*index\.json"):
        pack(photos, other)
    assert contents(other) == {"index.json": b"mine"}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"source": 1'])
def test_unreadable_record_of_a_pack_is_one_line_error(content: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / ".pack.json").write_text(content)
    with pytest.raises(ShardError) as caught:
        pack(photos, tmp_path)
    assert_facts(caught.value, f"{tmp_path}/.pack.json")
    assert contents(tmp_path) == {".pack.json": content.encode()}


def test_a_pack_with_other_options_is_kept(photos: Path, tmp_path: Path) -> None:
    source = two_classes(tmp_path / "in/x", photos)
    pack(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    options: list[dict[str, Any]] = [
        *({"seed": 1}, {"size": 32}, {"limit": 3}, {"shard_rows": 7}, {"sidecar": "json"}, {"classes": ("b", "a")})
    ]
    for changes in options:
        with pytest.raises(ShardError) as caught:
            pack(source, tmp_path / "out", **changes)
        assert_facts(caught.value, tmp_path / "out", *changes)
        assert contents(tmp_path / "out") == before
    os.utime(source / "a/0.jpg", (1, 1))
    with pytest.raises(ShardError, match="source"):
        pack(source, tmp_path / "out")
    assert contents(tmp_path / "out") == before


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
        exif[0x0112] = 6  # rotated by 90 degrees: upright it is 60 x 90
        options = {"exif": exif} if suffix == "jpg" else {}
        image.save(tmp_path / "in" / name / f"x.{suffix.upper()}", **options)
    upright = decode((tmp_path / f"in/a/x.{suffix.upper()}").read_bytes())
    record = records(pack(tmp_path / "in", tmp_path / "out", size=30))[0]
    assert Image.open(io.BytesIO(record.image)).format == Image.registered_extensions()[f".{suffix}"]
    assert decode(record.image).shape == ((45, 30, 3) if suffix == "jpg" else (30, 45, 3))
    assert abs(decode(record.image).mean((0, 1)) - upright.mean((0, 1))).max() < 5


def test_output_path_that_is_a_file_is_one_line_error(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OSError, match=os.strerror(errno.EEXIST)) as caught:
        pack(photos, tmp_path / "out")
    assert caught.value.filename == f"{tmp_path}/out"


@pytest.mark.parametrize(
    ("text", "facts"), [("a\n\nb\n", ["names.txt", "line 2"]), ("", ["names.txt"]), ("a\na", ["'a'"])]
)
def test_class_names_are_checked(
    photos: Path, tmp_path: Path, text: str, facts: list[str], limbeck: Callable[..., str]
) -> None:
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(ShardError) as caught:
        limbeck("pack", photos, tmp_path / "out", "--classes", tmp_path / "names.txt")
    assert_facts(caught.value, *facts)


def test_an_early_error_is_the_only_line_also_with_lines_about_the_source(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = two_classes(tmp_path / "in/wrapper", photos).parent
    (source / "wrapper/empty").mkdir()
    (source / "wrapper/notes.txt").write_text("text")
    (source / "wrapper/more.zip").write_bytes(b"PK")
    facts = ["1 .txt", "'{0}/wrapper/empty'", "'{0}/wrapper'", "more.zip", "2 classes"]
    facts = [fact.format(source) for fact in facts]
    pack(source, tmp_path / "out")
    assert_facts(capfd.readouterr().err, *facts)
    pack(source, tmp_path / "out")  # complete
    assert_facts(capfd.readouterr().err, *facts)
    with pytest.raises(ShardError, match="limit"):
        pack(source, tmp_path / "out", limit=3)
    (source / "wrapper/a/0.jpg").write_bytes(b"broken")
    with pytest.raises(ShardError, match=r"a/0\.jpg"):
        pack(source, tmp_path / "broken")
    assert capfd.readouterr() == ("", "")
