import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
from facts import assert_facts

import server.demo
from server.demo import _Stages, find_dataset, pack_splits
from teacher_cache.data.index import load_index
from teacher_cache.errors import ShardError
from teacher_cache.recipe import TrainShards
from teacher_cache.storage.jsonl import Journal


@pytest.fixture
def idx(tmp_path: Path) -> Path:
    """Gzipped IDX files as in Debian's package: 40 training and 20 test images of two classes."""
    folder = tmp_path / "idx"
    folder.mkdir()
    for split, count in (("train", 40), ("t10k", 20)):
        images = np.arange(count * 28 * 28, dtype=np.uint32).astype(np.uint8)
        head = b"\0\0\x08\x03" + b"".join(size.to_bytes(4) for size in (count, 28, 28))
        with gzip.open(folder / f"{split}-images-idx3-ubyte.gz", "wb") as file:
            file.write(head + images.tobytes())
        with gzip.open(folder / f"{split}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(b"\0\0\x08\x01" + count.to_bytes(4) + bytes(number % 2 for number in range(count)))
    return folder


def test_given_images_are_packed_with_class_names(idx: Path, tmp_path: Path) -> None:
    pack_splits(idx, tmp_path / "demo")
    train, test = (load_index(tmp_path / "demo" / "shards" / split) for split in ("train", "test"))
    assert (train.rows, test.rows) == (40, 20)
    assert train.classes == server.demo.CLASSES


def test_missing_data_folder_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(ShardError) as raised:
        find_dataset(tmp_path / "none", tmp_path)
    assert_facts(raised.value, "DATA", tmp_path / "none", "Fashion-MNIST")
    assert "\n" not in str(raised.value)


def test_failed_download_is_a_one_line_error_with_the_command_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.demo, "DEBIAN_FOLDER", tmp_path / "none")
    monkeypatch.setattr("torchvision.datasets.FashionMNIST.mirrors", ["http://127.0.0.1:9/"])  # a closed port
    with pytest.raises(ShardError) as raised:
        find_dataset(None, tmp_path)
    assert_facts(raised.value, "Fashion-MNIST", "dataset-fashion-mnist", "make demo DATA=FOLDER")
    assert "\n" not in str(raised.value)


def test_stage_reruns_only_if_its_recipe_or_an_earlier_stage_changed(tmp_path: Path) -> None:
    done: list[str] = []

    def demo(first: str, second: str) -> list[tuple[str, dict[str, float], float]]:
        stages = _Stages(Journal(tmp_path / "stages.jsonl"), ["data"])
        for name, train in (("first", first), ("second", second)):
            stages.run(name, TrainShards(train=train), lambda name=name: done.append(name) or {"class": 50.0})
        return stages.rows

    rows = demo("a", "b")
    assert demo("a", "b") == rows and done == ["first", "second"]
    demo("a", "c")
    assert done == ["first", "second", "second"]
    demo("b", "c")
    assert done == ["first", "second", "second", "first", "second"]
    shutil.rmtree(tmp_path)
