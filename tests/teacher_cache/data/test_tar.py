"""Every dialect of tar, joined and compressed in any way, is read in full or refused with the place."""

import bz2
import gzip
import lzma
import re
import subprocess
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from facts import assert_facts
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_cache.data.shards import scan_shard
from teacher_cache.data.tar import BLOCK, UnusableTar, members
from teacher_cache.errors import ShardError

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
LINKS = {"hard": tarfile.LNKTYPE, "symbolic": tarfile.SYMTYPE}
COMPRESSORS = (bytes, gzip.compress, bz2.compress, lzma.compress)

File = tuple[str, bytes]


def header(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **fields: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    for field, value in fields.items():
        setattr(member, field, value)
    return member


def tar_of(*files: File | tarfile.TarInfo, dialect: str = "ustar") -> bytes:
    """A tar of files and of members without content."""
    data = BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=FORMATS.get(dialect, tarfile.USTAR_FORMAT)) as tar:
        for file in files:
            if isinstance(file, tarfile.TarInfo):
                tar.addfile(file)
            else:
                name, content = file
                mtime = 0.5 if dialect == "pax" else 0  # as of webdataset's writer: a PAX header for each file
                tar.addfile(header(name, size=len(content), mtime=mtime), BytesIO(content))
    return data.getvalue()


def patched(data: bytes, at: int, field: bytes, where: int = 0) -> bytes:
    """The tar with a field of the header at `where` replaced, and its checksum adapted."""
    block = bytearray(data[where : where + BLOCK])
    block[at : at + len(field)] = field
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return data[:where] + bytes(block) + data[where + BLOCK :]


NAME = st.text("ab é日", min_size=1, max_size=30)
LONG_NAME = st.builds(lambda name, count: (name * count)[:250], NAME, st.integers(1, 20))


@st.composite
def archives(draw: st.DrawFn) -> tuple[bytes, list[File]]:
    """One tar in any dialect, with links to earlier files, and the files that it must give."""
    dialect = draw(st.sampled_from([*FORMATS, "v7"]))
    names = NAME if dialect in ("ustar", "v7") else LONG_NAME
    contents = draw(
        st.lists(st.tuples(names, st.binary(max_size=1200)), max_size=4, unique_by=lambda file: file[0])
    )
    files = [(f"d{number}/{name}", content) for number, (name, content) in enumerate(contents)]
    if dialect == "v7":
        return patched(tar_of(*files[:1]), 156, bytes(BLOCK - 156)) if files else tar_of(), files[:1]
    linked: list[tarfile.TarInfo] = []
    for number, kind in enumerate(draw(st.lists(st.sampled_from(sorted(LINKS)), max_size=2 if files else 0))):
        name, content = draw(st.sampled_from(files))
        target = name if kind == "hard" else f"../{name}"
        linked.append(header(f"links/{number}", LINKS[kind], target))
        contents.append((f"links/{number}", content))
    folder = header("d0/", tarfile.DIRTYPE)
    found = files + contents[len(files) :]
    return tar_of(folder, *files, *linked, dialect=dialect), found


@settings(max_examples=150, deadline=None)
@given(parts=st.lists(archives(), min_size=1, max_size=3), data=st.data())
def test_joined_tars_of_any_dialect_give_every_file(
    parts: list[tuple[bytes, list[File]]], data: st.DataObject
) -> None:
    compress = data.draw(st.sampled_from(COMPRESSORS))
    tars = [tar for tar, _ in parts]
    joined = b"".join(map(compress, tars)) if data.draw(st.booleans()) else compress(b"".join(tars))
    assert list(members(joined)) == [file for _, files in parts for file in files]


@settings(max_examples=60, deadline=None)
@given(part=archives(), junk=st.binary(min_size=1, max_size=1500).filter(lambda junk: junk.strip(b"\0") != b""))
def test_data_behind_the_end_is_refused_with_its_place(part: tuple[bytes, list[File]], junk: bytes) -> None:
    tar, _ = part
    with pytest.raises(tarfile.ReadError) as caught:
        list(members(tar + junk))
    junk_block = len(tar) + (len(junk) - len(junk.lstrip(b"\0"))) // BLOCK * BLOCK
    assert_facts(caught.value, f"byte {junk_block}")
    assert isinstance(caught.value, UnusableTar)
    assert_facts(caught.value.advice_for("FILE"), f"head -c {junk_block} FILE > FIXED.tar")


