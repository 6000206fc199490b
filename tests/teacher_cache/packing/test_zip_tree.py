import gzip
import struct
import subprocess
import sys
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from facts import assert_facts

from teacher_cache.errors import ShardError
from teacher_cache.packing.file_tree import open_tree

FAT, UNIX, NTFS = 0, 3, 10
JAPANESE, FRENCH = "猫/1.jpg", "été/1.jpg"


def zip_of(*members: tuple[str, bytes] | tuple[zipfile.ZipInfo, bytes]) -> bytes:
    data = BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return data.getvalue()


def raw_zip(name: bytes, system: int, extra: bytes = b"") -> bytes:
    """A zip of one file, whose name is these bytes without the UTF-8 flag."""
    stand_in = zipfile.ZipInfo("x" * len(name))
    stand_in.create_system, stand_in.extra = system, extra
    return zip_of((stand_in, b"1")).replace(stand_in.filename.encode(), name)


def unicode_path(name: bytes, replacement: str) -> bytes:
    field = struct.pack("<BL", 1, zlib.crc32(name)) + replacement.encode()
    return struct.pack("<HH", 0x7075, len(field)) + field


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = UNIX, 0o120777 << 16
    return info


def files_of(data: bytes, folder: Path) -> dict[str, bytes]:
    """The files of an archive. It has no suffix, so that only its content says what it is."""
    (folder / "archive").write_bytes(data)
    with open_tree(folder / "archive", folder) as tree:
        return {path: tree.read(path) for path in tree.fingerprints}


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (raw_zip(JAPANESE.encode(), UNIX), JAPANESE),
        (raw_zip(JAPANESE.encode(), FAT), JAPANESE),
        (raw_zip(JAPANESE.encode("cp932"), FAT, unicode_path(JAPANESE.encode("cp932"), JAPANESE)), JAPANESE),
        (raw_zip(b"a/1.jpg", FAT, unicode_path(b"another", JAPANESE)), "a/1.jpg"),
        (zip_of((JAPANESE, b"1")), JAPANESE),
        (raw_zip(FRENCH.encode("cp437"), FAT), FRENCH),
        (raw_zip(b"photos\\cat\\1.jpg", FAT), "photos/cat/1.jpg"),
        (raw_zip(b"photos/cat\\1.jpg", FAT), "photos/cat/1.jpg"),
        (raw_zip(b"photos/cat\\1.jpg", NTFS), "photos/cat/1.jpg"),
        (raw_zip("photos/猫\\1.jpg".encode(), FAT), "photos/猫/1.jpg"),
        (raw_zip(rb"cat/odd\name.jpg", UNIX), r"cat/odd\name.jpg"),
        (raw_zip(b"a/caf\xe9.jpg", UNIX), r"a/caf\xe9.jpg"),
        (raw_zip(b"./a//1.jpg", UNIX), "a/1.jpg"),
    ],
)
def test_names_are_decoded_as_their_maker_wrote_them(data: bytes, path: str, tmp_path: Path) -> None:
    assert files_of(data, tmp_path) == {path: b"1"}


def test_names_in_an_unknown_encoding_are_named_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = JAPANESE.encode("cp932")
    assert files_of(raw_zip(name, FAT), tmp_path) == {name.decode("cp437"): b"1"}
    assert_facts(capsys.readouterr().err, f"'{tmp_path}/archive'", "1 name", f"'{name.decode('cp437')}'", "cp437")
    name = "表/1.jpg".encode("cp932")  # its second byte is a backslash
    assert files_of(raw_zip(name, FAT), tmp_path) == {name.decode("cp437"): b"1"}
    with pytest.raises(ShardError) as caught:
        files_of(raw_zip("été/1.jpg".encode("latin-1"), UNIX), tmp_path)
    assert_facts(caught.value, r"'\udce9t\udce9'")


def test_backslashes_make_folders(tmp_path: Path) -> None:
    data = zip_of(("cat/", b""), ("cat/1.jpg", b"1"), ("dog/", b"")).replace(b"/", b"\\")
    assert files_of(data, tmp_path) == {"cat/1.jpg": b"1"}


