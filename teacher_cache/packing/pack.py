"""Pack labeled images into shards: checked, shuffled, unchanged byte for byte. A killed pack can be rerun."""

import hashlib
import json
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import IO, Any

from PIL import Image
from webdataset import TarWriter

from teacher_cache.console import Bar, console, count_of, format_bytes, log_line, progress
from teacher_cache.data.index import INDEX_NAME, Shard, ShardIndex, load_index, save_index
from teacher_cache.data.indexing import index_shard
from teacher_cache.distributed.machine import cores
from teacher_cache.errors import ImageError, ShardError
from teacher_cache.packing.classes.class_summary import log_classes
from teacher_cache.packing.image_source import Images, open_images
from teacher_cache.rng import generator
from teacher_cache.storage.atomic import atomic_file, json_bytes
from teacher_cache.storage.store import Store, is_remote, open_store
from teacher_cache.views.decode import decode
from teacher_cache.views.resize import resize

MANIFEST_NAME = ".pack.json"
BROKEN_NAME = "broken.txt"
FILES = (INDEX_NAME, BROKEN_NAME)
"""Files that are written besides shards and .pack.json."""
ENCODER_OPTIONS = {suffix: {"quality": 95} for suffix in ("jpg", "webp", "avif", "heic", "heif")}
ANY_PNM = frozenset(("pbm", "pgm", "pnm"))
"""Suffixes of formats that Pillow writes as .ppm if the image has colors."""


@dataclass(frozen=True)
class BrokenImage:
    """An image that cannot be decoded, and the reason."""

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
    numeric: bool = False,
    sidecar: str = "",
) -> ShardIndex:
    """Pack a folder of class folders, an archive of one, or IDX files into shards with an index.

    Shard k contains the k-th `shard_rows` images of the shuffle without the broken ones. Shards are
    independent, so a rerun keeps existing shards. Keys are image numbers in source order.

    out: a folder, or a URL; for a URL each shard is built in memory, then uploaded.
    size: shrink images whose short side is longer to this many pixels; 0 keeps every file unchanged.
    limit: number of images from the shuffle; 0 for all.
    skip_broken: list broken images in broken.txt and continue.
    classes: class names by label; (): the sorted names of the class folders.
    numeric: sort the class folders by the numbers in their names, as timm does, not as text.
    sidecar: "json" adds the fields of each image's JSON file (1.json for 1.jpg) to its metadata; "" reads none.
    Raises ShardError if the source cannot be packed, or `out` contains something else, and OSError with a file
    name if a file cannot be written.
    """
    out, split = str(out).rstrip("/"), unicodedata.normalize("NFC", split)  # as the paths in the source
    store = open_store(out)
    scratch = Path(tempfile.gettempdir() if is_remote(out) else out)
    is_new = not scratch.exists()
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            with console.capture() as notes:  # printed later, so that an early error is the only line
                images = stack.enter_context(open_images(source, split, classes, scratch, numeric, sidecar))
            names = images.classes
            if len(names) < 2:
                raise ShardError(
                    f"'{source}' has only class '{names[0]}'; a classifier needs at least two classes"
                )
            options = {"split": split, "shard_rows": shard_rows, "size": size, "limit": limit, "seed": seed}
            options |= {"sidecar": sidecar, "classes": list(names)}
            _write_or_check_manifest(store, {"source": images.fingerprint, **options})
            if index := _load_finished(store):
                _remove_temporary_files(out)
                _log_source(images, notes.get())
                summary = f"{count_of(index.rows, 'image')} in {count_of(len(index.shards), 'shard')}"
                log_line(f"'{out}' is already complete: {summary}")
                return index
            order = generator("pack", seed).permutation(len(images.labels))[: limit or None].tolist()
            chunks = [order[start : start + shard_rows] for start in range(0, len(order), shard_rows)]
            shards, broken = _write_shards(store, images, chunks, size, skip_broken, notes.get())
        skipped = {image.path for image in broken}
        labels = [images.labels[number] for number in order if images.paths[number] not in skipped]
        return _finish(store, ShardIndex(out, shards, names), broken, labels)
    except ShardError:
        if is_new:
            with suppress(OSError):  # fails if something has been packed
                scratch.rmdir()
        raise
    except OSError as error:
        error.filename = error.filename or out
        raise