@pytest.mark.parametrize("compress", [*COMPRESSORS, lambda data: gzip.compress(bz2.compress(data))])
@pytest.mark.parametrize("junk", [b"junk", b"junk" * 500])
def test_the_command_in_the_message_removes_data_behind_the_end(
    compress: Callable[[bytes], bytes], junk: bytes, tmp_path: Path
) -> None:
    link = header("b", tarfile.LNKTYPE, "a")
    for tar in (tar_of(("a", b"1")), tar_of(("a", b"1"), link)):  # tarfile reads the second one
        file = tmp_path / "bad.tar"
        file.write_bytes(compress(tar + junk))
        with pytest.raises(ShardError) as caught:
            list(scan_shard(str(file), file.read_bytes()))
        found = re.search(r"(?:: )([^:]*) > FIXED.tar", str(caught.value))
        assert found
        assert subprocess.run(["bash", "-c", found[1]], check=True, capture_output=True).stdout == tar


@pytest.mark.parametrize(
    ("data", "facts"),
    [
        (tar_of(header("1.jpg", tarfile.SYMTYPE, "/data/1.jpg")), ["/data/1.jpg", "--dereference"]),
        (tar_of(header("1.jpg", tarfile.SYMTYPE, "../1.jpg")), ["../1.jpg", "--dereference"]),
        (tar_of(header("1.jpg", tarfile.SYMTYPE, "2.jpg"), ("2.jpg", b"2")), ["'2.jpg'", "--dereference"]),
        (tar_of(header("1.jpg", tarfile.LNKTYPE, "2.jpg"), ("2.jpg", b"2")), ["'2.jpg'", "--hard-dereference"]),
        (tar_of(header("1.jpg", tarfile.FIFOTYPE)), ["'1.jpg'", "a FIFO"]),
        (b"\x28\xb5\x2f\xfd" + bytes(600), ["zstd -d s.tar"]),
        (b"\x04\x22\x4d\x18" + bytes(600), ["lz4 -d s.tar"]),
        (b"PK\3\4" + bytes(600), ["a zip", "limbeck pack"]),
        (b"version https://git-lfs.github.com/spec/v1\n", ["git lfs pull"]),
    ],
)
def test_a_whole_file_that_cannot_be_used_is_not_called_damaged(data: bytes, facts: list[str]) -> None:
    with pytest.raises(ShardError) as caught:
        list(scan_shard("s.tar", data))
    assert_facts(caught.value, "'s.tar'", *facts)
    assert not re.search("damaged|truncated|restore", str(caught.value))


@settings(max_examples=60, deadline=None)
@given(part=archives(), cut=st.floats(0, 1))
def test_a_cut_tar_is_refused_or_whole(part: tuple[bytes, list[File]], cut: float) -> None:
    tar, files = part
    try:
        assert list(members(tar[: int(len(tar) * cut)])) == files
    except tarfile.ReadError as error:
        assert re.search(r"byte \d+|not a tar", str(error))


@pytest.mark.parametrize("dialect", FORMATS)
@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize(
    ("name", "link"),
    [("a/2.jpg", "nothing.jpg"), ("a/2.jpg", "../../etc/passwd"), ("2.jpg", "a/3.jpg"), ("a/b", "."), ("x", "x")],
)
def test_a_link_to_no_earlier_file_is_refused_by_name(dialect: str, kind: str, name: str, link: str) -> None:
    tar = tar_of(("a/1.jpg", b"1"), header(name, LINKS[kind], link), ("a/3.jpg", b"3"), dialect=dialect)
    with pytest.raises(tarfile.ReadError) as caught:
        list(members(tar))
    assert_facts(caught.value, f"'{name}'", f"'{link}'", "byte ")


