import bz2
import gzip
import lzma
import subprocess
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from facts import assert_facts

from teacher_cache.errors import ShardError
from teacher_cache.packing.file_tree import open_tree

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
HARD, SYMBOLIC = tarfile.LNKTYPE, tarfile.SYMTYPE

Member = tuple[str, bytes] | tuple[str, bytes, str]
"""Name and content of a file, or name, type and target of another member."""


def tar_of(*members: Member, dialect: int = tarfile.PAX_FORMAT) -> bytes:
    data = BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=dialect) as tar:
        for name, content, *target in members:
            member = tarfile.TarInfo(name)
            if target:
                member.type, member.linkname = content, target[0]
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, BytesIO(content))
    return data.getvalue()


def files_of(data: bytes, folder: Path) -> dict[str, bytes]:
    """The files of an archive. It has no suffix, so that only its content says what it is."""
    (folder / "archive").write_bytes(data)
    with open_tree(folder / "archive", folder) as tree:
        return {path: tree.read(path) for path in tree.fingerprints}


@pytest.mark.parametrize("dialect", FORMATS)
@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_joined_tars_are_one_archive(dialect: int, compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    first, second = tar_of(("a/1.jpg", b"1"), dialect=dialect), tar_of(("b/2.jpg", b"2"), dialect=dialect)
    for joined in (compress(first) + compress(second), compress(first + second)):
        assert files_of(joined, tmp_path) == {"a/1.jpg": b"1", "b/2.jpg": b"2"}


@pytest.mark.parametrize("dialect", FORMATS)
def test_data_behind_a_tar_is_refused_with_its_place(dialect: int, tmp_path: Path) -> None:
    tar = tar_of(("a/1.jpg", b"1"), dialect=dialect)
    with pytest.raises(ShardError) as caught:
        files_of(tar + b"x" * 512, tmp_path)
    assert_facts(caught.value, f"'{tmp_path}/archive'", f"byte {len(tar)}", f"head -c {len(tar)}", "> FIXED.tar")
    with pytest.raises(ShardError) as compressed:
        files_of(gzip.compress(tar + b"x" * 512), tmp_path)
    assert_facts(compressed.value, f"byte {len(tar)}", "gzip -dc", f"| head -c {len(tar)} > FIXED.tar")


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_the_command_against_data_behind_the_end_repairs_the_tar(
    compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    odd = tmp_path / "it's odd"
    odd.mkdir()
    with pytest.raises(ShardError) as caught:
        files_of(compress(tar_of(("a/1.jpg", b"1")) + b"x" * 512), odd)
    command = str(caught.value).partition("to remove the data: ")[2]
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert files_of((tmp_path / "FIXED.tar").read_bytes(), tmp_path) == {"a/1.jpg": b"1"}


@pytest.mark.parametrize("dialect", FORMATS)
def test_links_have_the_content_of_their_files(dialect: int, tmp_path: Path) -> None:
    tar = tar_of(
        ("a/0.jpg", SYMBOLIC, "../b/2.jpg"),  # before its file
        ("b/2.jpg", b"2"),
        ("b/3.jpg", HARD, "b/2.jpg"),
        ("b/4.jpg", SYMBOLIC, "./3.jpg"),  # through a link
        ("b/5.jpg", SYMBOLIC, "../.store/x"),
        (".store/x", b"x"),
        ("b/2.jpg", HARD, "b/2.jpg"),  # GNU tar writes this for a file that is named twice
        dialect=dialect,
    )
    expected = dict.fromkeys(("a/0.jpg", "b/2.jpg", "b/3.jpg", "b/4.jpg"), b"2") | {"b/5.jpg": b"x"}
    assert files_of(tar, tmp_path) == expected


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("nothing.jpg", "a/nothing.jpg"),
        ("../../x.jpg", "../x.jpg"),
        ("/etc/passwd", "/etc/passwd"),
        ("self.jpg", "a/self.jpg"),
        ("../b", "b"),
    ],
)
def test_a_link_to_no_file_of_the_tar_is_refused_by_name(target: str, path: str, tmp_path: Path) -> None:
    tar = tar_of(("a/1.jpg", b"1"), ("b/1.jpg", b"1"), ("a/self.jpg", SYMBOLIC, target))
    with pytest.raises(ShardError) as caught:
        files_of(tar, tmp_path)
    assert_facts(caught.value, "'a/self.jpg'", f"'{path}'")


def test_what_is_left_out_of_a_tar_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar = tar_of(
        ("a/1.jpg", b"1"),
        ("a/pipe", tarfile.FIFOTYPE, ""),
        ("a/disk", tarfile.BLKTYPE, ""),
        ("a/up", SYMBOLIC, ".."),
        ("label", b"V", ""),
        ("parts/x.tar", tar_of(("b/1.jpg", b"1"))),
    )
    assert files_of(tar, tmp_path).keys() == {"a/1.jpg", "parts/x.tar"}
    assert_facts(capsys.readouterr().err, "'a/disk'", "2 special files", "'a/up'", "1 archive", "parts/x.tar")


def test_the_last_of_two_members_with_one_name_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert files_of(tar_of(("a/1", b"old"), ("./a/1", b"new")), tmp_path) == {"a/1": b"new"}
    assert_facts(capsys.readouterr().err, "'a/1'", "1 file")


def test_a_file_under_two_folders_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files_of(tar_of(("a/1", b"1"), ("a/2", HARD, "a/1")), tmp_path)
    assert not capsys.readouterr().err
    files_of(tar_of(("a/1", b"1"), ("a/2", HARD, "a/1"), ("b/1", HARD, "a/1")), tmp_path)
    assert_facts(capsys.readouterr().err, "'a/1'", "'b/1'", "1 file")


def test_absolute_names_are_relative_and_names_outside_are_refused(tmp_path: Path) -> None:
    assert files_of(tar_of(("/data/a/1.jpg", b"1")), tmp_path) == {"data/a/1.jpg": b"1"}
    with pytest.raises(ShardError) as caught:
        files_of(tar_of(("a/../../b.jpg", b"1")), tmp_path)
    assert_facts(caught.value, "'a/../../b.jpg'")


def test_an_empty_tar_has_no_files(tmp_path: Path) -> None:
    assert files_of(tar_of(), tmp_path) == {}
    assert files_of(gzip.compress(tar_of()), tmp_path) == {}