def _write_or_check_manifest(store: Store, expected: dict[str, Any]) -> None:
    """Write .pack.json, or check that the existing one has the same source and options."""
    try:
        found = json.loads(store.get(MANIFEST_NAME))
        if not isinstance(found, dict):
            raise ValueError("not a JSON object")
    except FileNotFoundError:
        if foreign := sorted(name for name in store.names("") if name.endswith(".tar") or name in FILES):
            raise ShardError(
                f"'{store.where}' contains '{foreign[0]}', which is not from limbeck pack; choose an empty folder"
            ) from None
        store.put(MANIFEST_NAME, json_bytes(expected))
        return
    except ValueError as error:
        raise ShardError(
            f"'{store.where}/{MANIFEST_NAME}' cannot be read ({error}); remove this folder or choose another one"
        ) from None
    is_older = "sidecar" not in found  # written by 0.1.0, which always read sidecars
    known = found | {"sidecar": expected["sidecar"]} if is_older else found
    other = [name for name in expected if known.get(name) != expected[name]]
    if not other:
        return
    hint = ""
    if is_older and "source" in other:
        hint = "; limbeck 0.1.0 started it: if images have .json sidecars, add --sidecar json to continue"
    raise ShardError(
        f"'{store.where}' contains a pack with another source or other options (changed: {', '.join(other)}); "
        f"choose an empty folder{hint}"
    )


def _load_finished(store: Store) -> ShardIndex | None:
    """The index if it exists (it is written last) and all its shards have the right size; otherwise None."""
    sizes = store.sizes("")
    if INDEX_NAME not in sizes:
        return None
    index = load_index(store.where)
    return index if all(sizes.get(shard.url) == shard.bytes for shard in index.shards) else None


def _write_shards(
    store: Store, images: Images, chunks: list[list[int]], size: int, skip_broken: bool, notes: str
) -> tuple[tuple[Shard, ...], list[BrokenImage]]:
    """Write the missing shards, without broken images.

    chunks: the image numbers of each shard. notes: the lines about the source, logged after the first shard.
    """
    shards: list[Shard] = []
    broken: list[BrokenImage] = []
    existing_names = store.names("")
    pool = ThreadPoolExecutor(cores())
    try:
        with progress("pack", sum(map(len, chunks)), "images") as bar:
            for number, chunk in enumerate(chunks):
                name = f"{number:06d}.tar"
                path, exists = f"{store.where}/{name}", name in existing_names
                if exists:
                    shard, records = index_shard(path, store.where)
                    shards.append(shard)
                    bar.advance(shard.rows)
                    packed_keys = {key for key, _ in records}
                    chunk = [image for image in chunk if _key(image) not in packed_keys]
                samples = _intact_samples(
                    pool.map(partial(_prepare, images, size), chunk), broken, skip_broken, bar
                )
                first = next(samples, None)
                if first is not None and exists:
                    raise ShardError(f"shard '{path}' has no sample {first['__key__']!s}; remove it, then rerun")
                if first is not None:
                    shards.append(_write_shard(store, name, chain([first], samples)))
                if number == 0:  # early, but an error in the first images is the only line
                    _log_source(images, notes)
    finally:
        pool.shutdown(cancel_futures=True)
    return tuple(shards), broken


def _log_source(images: Images, notes: str) -> None:
    if notes:
        log_line(notes.removesuffix("\n"))
    log_classes(images.classes, images.labels)


