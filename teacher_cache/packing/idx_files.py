"""Labeled images in IDX files, as of MNIST: one file of images, one of labels."""

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from teacher_cache.config import digest_of
from teacher_cache.errors import ShardError, is_transient

IDX_STEMS = {"train": "train", "test": "t10k"}
IDX_DIMENSIONS = {"images": 3, "labels": 1}


class IdxFiles:
    """The images of one split of IDX files."""

    def __init__(self, source: Path, split: str, classes: tuple[str, ...]) -> None:
        found = idx_splits(source)
        if not split and len(found) > 1:
            raise ShardError(
                f"'{source}' contains IDX files of train and test; choose one with --split train or --split test"
            )
        split = split or found[0]
        if split not in found:
            raise ShardError(
                f"'{source}' contains no IDX images of split '{split}'; choose one of: {', '.join(found)}"
            )
        images, labels = _idx_file(source, split, "images"), _idx_file(source, split, "labels")
        if images is None or labels is None:
            raise ShardError(f"'{source}' has no '{IDX_STEMS[split]}-labels-idx1-ubyte[.gz]'; add this file")
        self._pixels = _read_idx(images, IDX_DIMENSIONS["images"])
        self.labels = _read_idx(labels, IDX_DIMENSIONS["labels"]).tolist()
        if len(self._pixels) != len(self.labels):
            raise ShardError(
                f"'{images}' has {len(self._pixels)} images, but '{labels}' has {len(self.labels)} labels; "
                "download both again"
            )
        if not self.labels:
            raise ShardError(f"no images in '{images}'; download it again")
        self.paths = [f"{images.name}#{number}" for number in range(len(self.labels))]
        self.classes = classes or tuple(str(label) for label in range(max(self.labels) + 1))
        if max(self.labels) >= len(self.classes):
            raise ShardError(
                f"'{labels}' has labels from {min(self.labels)} to {max(self.labels)}, but there are "
                f"{len(self.classes)} class names; name all classes with --classes FILE"
            )
        self.fingerprint = digest_of(
            [self._pixels.shape, hashlib.sha256(self._pixels.data).hexdigest(), self.labels]
        )

    def read(self, number: int) -> tuple[str, bytes, bytes | None]:
        return "png", cv2.imencode(".png", self._pixels[number])[1].tobytes(), None


def idx_splits(folder: Path) -> list[str]:
    """The splits ("train", "test") of which the folder has an IDX file of images."""
    return [split for split in IDX_STEMS if folder.is_dir() and _idx_file(folder, split, "images")]


def _idx_file(folder: Path, split: str, kind: str) -> Path | None:
    name = f"{IDX_STEMS[split]}-{kind}-idx{IDX_DIMENSIONS[kind]}-ubyte"
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The uint8 array of an IDX file: bytes 0, 0, 8 (uint8), number of dimensions, then sizes, then data."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        if is_transient(error):
            raise
        raise ShardError(f"'{path}' cannot be read ({error}); download it again") from None
    header, lengths = data[:4], data[4 : 4 + 4 * dimensions]
    shape = [int.from_bytes(lengths[at : at + 4], "big") for at in range(0, 4 * dimensions, 4)]
    body = 4 + 4 * dimensions
    if header != bytes((0, 0, 8, dimensions)) or len(data) != body + math.prod(shape):
        raise ShardError(
            f"'{path}' is not a complete IDX file of bytes with {dimensions} dimensions; download it again"
        )
    return np.frombuffer(data, np.uint8, offset=body).reshape(shape)