def test_a_link_may_lead_to_a_link_and_names_may_begin_with_a_dot() -> None:
    tar = tar_of(
        ("./a/1.jpg", b"1"),
        header("./a/2.jpg", tarfile.LNKTYPE, "./a/1.jpg"),
        header("./b/3.jpg", tarfile.SYMTYPE, "../a/2.jpg"),
        header("./a/1.jpg", tarfile.LNKTYPE, "./a/1.jpg"),  # GNU tar writes this for a file that is named twice
    )
    assert list(members(tar)) == [(f"./{name}", b"1") for name in ("a/1.jpg", "a/2.jpg", "b/3.jpg", "a/1.jpg")]


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, b"M", b"Z"])
def test_a_member_that_is_no_file_is_refused_by_name(kind: bytes) -> None:
    with pytest.raises(tarfile.ReadError) as caught:
        list(members(tar_of(("a", b"1"), header("odd.jpg", kind))))
    assert_facts(caught.value, "'odd.jpg'", "byte 1024")


def test_a_volume_label_is_not_a_file() -> None:
    assert list(members(tar_of(header("my backup", b"V"), ("a", b"1")))) == [("a", b"1")]


@pytest.mark.parametrize("options", [["gnu"], *(["pax", f"--sparse-version={n}"] for n in ("0.0", "0.1", "1.0"))])
def test_sparse_files_are_read(options: list[str], tmp_path: Path) -> None:
    with (tmp_path / "1.jpg").open("wb") as file:
        for part in range(6):
            file.seek(part << 20)
            file.write(b"data")
    (tmp_path / "2.jpg").write_bytes(b"2")
    command = ["tar", "-C", tmp_path, "--sparse", f"--format={options[0]}", *options[1:], "-c", "1.jpg", "2.jpg"]
    data = subprocess.run(command, check=True, capture_output=True).stdout
    assert len(data) < 1 << 20
    assert list(members(data)) == [(name, (tmp_path / name).read_bytes()) for name in ("1.jpg", "2.jpg")]


def test_a_negative_size_is_refused() -> None:
    data = patched(tar_of(("a", b"1"), ("b", b"2")), 124, b"\xff" * 12, where=1024)
    with pytest.raises(tarfile.ReadError, match="byte 1024"):
        list(members(data))


@pytest.mark.parametrize("dialect", FORMATS)
def test_names_that_a_line_of_utf8_cannot_contain_are_escaped(dialect: str) -> None:
    names = {
        "caf\udce9.jpg": r"caf\xe9.jpg",
        "a\nb.cls": r"a\x0ab.cls",
        "a\u2028b": r"a\u2028b",
        "日本\u3000": "日本\u3000",
    }
    tar = tar_of(*((name, b"") for name in names), dialect=dialect)
    assert [name for name, _ in members(tar)] == list(names.values())


@pytest.mark.parametrize(
    ("data", "facts"),
    [
        (b"", ["empty"]),
        (b"<!DOCTYPE html>" * 100, ["HTML"]),
        (b"version https://git-lfs.github.com/spec/v1\n", ["Git LFS"]),
        (b"\x28\xb5\x2f\xfd" + bytes(600), ["zstd"]),
        (b"x" * 600, ["xxxx"]),
        (gzip.compress(b"x" * 600), ["xxxx"]),
        (gzip.compress(tar_of(("a", b"1")))[:-9], ["Compressed file ended"]),
        (gzip.compress(tar_of(("a", b"1"))) + b"junk", ["byte "]),
        (bz2.compress(tar_of(("a", b"1"))) + b"junk", ["byte "]),
        (lzma.compress(tar_of(("a", b"1"))) + b"junk", ["byte "]),
    ],
)
def test_a_shard_that_is_not_a_tar_is_named_by_its_format(data: bytes, facts: list[str]) -> None:
    with pytest.raises(ShardError) as caught:
        list(scan_shard("s.tar", data))
    assert_facts(caught.value, "'s.tar'", *facts)


def test_padding_behind_compressed_data_is_not_data() -> None:
    tar = tar_of(("a", b"1"))
    for compress in COMPRESSORS[1:]:
        assert list(members(compress(tar) + bytes(100_000) + compress(tar) + bytes(7))) == [("a", b"1")] * 2
    assert list(members(gzip.compress(gzip.compress(tar)))) == [("a", b"1")]  # a server may compress once more