def test_joined_zips_and_data_behind_the_end_are_refused_with_the_place(tmp_path: Path) -> None:
    first, second = zip_of(("a/1.jpg", b"1")), zip_of(("b/2.jpg", b"2"))
    for data in (first + second, first + b"junk"):
        with pytest.raises(ShardError) as caught:
            files_of(data, tmp_path)
        assert_facts(caught.value, f"'{tmp_path}/archive'", f"byte {len(first)}")
    for whole in (b"MZ a program that unpacks itself" + first, first + bytes(100)):
        assert files_of(whole, tmp_path) == {"a/1.jpg": b"1"}


def test_the_command_against_data_behind_the_end_repairs_the_zip(tmp_path: Path) -> None:
    whole = zip_of(("a/1.jpg", b"1"))
    for data in (whole + b"junk", gzip.compress(whole + b"junk")):
        with pytest.raises(ShardError) as caught:
            files_of(data, tmp_path)
        command = str(caught.value).partition("to remove it: ")[2]
        subprocess.run(command, shell=True, check=True, cwd=tmp_path)
        assert files_of((tmp_path / "FIXED.zip").read_bytes(), tmp_path) == {"a/1.jpg": b"1"}


def test_the_command_against_names_in_another_encoding_unpacks_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files_of(raw_zip("表/1.jpg".encode("cp932"), FAT), tmp_path)
    command = " ".join(capsys.readouterr().err.rpartition("cp932: ")[2].split())
    subprocess.run(command.replace("python ", f"{sys.executable} ", 1), shell=True, check=True, cwd=tmp_path)
    assert (tmp_path / "FOLDER/表/1.jpg").read_bytes() == b"1"


def test_a_cut_zip_is_refused(tmp_path: Path) -> None:
    data = zip_of(("a/1.jpg", b"1"), ("a/2.jpg", b"2"))
    for size in (4, 40, len(data) // 2, len(data) - 1):
        with pytest.raises(ShardError) as caught:
            files_of(data[:size], tmp_path)
        assert_facts(caught.value, f"'{tmp_path}/archive'")


@pytest.mark.parametrize(
    ("at", "value", "fact"), [(8, 1, "encrypted"), (10, 93, "method 93"), (10, 9, "method 9")]
)
def test_members_that_cannot_be_unpacked_are_refused_before_any_is_read(
    at: int, value: int, fact: str, tmp_path: Path
) -> None:
    data = bytearray(zip_of(("a/1.jpg", b"1")))
    data[data.index(b"PK\1\2") + at] = value
    with pytest.raises(ShardError) as caught, open_tree(save(bytes(data), tmp_path), tmp_path):
        pass
    assert_facts(caught.value, "'a/1.jpg'", fact, "1 file")


def save(data: bytes, folder: Path) -> Path:
    (folder / "archive").write_bytes(data)
    return folder / "archive"


def test_links_have_the_content_of_their_files(tmp_path: Path) -> None:
    data = zip_of((link("a/0.jpg"), b"../b/1.jpg"), ("b/1.jpg", b"1"), (link("b/2.jpg"), b"../a/0.jpg"))
    assert files_of(data, tmp_path) == dict.fromkeys(("a/0.jpg", "b/1.jpg", "b/2.jpg"), b"1")
    for target, path in (("/etc/passwd", "/etc/passwd"), ("../../x", "../x"), ("nothing", "a/nothing")):
        with pytest.raises(ShardError) as caught:
            files_of(zip_of(("b/1.jpg", b"1"), (link("a/0.jpg"), target.encode())), tmp_path)
        assert_facts(caught.value, "'a/0.jpg'", f"'{path}'")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_last_of_two_members_with_one_name_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert files_of(zip_of(("a/1", b"old"), ("a/1", b"new")), tmp_path) == {"a/1": b"new"}
    assert_facts(capsys.readouterr().err, "'a/1'", "1 file")


def test_a_zip_of_zips_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inner = zip_of(("a/1.jpg", b"1"))
    files_of(zip_of(("b/1.zip", inner), ("b/2.ZIP", inner)), tmp_path)
    assert_facts(capsys.readouterr().err, "2 archives", "b/1.zip", "b/2.ZIP")


def test_an_empty_zip_has_no_files(tmp_path: Path) -> None:
    assert files_of(zip_of(), tmp_path) == {}


def test_a_large_zip_with_64_bit_sizes_is_read(tmp_path: Path) -> None:
    data = BytesIO()
    with zipfile.ZipFile(data, "w") as archive, archive.open("a/1.jpg", "w", force_zip64=True) as file:
        file.write(b"1")
    assert files_of(data.getvalue(), tmp_path) == {"a/1.jpg": b"1"}
