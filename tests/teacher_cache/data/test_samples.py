"""Shards of other tools: their names of files, labels, archives and damage."""

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unicodedata import normalize

import pytest
from facts import assert_facts
from indexed import refusal, rows_of
from tars import image, samples, write_tar
from wids import ShardListDataset

from teacher_cache.data.eval_images import eval_batches
from teacher_cache.data.index import IMAGE_SUFFIXES, ShardIndex, includes_classes, load_index, save_index
from teacher_cache.data.shards import read_shard
from teacher_cache.errors import ShardError
from teacher_cache.models.spec import EvalSpec
from teacher_cache.views.decode import decode

Limbeck = Callable[..., str]


def test_files_of_a_sample_may_be_apart(tmp_path: Path, limbeck: Limbeck) -> None:
    files = samples(range(4))
    write_tar(tmp_path / "together" / "0.tar", files)
    write_tar(tmp_path / "apart" / "0.tar", files[::2] + files[1::2])
    write_tar(tmp_path / "labels_first" / "0.tar", files[1::2] + files[::2])
    for folder in ("together", "apart", "labels_first"):
        limbeck("index", tmp_path / folder)
        assert rows_of(tmp_path / folder) == [(str(number), image(number), number % 2) for number in range(4)]


def test_suffixes_may_be_upper_case(tmp_path: Path, limbeck: Limbeck) -> None:
    files = [
        (f"{name.partition('.')[0]}.{name.partition('.')[2].upper()}", data) for name, data in samples(range(4))
    ]
    write_tar(tmp_path / "0.tar", files)
    limbeck("index", tmp_path)
    assert [label for _, _, label in rows_of(tmp_path)] == [0, 1, 0, 1]


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "avif", "jp2", "pgm", "tga", "dib", "ico", "qoi"])
def test_all_still_images_of_pillow_are_accepted(suffix: str, tmp_path: Path, limbeck: Limbeck) -> None:
    assert suffix in IMAGE_SUFFIXES
    form = {"jfif": "JPEG", "jpe": "JPEG", "avif": "AVIF", "jp2": "JPEG2000", "pgm": "PPM", "dib": "BMP"}.get(
        suffix, suffix.upper()
    )
    files = [file for n in range(2) for file in ((f"{n}.{suffix}", image(n, form)), (f"{n}.cls", b"%d" % n))]
    write_tar(tmp_path / "0.tar", files)
    limbeck("index", tmp_path, "--skip-broken")
    assert len(rows_of(tmp_path)) == 2


def test_preferred_image_of_old_indexes_stays() -> None:
    assert IMAGE_SUFFIXES[:9] == ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm")


