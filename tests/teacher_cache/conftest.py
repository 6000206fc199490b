"""What more than one test of this package spoils."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
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
