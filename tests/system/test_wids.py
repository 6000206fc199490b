"""webdataset's own reader of indexed shards, wids, opens what `limbeck pack` and `limbeck index` write."""

from pathlib import Path

import pytest
from typer.testing import CliRunner
from wids import ShardListDataset

from server.cli import app
from teacher_cache.data.index import IMAGE_SUFFIXES, ShardIndex, load_index
from teacher_cache.data.shards import read_shard

Sample = tuple[str, bytes, int, int]


def samples_of_wids(index_file: Path, folder: Path) -> list[Sample]:
    """(key, image, label, row) of every sample, by wids alone; it copies the shards to `folder`."""
    folder.mkdir()
    dataset = ShardListDataset(str(index_file), cache_dir=str(folder), transformations=[], keep=True)
    found = []
    for sample in (dataset[number] for number in range(len(dataset))):
        (image,) = (sample[f".{suffix}"] for suffix in IMAGE_SUFFIXES if f".{suffix}" in sample)
        found.append((sample["__key__"], image.read(), int(sample[".cls"].read()), int(sample["__shardindex__"])))
    dataset.close()
    return found


def samples_of_ours(index: ShardIndex) -> list[Sample]:
    records = [record for number in range(len(index.shards)) for record in read_shard(index, number)]
    return [(record.key, record.image, record.label, record.row) for record in records]


def test_wids_yields_the_samples_of_a_packed_set(shards: ShardIndex, tmp_path: Path) -> None:
    found = samples_of_wids(Path(shards.folder, "index.json"), tmp_path / "copies")
    assert len(found) == 40 and found == samples_of_ours(shards)


@pytest.mark.parametrize("out", ["beside", "elsewhere"])
def test_wids_yields_the_samples_of_an_indexed_set(shards: ShardIndex, tmp_path: Path, out: str) -> None:
    """Shards by paths relative to the index, and by whole paths."""
    folder = tmp_path / "shards" if out == "beside" else tmp_path / "other"
    (tmp_path / "shards").mkdir()
    folder.mkdir(exist_ok=True)
    for number in (1, 2):
        place = Path(shards.url(number))
        (tmp_path / "shards" / place.name).write_bytes(place.read_bytes())
    done = CliRunner().invoke(app, ["index", str(tmp_path / "shards"), "--out", str(folder / "some.json")])
    assert done.exit_code == 0, done.output
    found = samples_of_wids(folder / "some.json", tmp_path / "copies")
    assert len(found) == 24 and found == samples_of_ours(load_index(folder / "some.json"))