@pytest.mark.parametrize(
    ("suffix", "facts"), [("nef", [".nef"]), ("jxl", [".jxl"]), ("heic", [".heic", "limbeck[heif]"])]
)
def test_unsupported_images_are_named(
    suffix: str, facts: list[str], tmp_path: Path, limbeck: Limbeck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    write_tar(tmp_path / "0.tar", [(f"a.{suffix}", b"x"), ("a.cls", b"0")])
    assert_facts(refusal(limbeck, "index", tmp_path), f"'{tmp_path}/0.tar'", "'a'", *facts)


def test_dotted_keys_are_named_and_have_a_way(tmp_path: Path, limbeck: Limbeck) -> None:
    write_tar(tmp_path / "0.tar", samples(range(4), key="img.v{}"))
    assert_facts(refusal(limbeck, "index", tmp_path), "'img'", ".v0.jpg", "--dotted-keys")
    limbeck("index", tmp_path, "--dotted-keys")
    assert [key for key, _, _ in rows_of(tmp_path)] == ["img.v0", "img.v1", "img.v2", "img.v3"]
    lost = [file for n in range(2) for file in [*samples([n]), *samples([n], key="{}.b")]]
    write_tar(tmp_path / "lost" / "0.tar", lost)
    assert_facts(limbeck("index", tmp_path / "lost"), "2 samples", "'0'", "--dotted-keys")


def test_folder_names_may_contain_dots(tmp_path: Path, limbeck: Limbeck) -> None:
    write_tar(tmp_path / "0.tar", [*samples(range(2), key="./photos.v2/{}"), ("photos.v2/._0.jpg", b"x")])
    limbeck("index", tmp_path)
    assert len(rows_of(tmp_path)) == 2


def test_keys_that_begin_again_in_every_shard_have_a_way(tmp_path: Path, limbeck: Limbeck) -> None:
    write_tar(tmp_path / "s.0.tar", samples(range(4), key="{:04d}"))
    write_tar(tmp_path / "s.1.tar", samples(range(4), key="{:04d}", classes=3))
    said = refusal(limbeck, "index", tmp_path)
    assert_facts(said, "'0000'", f"'{tmp_path}/s.0.tar'", f"'{tmp_path}/s.1.tar'", "--key-prefix shard")
    limbeck("index", tmp_path, "--key-prefix", "shard")
    assert [key for key, _, _ in rows_of(tmp_path)][3:5] == ["s.0/0003", "s.1/0000"]
    (tmp_path / "more").mkdir()
    write_tar(tmp_path / "more" / "s.0.tar", samples(range(4), key="{:04d}", first=1))
    both = ("index", tmp_path, tmp_path / "more", "--out", tmp_path / "both.json", "--key-prefix", "shard")
    assert_facts(refusal(limbeck, *both), "'s.0/0000'", "rename")


def test_copy_of_a_shard_is_an_error(tmp_path: Path, limbeck: Limbeck) -> None:
    for name in ("0.tar", "0 (1).tar"):
        write_tar(tmp_path / name, samples(range(4)))
    for options in ((), ("--key-prefix", "shard")):
        assert_facts(
            refusal(limbeck, "index", tmp_path, *options), f"'{tmp_path}/0.tar'", f"'{tmp_path}/0 (1).tar'"
        )
    assert_facts(refusal(limbeck, "index", tmp_path / "0.tar", tmp_path / "0.tar"), f"'{tmp_path}/0.tar'", "twice")


@pytest.mark.parametrize(
    ("name", "content", "option"),
    [
        ("txt", b"1\n", "txt"),
        ("label.txt", b"1", "label.txt"),
        ("json", b'{"label": 1, "width": 8}', "json:label"),
        ("json", b'{"class": 1}', "json:class"),
        ("label", b"\xef\xbb\xbf1", "label"),
    ],
)
def test_labels_in_other_files_are_found(
    name: str, content: bytes, option: str, tmp_path: Path, limbeck: Limbeck
) -> None:
    write_tar(tmp_path / "0.tar", [("a.jpg", image(0)), (f"a.{name}", content)])
    assert_facts(refusal(limbeck, "index", tmp_path), "'a'", ".cls", f".{name}", f"--label {option}")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    limbeck("index", tmp_path, "--label", option, "--classes", tmp_path / "names.txt")
    assert [label for _, _, label in rows_of(tmp_path)] == [1]


def test_labels_may_be_class_names(tmp_path: Path, limbeck: Limbeck) -> None:
    files = [("a.jpg", image(0)), ("a.cls", b"dog\n"), ("b.jpg", image(1)), ("b.cls", b"cat")]
    write_tar(tmp_path / "0.tar", files)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    limbeck("index", tmp_path, "--classes", tmp_path / "names.txt")
    assert [label for _, _, label in rows_of(tmp_path)] == [1, 0]
    (tmp_path / "names.txt").write_text("cat\nemu\n")
    assert_facts(
        refusal(limbeck, "index", tmp_path, "--classes", tmp_path / "names.txt"),
        "'a'",
        "dog",
        "2 class",
        "--classes",
    )


@pytest.mark.parametrize("label", ["1_0", "\uff11", "+1_1", "9" * 5000, "1.0", "0x1", ""])
@pytest.mark.parametrize("suffix", ["cls", "json"])
def test_only_plain_integers_are_class_numbers(label: str, suffix: str, tmp_path: Path, limbeck: Limbeck) -> None:
    content = label.encode() if suffix == "cls" else json.dumps({"label": label}).encode()
    write_tar(tmp_path / "0.tar", [("a.jpg", image(5)), (f"a.{suffix}", content)])
    option = ("--label", "json:label") if suffix == "json" else ()
    assert_facts(refusal(limbeck, "index", tmp_path, *option), "'a'", label[:15] if label.isascii() else "class")


def test_images_are_decoded_by_as_many_threads_as_cores(
    tmp_path: Path, limbeck: Limbeck, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def decode_here(data: bytes) -> object:
        threads.append(threading.get_ident())
        return decode(data)

    monkeypatch.setattr("teacher_cache.data.indexing.decode", decode_here)
    write_tar(tmp_path / "0.tar", samples(range(40)))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        limbeck("index", tmp_path, "--skip-broken")
    finally:
        os.sched_setaffinity(0, before)
    assert len(threads) == 40 and len(set(threads)) == 1


def test_plain_integers_may_have_a_sign_zeros_and_spaces(tmp_path: Path, limbeck: Limbeck) -> None:
    texts = [b"1", b" 1\n", b"+1", b"001", b"\xef\xbb\xbf1\r\n", b"0"]
    files = [file for n, text in enumerate(texts) for file in ((f"{n}.jpg", image(n)), (f"{n}.cls", text))]
    write_tar(tmp_path / "0.tar", files)
    limbeck("index", tmp_path)
    assert [label for _, _, label in rows_of(tmp_path)] == [1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_labels_and_class_names_may_differ_in_normalization(form: str, tmp_path: Path, limbeck: Limbeck) -> None:
    named = normalize(form, "é").encode()
    files = [("a.jpg", image(0)), ("a.cls", b"e"), ("b.jpg", image(1)), ("b.cls", named)]
    write_tar(tmp_path / "0.tar", files)
    for other in ("NFC", "NFD"):
        (tmp_path / "names.txt").write_text(normalize(other, "e\né\n"))
        limbeck("index", tmp_path, "--classes", tmp_path / "names.txt")
        assert load_index(tmp_path).classes == ("e", "é")
        assert [label for _, _, label in rows_of(tmp_path)] == [0, 1]


@pytest.mark.parametrize("stray", ["README.md", "dataset_info.json", "LICENSE.txt"])
def test_stray_files_of_a_shard_have_a_way(stray: str, tmp_path: Path, limbeck: Limbeck) -> None:
    write_tar(tmp_path / "0.tar", [(stray, b"{}"), *samples(range(4))])
    said = refusal(limbeck, "index", tmp_path)
    assert_facts(said, f"'{tmp_path}/0.tar'", f"'{stray.partition('.')[0]}'", "--skip-broken")
    assert len(said) < len(str(tmp_path)) + 250
    assert_facts(limbeck("index", tmp_path, "--skip-broken"), "1 sample", "4 images")
    assert len(rows_of(tmp_path)) == 4


def test_several_images_in_a_sample_are_one_line(tmp_path: Path, limbeck: Limbeck) -> None:
    write_tar(tmp_path / "0.tar", [*samples(range(4)), ("0.png", image(9, "PNG")), ("2.png", image(9, "PNG"))])
    assert_facts(limbeck("index", tmp_path), "2 samples", "jpg, png", ".jpg is used", "'0'")
    assert rows_of(tmp_path)[0][1] == image(0)


def test_compressed_tars_are_found(tmp_path: Path, limbeck: Limbeck) -> None:
    write_tar(tmp_path / "gz" / "0.tar.gz", samples(range(4)), "w:gz")
    write_tar(tmp_path / "gz" / "1.tgz", samples(range(4, 8)), "w:gz")
    limbeck("index", tmp_path / "gz")
    assert len(rows_of(tmp_path / "gz")) == 8
    limbeck("index", tmp_path / "gz", "--key-prefix", "shard")
    assert rows_of(tmp_path / "gz")[4][0] == "1/4"
    write_tar(tmp_path / "gz" / "2.tar", samples(range(8, 12)))
    (tmp_path / "gz" / "3.tar.part").write_bytes(b"")
    said = limbeck("index", tmp_path / "gz", "--out", tmp_path / "other.json")
    assert_facts(said, "0.tar.gz, 1.tgz", "3.tar.part", "4 images")
    write_tar(tmp_path / "sub" / "train" / "0.tar", samples(range(4)))
    assert_facts(refusal(limbeck, "index", tmp_path / "sub"), f"'{tmp_path}/sub/train'")
    limbeck("index", tmp_path / "sub" / "*" / "*.tar")


def test_gap_in_the_numbers_of_shards_is_reported(tmp_path: Path, limbeck: Limbeck) -> None:
    for number in (0, 1, 3):
        write_tar(tmp_path / f"a-{number:04d}.tar", samples(range(4 * number, 4 * number + 4)))
    assert_facts(limbeck("index", tmp_path), "a-0002.tar")
    (tmp_path / "a-0003.tar").unlink()
    assert "a-0002.tar" not in limbeck("index", tmp_path)


def test_shards_without_samples_are_reported(tmp_path: Path, limbeck: Limbeck) -> None:
    write_tar(tmp_path / "0.tar", samples(range(4)))
    write_tar(tmp_path / "1.tar", [])
    assert_facts(limbeck("index", tmp_path), f"'{tmp_path}/1.tar'", "4 images", "2 shards")
    assert len(rows_of(tmp_path)) == 4
    write_tar(tmp_path / "1.tar", [("README", b"hello")])
    assert_facts(refusal(limbeck, "index", tmp_path), f"'{tmp_path}/1.tar'", "1 file", "README")
    (tmp_path / "1.tar").write_bytes(b"")
    assert_facts(refusal(limbeck, "index", tmp_path), f"'{tmp_path}/1.tar'", "0 bytes")
    (tmp_path / "1.tar").write_bytes(b"<!DOCTYPE html><html>sign in</html>".ljust(2000))
    assert_facts(refusal(limbeck, "index", tmp_path), f"'{tmp_path}/1.tar'")


BROKEN = [
    *samples([0, 1]),
    ("damaged.jpg", image(2)[:200]),
    ("damaged.cls", b"0"),
    ("unlabeled.jpg", image(3)),
    ("no_image.cls", b"1"),
    ("empty.jpg", b""),
    ("empty.cls", b"1"),
    ("minus.jpg", image(4)),
    ("minus.cls", b"-1"),
    *samples([5, 6]),
]
SKIPPED = {"damaged": 2, "unlabeled": 3, "no_image": 4, "empty": 5, "minus": 6}


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    write_tar(tmp_path / "broken" / "0.tar", BROKEN)
    write_tar(tmp_path / "broken" / "1.tar", samples([7, 8]))
    return tmp_path / "broken"


@pytest.mark.parametrize("key", [key for key in SKIPPED if key != "damaged"])
def test_broken_sample_is_named(key: str, tmp_path: Path, limbeck: Limbeck) -> None:
    files = [(name, data) for name, data in BROKEN if name.partition(".")[0] in (key, "0", "1")]
    write_tar(tmp_path / "0.tar", files)
    assert_facts(refusal(limbeck, "index", tmp_path), f"'{tmp_path}/0.tar'", f"'{key}'")


def test_broken_samples_can_be_left_out(broken: Path, limbeck: Limbeck) -> None:
    assert_facts(refusal(limbeck, "index", broken), "'unlabeled'", "--skip-broken")
    said = limbeck("index", broken, "--skip-broken")
    assert_facts(said, "5 samples", "'damaged'", "6 images")
    entries = json.loads((broken / "index.json").read_text())["shardlist"]
    assert {one["key"]: one["sample"] for one in entries[0]["skipped"]} == SKIPPED
    assert all(one["reason"] for one in entries[0]["skipped"]) and "skipped" not in entries[1]
    index = load_index(broken)
    assert [shard.rows for shard in index.shards] == [4, 2]
    assert [(record.row, record.key) for record in read_shard(index, 0)] == list(enumerate("0156"))
    batches = eval_batches(index, EvalSpec(size=8, crop=1.0), batch=8, workers=0)
    assert [key for batch in batches for key in batch.keys] == ["0", "1", "5", "6", "7", "8"]
    save_index(index, broken / "again.json")
    assert load_index(broken / "again.json") == index


def test_wids_opens_an_index_with_samples_left_out(tmp_path: Path, limbeck: Limbeck) -> None:
    files = [*samples([0]), ("damaged.jpg", b"x"), ("damaged.cls", b"0"), *samples([1])]
    write_tar(tmp_path / "0.tar", files)
    write_tar(tmp_path / "1.tar", samples([2]))
    limbeck("index", tmp_path, "--skip-broken", "--key-prefix", "shard")
    (tmp_path / "copies").mkdir()
    dataset = ShardListDataset(
        str(tmp_path / "index.json"), cache_dir=str(tmp_path / "copies"), transformations=[], keep=True
    )
    assert [dataset[number]["__key__"] for number in range(len(dataset))] == ["0", "damaged", "1", "2"]
    dataset.close()


def test_contents_change_only_if_samples_or_keys_do(shards: ShardIndex, broken: Path, limbeck: Limbeck) -> None:
    assert shards.contents().keys() == {"classes", "rows", "md5"}  # as in manifests of 0.1.0
    limbeck("index", broken, "--skip-broken")
    index = load_index(broken)
    whole = replace(index, shards=tuple(replace(shard, skipped=()) for shard in index.shards))
    assert index.contents() != whole.contents()
    other = replace(index, shards=(replace(index.shards[0], skipped=index.shards[0].skipped[1:]), index.shards[1]))
    assert index.contents() != other.contents()
    prefixed = replace(whole, format=replace(index.format, key_prefix="shard"))
    renamed = replace(prefixed, shards=(replace(whole.shards[0], url="renamed.tar"), whole.shards[1]))
    assert whole.contents() != prefixed.contents() != renamed.contents()
    assert (
        whole.contents()
        == replace(whole, shards=(replace(whole.shards[0], url="renamed.tar"), whole.shards[1])).contents()
    )


def test_labels_mean_the_same_in_the_first_classes_of_numbered_sets() -> None:
    assert includes_classes(("0", "1", "2"), ("0", "1")) and includes_classes(("a", "b"), ("a", "b"))
    assert not includes_classes(("0", "1"), ("0", "1", "2"))
    assert not includes_classes(("a", "b"), ("a",)) and not includes_classes(("a", "b"), ("0", "1"))


def test_all_samples_broken_is_an_error(tmp_path: Path, limbeck: Limbeck) -> None:
    write_tar(tmp_path / "0.tar", [("a.jpg", b"x"), ("a.cls", b"0"), ("b.jpg", b"x"), ("b.cls", b"1")])
    assert_facts(refusal(limbeck, "index", tmp_path, "--skip-broken"), "2 samples", "'a'")
    assert not (tmp_path / "index.json").exists()


def test_shard_of_broken_samples_has_no_rows(tmp_path: Path, limbeck: Limbeck) -> None:
    write_tar(tmp_path / "0.tar", samples(range(4)))
    write_tar(tmp_path / "1.tar", [("a.jpg", b"x"), ("a.cls", b"0")])
    for _ in range(2):
        assert_facts(limbeck("index", tmp_path, "--skip-broken"), f"'{tmp_path}/1.tar'", "'a'", "2 shards")
    assert len(rows_of(tmp_path)) == 4


def test_image_found_damaged_later_names_the_remedy(tmp_path: Path, limbeck: Limbeck) -> None:
    write_tar(tmp_path / "0.tar", [*samples(range(4)), ("x.jpg", b"no image"), ("x.cls", b"0")])
    limbeck("index", tmp_path)
    with pytest.raises(ShardError) as caught:
        list(eval_batches(load_index(tmp_path), EvalSpec(size=8, crop=1.0), batch=8, workers=0))
    assert_facts(caught.value, f"'{tmp_path}/0.tar'", "'x'", "limbeck index", "--skip-broken")
