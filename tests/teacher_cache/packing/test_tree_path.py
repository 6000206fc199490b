import os
import unicodedata
from pathlib import Path

import pytest
from facts import assert_facts
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.errors import ShardError
from teacher_cache.packing.folder_tree import FolderTree
from teacher_cache.packing.tree_path import TreePaths
from teacher_cache.storage.file_name import UNWRITABLE

NFC, NFD = "caf\u00e9", "cafe\u0301"


def test_names_of_macos_and_linux_give_the_same_paths(tmp_path: Path) -> None:
    for name, form in (("mac", NFD), ("linux", NFC)):
        (tmp_path / name / form).mkdir(parents=True)
        (tmp_path / name / form / f"{form}.jpg").write_text(name)
        tree = FolderTree(tmp_path / name)
        assert set(tree.fingerprints) == {f"{NFC}/{NFC}.jpg"} and tree.read(f"{NFC}/{NFC}.jpg") == name.encode()


@pytest.mark.parametrize(
    "names",
    [
        (f"{NFC}/1.jpg", f"{NFD}/2.jpg"),
        (f"{NFD}/1.jpg", f"{NFC}/2.jpg"),
        (f"a/{NFC}", f"a/{NFD}"),
        (f"a/{NFD}", f"a/{NFC}"),
        ("a/x\n", r"a/x\x0a"),
        (f"{NFD}/a/1.jpg", f"{NFC}/b/1.jpg"),
    ],
)
def test_two_names_of_one_path_are_refused(names: tuple[str, str]) -> None:
    paths = TreePaths(Path("photos"))
    paths.add(names[0])
    with pytest.raises(ShardError) as caught:
        for name in names:
            paths.add(name)
    folders = [name.partition("/")[0] + "/" for name in names]
    assert_facts(caught.value, "'photos'", *map(ascii, names if folders[0] == folders[1] else folders))


@pytest.mark.parametrize(
    "folder", [b"caf\xe9", b"a\nb", b"a\tb", b"a\x7f", b" cat", b"cat ", "a\u2028b".encode(), "cat\u3000".encode()]
)
def test_an_unusable_folder_name_is_refused_in_one_line(folder: bytes, tmp_path: Path) -> None:
    name = os.fsdecode(folder)
    (tmp_path / "train" / name / "x").mkdir(parents=True)
    (tmp_path / "train" / name / "x/1.jpg").touch()
    with pytest.raises(ShardError) as caught:
        FolderTree(tmp_path)
    assert_facts(caught.value, ascii(name), f"'{tmp_path}'")
    assert str(caught.value).isprintable() and str(caught.value).encode()


def test_unusable_file_names_are_escaped_and_read(tmp_path: Path) -> None:
    names = {b"caf\xe9.jpg": r"caf\xe9.jpg", b"Icon\r": r"Icon\x0d", b" 1.jpg ": " 1.jpg ", b"a\\b": "a\\b"}
    for name, path in names.items():
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text(path, encoding="utf-8")
    tree = FolderTree(tmp_path)
    assert {path: tree.read(path).decode() for path in tree.fingerprints} == {
        path: path for path in names.values()
    }


@given(st.lists(st.text(st.characters(exclude_characters="/\0", exclude_categories=[]), min_size=1), min_size=1))
def test_every_path_is_one_line_of_utf8(parts: list[str]) -> None:
    try:
        path = TreePaths(Path("photos")).add("/".join(parts))
    except ShardError as error:
        assert not UNWRITABLE.search(str(error))
    else:
        assert len(path.encode().decode().splitlines()) == 1 and path == unicodedata.normalize("NFC", path)
