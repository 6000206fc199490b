"""Copy a small part of a data set into new shards, for the trial of a job."""

from dataclasses import dataclass
from pathlib import Path

from webdataset import TarWriter

from teacher_cache.data.index import ShardIndex, save_index
from teacher_cache.data.indexing import index_shard
from teacher_cache.data.shards import read_shard


@dataclass(frozen=True)
class SampleSize:
    """Number of shards, and of images in each shard."""

    shards: int
    rows: int


def cut_sample(index: ShardIndex, size: SampleSize, folder: Path) -> ShardIndex:
    """Copy the first images of the first shards to `folder`; shards are repeated if there are too few."""
    folder.mkdir(parents=True)
    shards = []
    large_enough = [number for number, shard in enumerate(index.shards) if shard.rows >= size.rows]
    for number in range(size.shards):
        records = read_shard(index, large_enough[number % len(large_enough)])[: size.rows]
        path = folder / f"{number:06d}.tar"
        with path.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
            for record in records:
                label = str(record.label).encode()
                tar.write({"__key__": f"{number}-{record.row}", "jpg": record.image, "cls": label})
        shards.append(index_shard(str(path), folder)[0])
    sample = ShardIndex(str(folder), tuple(shards), index.classes)
    save_index(sample, folder / "index.json")
    return sample
