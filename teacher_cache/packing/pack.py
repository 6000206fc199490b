"""Labelled images into shards: checked, shuffled, kept byte for byte; killed and run again, it completes."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import IO, Any

from PIL import Image
from webdataset import TarWriter

from teacher_cache.console import Bar, count_of, format_bytes, log_line, progress
from teacher_cache.data.index import INDEX_NAME, Shard, ShardIndex, load_index, save_index
from teacher_cache.data.indexing import check_classes, examine_shard
from teacher_cache.errors import ImageError, ShardError
from teacher_cache.packing.image_source import Images, open_images
from teacher_cache.rng import generator
from teacher_cache.storage.atomic import atomic_file, json_bytes
from teacher_cache.storage.store import Store, is_remote, open_store
from teacher_cache.views.decode import decode
from teacher_cache.views.render import resize

MANIFEST_NAME = ".pack.json"
BROKEN_NAME = "broken.txt"
ENCODER_OPTIONS = {"jpg": {"quality": 95}, "webp": {"quality": 95}}


@dataclass(frozen=True)
class Broken:
    """An image that cannot be decoded, and why."""

    path: str
    reason: str


Sample = dict[str, str | bytes]


def pack(
    source: Path,
    out: str | Path,
    *,
    split: str = "",
    shard_rows: int = 1000,
    size: int = 0,
    limit: int = 0,
    seed: int = 0,
    skip_broken: bool = False,
    classes: tuple[str, ...] = (),
) -> ShardIndex:
    """Pack a folder of class folders, an archive of one, or IDX files into shards with an index.

    out: a folder, or a URL to which whole shards are sent from memory.
    Shard k holds the k-th `shard_rows` images of the shuffle, less the broken ones, so that it depends on no
    other shard: those that stand are kept when the same pack is run again. Keys are numbers in source order.
    size: re-encode images whose short side is longer, in pixels; 0 keeps every file as it is. limit: only so
    many images of the shuffle; 0 for all. skip_broken: list them in broken.txt and go on.
    Raises ShardError where the source cannot be packed, or `out` holds something else.
    """
    out = str(out).rstrip("/")
    store = open_store(out)
    scratch = Path(tempfile.gettempdir() if is_remote(out) else out)
    is_new = not scratch.exists()
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        with open_images(source, split, classes, scratch=scratch) as images:
            names = check_classes(set(images.labels), images.classes, [str(source)])
            options = {"split": split, "shard_rows": shard_rows, "size": size, "limit": limit, "seed": seed}
            _claim(store, {"source": images.stamp, **options, "classes": list(names)})
            if index := _finished(store):
                _sweep(out)
                held = f"{count_of(index.rows, 'image')} in {count_of(len(index.shards), 'shard')}"
                log_line(f"'{out}' is complete already: {held}")
                return index
            order = generator("pack", seed).permutation(len(images.labels))[: limit or None].tolist()
            chunks = [order[start : start + shard_rows] for start in range(0, len(order), shard_rows)]
            shards, broken = _write_shards(store, images, chunks, size, skip_broken)
        return _finish(store, ShardIndex(out, shards, names), broken)
    except ShardError:
        if is_new:
            with suppress(OSError):  # unless something has been packed
                scratch.rmdir()
        raise
    except OSError as error:
        raise ShardError(
            f"'{error.filename or out}': {error.strerror or error}; mend that and run again"
        ) from None


def _claim(store: Store, wanted: dict[str, Any]) -> None:
    """Write down what is packed here, or check that it is what was packed here before."""
    try:
        found = json.loads(store.get(MANIFEST_NAME))
    except FileNotFoundError:
        if any(name.endswith(".tar") for name in store.names("")):
            raise ShardError(
                f"'{store.where}' holds .tar files that are no pack's; choose an empty folder"
            ) from None
        store.put(MANIFEST_NAME, json_bytes(wanted))
        return
    if other := [name for name in wanted if found.get(name) != wanted[name]]:
        raise ShardError(
            f"'{store.where}' holds a pack of another source or other options ({', '.join(other)} changed); "
            "choose an empty folder"
        )


def _finished(store: Store) -> ShardIndex | None:
    """The index, when all that it lists is there; it is written last."""
    sizes = store.sizes("")
    if INDEX_NAME not in sizes:
        return None
    index = load_index(store.where)
    return index if all(sizes.get(shard.url) == shard.bytes for shard in index.shards) else None


def _write_shards(
    store: Store, images: Images, chunks: list[list[int]], size: int, skip_broken: bool
) -> tuple[tuple[Shard, ...], list[Broken]]:
    """Write the shards that are missing; `chunks` are the image numbers of each. Broken images are left out."""
    shards: list[Shard] = []
    broken: list[Broken] = []
    there = store.names("")
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        with progress("pack", sum(map(len, chunks)), "images") as bar:
            for number, chunk in enumerate(chunks):
                name = f"{number:06d}.tar"
                path, stands = f"{store.where}/{name}", name in there
                if stands:
                    shard, records = examine_shard(path, store.where)
                    shards.append(shard)
                    bar.advance(shard.rows)
                    kept = {key for key, _ in records}
                    chunk = [image for image in chunk if _key(image) not in kept]
                samples = _whole(pool.map(partial(_prepare, images, size), chunk), broken, skip_broken, bar)
                first = next(samples, None)
                if first is not None and stands:
                    raise ShardError(f"shard '{path}' lacks sample {first['__key__']!s}; remove it and run again")
                if first is not None:
                    shards.append(_write_shard(store, name, chain([first], samples)))
    finally:
        pool.shutdown(cancel_futures=True)
    return tuple(shards), broken


def _whole(
    results: Iterable[Sample | Broken], broken: list[Broken], skip_broken: bool, bar: Bar
) -> Iterator[Sample]:
    """The samples; broken images go to the list, or stop the pack."""
    for result in results:
        bar.advance(1)
        if not isinstance(result, Broken):
            yield result
        elif skip_broken:
            broken.append(result)
        else:
            raise ShardError(f"image '{result.path}' is broken: {result.reason}; remove it, or pass --skip-broken")


def _prepare(images: Images, size: int, number: int) -> Sample | Broken:
    """Read, decode and, if asked, shrink one image."""
    try:
        suffix, data, fields = images.read(number)
        pixels = decode(data)
    except ImageError as error:
        return Broken(images.paths[number], str(error))
    height, width = pixels.shape[:2]
    short = min(height, width)
    if 0 < size < short:
        smaller = resize(pixels, round(height * size / short), round(width * size / short), "bicubic")
        file = BytesIO()
        form = Image.registered_extensions()[f".{suffix}"]
        Image.fromarray(smaller).save(file, form, **ENCODER_OPTIONS.get(suffix, {}))
        data = file.getvalue()
    sample: Sample = {"__key__": _key(number), suffix: data, "cls": str(images.labels[number]).encode()}
    return sample if fields is None else sample | {"json": fields}


def _key(number: int) -> str:
    return f"{number:08d}"


def _write_shard(store: Store, name: str, samples: Iterable[Sample]) -> Shard:
    if is_remote(store.where):
        tar = BytesIO()
        shard = _fill(tar, name, samples)
        store.put(name, tar.getvalue())
        return shard
    with atomic_file(Path(store.where, name)) as temporary, temporary.open("wb") as file:
        return _fill(file, name, samples)


def _fill(file: IO[bytes], name: str, samples: Iterable[Sample]) -> Shard:
    hashing = _HashingWriter(file)
    rows = 0
    with TarWriter(hashing, encoder=False, mtime=0, user="limbeck", group="limbeck") as tar:
        for sample in samples:
            tar.write(sample)
            rows += 1
    return Shard(name, rows, hashing.bytes, hashing.md5.hexdigest())


class _HashingWriter:
    """A file that counts and hashes what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.bytes, self.md5 = file, 0, hashlib.md5(usedforsecurity=False)

    def write(self, data: bytes) -> int:
        self.md5.update(data)
        self.bytes += len(data)
        return self._file.write(data)


def _finish(store: Store, index: ShardIndex, broken: list[Broken]) -> ShardIndex:
    """Write the list of broken images, then the index, which makes the pack complete."""
    out, note = store.where, ""
    if broken:
        lines = sorted(f"{image.path}\t{image.reason}\n" for image in broken)
        store.put(BROKEN_NAME, "".join(lines).encode(errors="backslashreplace"))
        note = f"; {len(broken):,} broken images are left out, see {out}/{BROKEN_NAME}"
    if not index.shards:
        raise ShardError(f"every image is broken; see '{out}/{BROKEN_NAME}'")
    save_index(index, f"{out}/{INDEX_NAME}")
    _sweep(out)
    size = format_bytes(sum(shard.bytes for shard in index.shards))
    log_line(
        f"packed {count_of(index.rows, 'image')} of {len(index.classes)} classes into "
        f"{count_of(len(index.shards), 'shard')} ({size}) in {out}/{note}"
    )
    return index


def _sweep(out: str) -> None:
    """Remove the unfinished files of runs that were killed; a bucket has none."""
    for leftover in () if is_remote(out) else Path(out).glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
