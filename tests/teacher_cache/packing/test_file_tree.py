import tarfile
import zipfile
from pathlib import Path

import pytest

from teacher_cache.packing.file_tree import open_tree

FILES = {
    "a/1.jpg": b"j" * 100,
    "a/1.json": b"{}",
    "a/notes.txt": b"",
    "b/c/2": b"no suffix",
    "photo.HEIC": b"ftyp",
}
HIDDEN = (".git/config", "a/.1.jpg.tmp", "a/._1.jpg", "__MACOSX/a/1.jpg", ".DS_Store")


def folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def archive(source: Path, path: Path) -> Path:
    """A zip or tar of a folder, by suffix."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
            for file in source.rglob("*"):
                zipped.write(file, file.relative_to(source))
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as tar:
            tar.add(source, ".")
    return path


@pytest.mark.parametrize("name", ["source", "s.zip", "s.tar", "s.tgz"])
def test_every_file_is_listed_but_hidden_ones(name: str, tmp_path: Path) -> None:
    source = folder(tmp_path / "source", FILES | dict.fromkeys(HIDDEN, b"x"))
    with open_tree(source if name == "source" else archive(source, tmp_path / name), tmp_path) as tree:
        assert tree.fingerprints.keys() == FILES.keys()
        for path, data in FILES.items():
            assert tree.read(path) == data and tree.head(path) == data[:64] and tree.head(path, 3) == data[:3]
