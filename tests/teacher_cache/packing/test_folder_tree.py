import os
import socket
from pathlib import Path

import pytest
from facts import assert_facts

from teacher_cache.errors import ShardError
from teacher_cache.packing.folder_tree import FolderTree


def folder(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def paths(root: Path) -> set[str]:
    return set(FolderTree(root).fingerprints)


def test_links_to_a_folder_above_are_not_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "data/photos", "a/1.jpg", "b/1.jpg")
    folder(tmp_path / "data", "other/1.jpg")
    for name, target in (("a/up", ".."), ("b/self", "."), ("out", "../.."), ("b/root", "/")):
        (root / name).symlink_to(target)
    assert paths(root) == {"a/1.jpg", "b/1.jpg"}
    assert_facts(capsys.readouterr().err, f"'{root}'", "'a/up'", "4 such links")


def test_links_in_circles_give_each_file_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "photos"
    for number in range(12):  # each folder leads to all others: there are 12! routes
        folder(root, f"{number}/1.jpg")
        for other in range(12):
            (root / f"{number}/to{other}").symlink_to(f"../{other}")
    assert paths(root) == {f"{number}/1.jpg" for number in range(12)}
    assert_facts(capsys.readouterr().err, "'0/to0'", "12 such links", "132 such links")


def test_a_linked_folder_outside_is_read_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "photos", "a/1.jpg")
    folder(tmp_path / "store", "cats/1.jpg", "cats/more/2.jpg")
    (root / "cat").symlink_to("../store/cats")
    (tmp_path / "store/cats/back").symlink_to("..")
    assert paths(root) == {"a/1.jpg", "cat/1.jpg", "cat/more/2.jpg"}
    (root / "feline").symlink_to("../store/cats")
    capsys.readouterr()
    assert paths(root) == {"a/1.jpg", "cat/1.jpg", "cat/more/2.jpg"}
    assert_facts(capsys.readouterr().err, "'feline'", "'cat'")


def test_a_folder_counts_under_its_own_name_before_any_link(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", "val/a/1.jpg")
    (root / "alias").symlink_to("val")
    assert paths(root) == {"val/a/1.jpg"}


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_a_file_in_two_folders_is_named(link: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "photos", "a/1.jpg", "b/2.jpg")
    getattr(root / "a/copy.jpg", link)(root / "a/1.jpg")  # a class may repeat an image
    assert paths(root) == {"a/1.jpg", "a/copy.jpg", "b/2.jpg"}
    assert not capsys.readouterr().err
    getattr(root / "b/1.jpg", link)(root / "a/1.jpg")
    assert paths(root) == {"a/1.jpg", "a/copy.jpg", "b/1.jpg", "b/2.jpg"}
    assert_facts(capsys.readouterr().err, "'a/1.jpg'", "'b/1.jpg'", "1 file")


def test_special_files_are_named_and_not_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "p", "a/1.jpg")
    os.mkfifo(root / "a/pipe.jpg")
    (root / "a/null.jpg").symlink_to(os.devnull)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(root / "a/socket"))
    assert paths(root) == {"a/1.jpg"}
    assert_facts(capsys.readouterr().err, "'a/null.jpg'", "3 special files")


def test_broken_links_are_refused_by_name(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", "a/1.jpg")
    for target in ("nothing", "2.jpg"):
        (root / "a/2.jpg").symlink_to(target)
        with pytest.raises(ShardError) as caught:
            FolderTree(root)
        assert_facts(caught.value, f"'{root}/a/2.jpg'")
        (root / "a/2.jpg").unlink()
    (root / "a/.#lock").symlink_to("user@host")  # of an editor
    assert paths(root) == {"a/1.jpg"}
