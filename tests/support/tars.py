"""Small tars with files of given names, as other tools write them."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

Files = Iterable[tuple[str, bytes]]


def image(number: int, form: str = "JPEG") -> bytes:
    """An 8 x 8 image of one color; another number has another color."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, 7 * number % 256, 90)).save(file, form)
    return file.getvalue()


def samples(numbers: Iterable[int], classes: int = 2, key: str = "{}", first: int = 0) -> list[tuple[str, bytes]]:
    """An image and a .cls file for each number. key: a format of the number. first: the first label."""
    files = []
    for number in numbers:
        files.append((f"{key.format(number)}.jpg", image(number)))
        files.append((f"{key.format(number)}.cls", str(first + number % classes).encode()))
    return files


def write_tar(path: Path, files: Files, mode: str = "w") -> Path:
    """Write the files, in order, to a tar. mode: "w" or a compressed one such as "w:gz"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