def _intact_samples(
    results: Iterable[Sample | BrokenImage], broken: list[BrokenImage], skip_broken: bool, bar: Bar
) -> Iterator[Sample]:
    """Yield the samples; append broken images to `broken`, or raise ShardError without skip_broken."""
    for result in results:
        bar.advance(1)
        if not isinstance(result, BrokenImage):
            yield result
        elif skip_broken:
            broken.append(result)
        else:
            raise ShardError(f"image '{result.path}' is broken: {result.reason}; remove it or add --skip-broken")


def _prepare(images: Images, size: int, number: int) -> Sample | BrokenImage:
    """Read and decode one image; shrink it if its short side exceeds `size` > 0."""
    try:
        suffix, data, fields = images.read(number)
        pixels = decode(data)
    except ImageError as error:
        return BrokenImage(images.paths[number], str(error))
    height, width = pixels.shape[:2]
    short = min(height, width)
    if 0 < size < short:
        smaller = resize(pixels, round(height * size / short), round(width * size / short), "bicubic")
        suffix = {**dict.fromkeys(ANY_PNM, "ppm"), "dib": "bmp"}.get(suffix, suffix)  # Pillow's DIB has no header
        file = BytesIO()
        image_format = Image.registered_extensions()[f".{suffix}"]
        Image.fromarray(smaller).save(file, image_format, **ENCODER_OPTIONS.get(suffix, {}))
        data = file.getvalue()
    sample: Sample = {"__key__": _key(number), suffix: data, "cls": str(images.labels[number]).encode()}
    return sample if fields is None else sample | {"json": fields}


def _key(number: int) -> str:
    return f"{number:08d}"


def _write_shard(store: Store, name: str, samples: Iterable[Sample]) -> Shard:
    if is_remote(store.where):
        tar = BytesIO()
        shard = _write_tar(tar, name, samples)
        store.put(name, tar.getvalue())
        return shard
    with atomic_file(Path(store.where, name)) as temporary, temporary.open("wb") as file:
        return _write_tar(file, name, samples)


def _write_tar(file: IO[bytes], name: str, samples: Iterable[Sample]) -> Shard:
    hashing = _HashingWriter(file)
    rows = 0
    with TarWriter(hashing, encoder=False, mtime=0, user="limbeck", group="limbeck") as tar:
        for sample in samples:
            tar.write(sample)
            rows += 1
    return Shard(name, rows, hashing.bytes, hashing.md5.hexdigest())


class _HashingWriter:
    """A writer that counts and hashes the bytes written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.bytes, self.md5 = file, 0, hashlib.md5(usedforsecurity=False)

    def write(self, data: bytes) -> int:
        self.md5.update(data)
        self.bytes += len(data)
        return self._file.write(data)


def _finish(store: Store, index: ShardIndex, broken: list[BrokenImage], labels: list[int]) -> ShardIndex:
    """Write the list of broken images, then the index, which completes the pack. labels: of the packed images."""
    out, note = store.where, ""
    if broken:
        lines = sorted(f"{image.path}\t{image.reason}\n" for image in broken)
        store.put(BROKEN_NAME, "".join(lines).encode(errors="backslashreplace"))
        note = f"; {count_of(len(broken), 'broken image')} skipped, see {out}/{BROKEN_NAME}"
    if not index.shards:
        raise ShardError(f"every image is broken; see '{out}/{BROKEN_NAME}' for the reasons")
    save_index(index, f"{out}/{INDEX_NAME}")
    _remove_temporary_files(out)
    size = format_bytes(sum(shard.bytes for shard in index.shards))
    if broken:
        log_line(f"without the {count_of(len(broken), 'broken image')}:")
        log_classes(index.classes, labels)
    log_line(
        f"packed {count_of(index.rows, 'image')} of {len(index.classes)} classes into "
        f"{count_of(len(index.shards), 'shard')} ({size}) in {out}/{note}"
    )
    return index


def _remove_temporary_files(out: str) -> None:
    """Remove temporary files of killed runs; object stores have none."""
    for leftover in () if is_remote(out) else Path(out).glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
