"""Read the records of a shard from a local disk, an object store or a URL."""

import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from http.client import HTTPException

from teacher_cache.data.index import DEFAULT_FORMAT, SampleFormat, Shard, ShardIndex, SkippedSample, read_error
from teacher_cache.data.samples import Files, SampleError, image_suffix, label_of, read_samples
from teacher_cache.data.shard_cache import ShardCache, ShardCacheSpec
from teacher_cache.data.tar import UnusableTar
from teacher_cache.errors import ImageError, RecipeError, ShardError
from teacher_cache.storage.download import read_url
from teacher_cache.storage.store import is_remote


@dataclass(frozen=True)
class Record:
    """One sample. row: its index in the shard. image: the encoded bytes. label: the true class."""

    row: int
    key: str
    image: bytes
    label: int


def with_shard_cache(index: ShardIndex, spec: ShardCacheSpec, table: str) -> ShardIndex:
    """Return the index with the shard cache of a recipe.

    table: the recipe table that holds `spec`. Raises RecipeError if a shard is larger than the cache.
    """
    if not spec.shard_cache:
        return index
    limit = int(spec.shard_cache_gib * 2**30)
    for number, shard in enumerate(index.shards):
        if shard.bytes > limit and is_remote(index.url(number)):
            raise RecipeError(
                f"{table}.shard_cache_gib = {spec.shard_cache_gib:g} is smaller than shard '{index.url(number)}' "
                f"of {shard.bytes:,} bytes; increase it"
            )
    return replace(index, cache=ShardCache(spec.shard_cache, limit))


def read_shard(index: ShardIndex, number: int, verify: bool = True) -> list[Record]:
    """Read all records of a shard, in tar order: record i is row i.

    verify: compare the checksum. A process needs to do this only once per shard.
    Raises ShardError if the shard is missing, truncated, or differs from the index.
    """
    url, wanted, cache = index.url(number), index.shards[number], _shard_cache(index, number)
    if cache:
        data = cache.read(wanted.md5, wanted.bytes, partial(_fetch_verified, url, wanted), verify)
    else:
        data = _fetch_verified(url, wanted, verify)
    records = list(scan_shard(url, data, index.format, index.classes, wanted.skipped))
    if len(records) != wanted.rows:
        raise ShardError(
            f"shard '{url}' has {len(records)} samples, but the index has {wanted.rows}; index it again"
        )
    return records


def scan_shard(
    url: str,
    data: bytes,
    sample_format: SampleFormat = DEFAULT_FORMAT,
    classes: Sequence[str] = (),
    skipped: Sequence[SkippedSample] = (),
) -> Iterator[Record]:
    """Yield the records of a tar, without an index.

    classes: class names by label, for labels that are names. skipped: samples that are not rows.
    Raises ShardError for a damaged tar, and for a sample without image or label.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    left_out = {one.sample for one in skipped}
    prefix = sample_format.prefix(url)
    samples = shard_samples(url, data, sample_format).items()
    kept = (sample for number, sample in enumerate(samples) if number not in left_out)
    for row, (key, files) in enumerate(kept):
        try:
            image, label = files[image_suffix(files)], label_of(files, sample_format.label, numbers)
        except SampleError as error:
            advice = f"; {error.advice}" if error.advice else ""
            raise ShardError(f"shard '{url}': sample '{key}' {error}{advice}") from None
        yield Record(row, prefix + key, image, label)


def shard_samples(url: str, data: bytes, sample_format: SampleFormat) -> dict[str, Files]:
    """The samples of a tar by key without the prefix. Raises ShardError for a damaged tar."""
    try:
        return read_samples(url, data, sample_format.dotted_keys)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        if isinstance(error, UnusableTar):
            raise ShardError(f"shard '{url}' cannot be used: {error}; {error.advice_for(url)}") from None
        if not data:
            raise ShardError(f"shard '{url}' is empty (0 bytes): its upload or download is unfinished") from None
        raise ShardError(f"shard '{url}' is damaged or truncated ({error}); restore it") from None


def ensure_cached(index: ShardIndex, number: int) -> None:
    """Download a remote shard into the shard cache, if there is one and the shard is not in it."""
    if cache := _shard_cache(index, number):
        wanted = index.shards[number]
        cache.ensure(wanted.md5, wanted.bytes, partial(_fetch_verified, index.url(number), wanted))


def _shard_cache(index: ShardIndex, number: int) -> ShardCache | None:
    return index.cache if is_remote(index.url(number)) else None


def _fetch_verified(url: str, wanted: Shard, verify: bool = True) -> bytes:
    """Read a shard; raise ShardError if it is missing, truncated or different from its index entry."""
    data = fetch(url)
    if len(data) != wanted.bytes:
        unfinished = " (an unfinished upload or download?)" if len(data) < wanted.bytes else ""
        raise ShardError(
            f"shard '{url}' has {len(data)} bytes, but the index has {wanted.bytes}{unfinished}; "
            "restore it, or index the shards again"
        )
    if verify and hashlib.md5(data, usedforsecurity=False).hexdigest() != wanted.md5:
        raise ShardError(f"shard '{url}' has changed since it was indexed; restore it, or index the shards again")
    return data


def fetch(url: str) -> bytes:
    """Read all bytes of a shard. Raises ShardError if it is missing, UnavailableError if a server fails."""
    try:
        return read_url(url)
    except FileNotFoundError:
        raise ShardError(f"shard '{url}' is missing; restore it, or index the existing shards") from None
    except (OSError, EOFError, HTTPException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise read_error(url, error, f"shard '{url}' cannot be read ({reason}); restore it") from None


def damaged_image(url: str, key: str, error: ImageError) -> ShardError:
    """The error for an image in a shard that cannot be decoded."""
    return ShardError(
        f"shard '{url}': image '{key}' {error}; leave it out with limbeck index SHARDS --skip-broken, or pack the "
        "shards again"
    )


def spread(index: ShardIndex, count: int) -> list[Record]:
    """Read `count` records at even distances in a set, or all if there are fewer."""
    count = min(count, index.rows)
    wanted = [number * index.rows // count for number in range(count)]
    found, first = [], 0
    for number, shard in enumerate(index.shards):
        chosen = [row - first for row in wanted if first <= row < first + shard.rows]
        records = read_shard(index, number) if chosen else []
        found += [records[row] for row in chosen]
        first += shard.rows
    return found
