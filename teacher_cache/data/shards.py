"""Read the records of one shard, from local disk, an object store or a URL."""

import hashlib
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from http.client import HTTPException
from typing import Any

from webdataset.tariterators import group_by_keys

from teacher_cache.data.index import IMAGE_SUFFIXES, Shard, ShardIndex, read_error
from teacher_cache.data.shard_cache import ShardCache, ShardCacheSpec
from teacher_cache.data.tar import members
from teacher_cache.errors import RecipeError, ShardError
from teacher_cache.storage.download import read_url
from teacher_cache.storage.store import is_remote


@dataclass(frozen=True)
class Record:
    """One sample: its place in the shard, its key, the encoded image, the true class."""

    row: int
    key: str
    image: bytes
    label: int


def with_shard_cache(index: ShardIndex, spec: ShardCacheSpec, table: str) -> ShardIndex:
    """The index, its shards from URLs kept as a recipe's table says; raises RecipeError where one does not fit."""
    if not spec.shard_cache:
        return index
    limit = int(spec.shard_cache_gib * 2**30)
    for number, shard in enumerate(index.shards):
        if shard.bytes > limit and is_remote(index.url(number)):
            raise RecipeError(
                f"{table}.shard_cache_gib = {spec.shard_cache_gib:g} has no room for shard '{index.url(number)}' "
                f"of {shard.bytes:,} bytes; raise it"
            )
    return replace(index, cache=ShardCache(spec.shard_cache, limit))


def read_shard(index: ShardIndex, number: int, verify: bool = True) -> list[Record]:
    """All records of a shard, in tar order; row i is record i.

    verify: compare the checksum, which a process that has done so once may leave out.
    Raises ShardError when the shard is missing, cut short, or not the one that was indexed.
    """
    url, wanted, cache = index.url(number), index.shards[number], _shard_cache(index, number)
    if cache:
        data = cache.read(wanted.md5, wanted.bytes, partial(_fetch_verified, url, wanted), verify)
    else:
        data = _fetch_verified(url, wanted, verify)
    records = list(scan_shard(url, data))
    if len(records) != wanted.rows:
        raise ShardError(
            f"shard '{url}' has {len(records)} samples where the index says {wanted.rows}; index it anew"
        )
    return records


def scan_shard(url: str, data: bytes) -> Iterator[Record]:
    """The records of one tar, whatever any index says of it."""
    files = (
        {"fname": name, "data": content, "__url__": url}
        for name, content in members(data)
        if not re.match(r"__[^/]*__(/|$)", name)  # metadata of the tar itself, by webdataset's convention
    )
    try:
        for row, sample in enumerate(group_by_keys(files)):
            yield _parse_record(url, row, sample)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        reason = str(error.args[0] if error.args else error).partition(" in tar file")[
            0
        ]  # the rest is webdataset's
        raise ShardError(f"shard '{url}' is damaged or cut short ({reason}); restore it") from None


def ensure_cached(index: ShardIndex, number: int) -> None:
    """Have a shard from a URL on the disk by the time that it is read, where shards are kept."""
    if cache := _shard_cache(index, number):
        wanted = index.shards[number]
        cache.ensure(wanted.md5, wanted.bytes, partial(_fetch_verified, index.url(number), wanted))


def _shard_cache(index: ShardIndex, number: int) -> ShardCache | None:
    return index.cache if is_remote(index.url(number)) else None


def _fetch_verified(url: str, wanted: Shard, verify: bool = True) -> bytes:
    """The bytes that were indexed; raises ShardError where they are missing, cut short or others."""
    data = fetch(url)
    if len(data) != wanted.bytes:
        raise ShardError(
            f"shard '{url}' has {len(data)} bytes where the index says {wanted.bytes}; "
            "restore it, or index the shards anew"
        )
    if verify and hashlib.md5(data, usedforsecurity=False).hexdigest() != wanted.md5:
        raise ShardError(f"shard '{url}' has changed since it was indexed; restore it, or index the shards anew")
    return data


def fetch(url: str) -> bytes:
    """All bytes of a shard. Raises ShardError where it is missing, UnavailableError where a server fails."""
    try:
        return read_url(url)
    except FileNotFoundError:
        raise ShardError(f"shard '{url}' is missing; restore it, or index the shards that exist") from None
    except (OSError, EOFError, HTTPException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise read_error(url, error, f"shard '{url}' cannot be read ({reason}); restore it") from None


def _parse_record(url: str, row: int, sample: dict[str, Any]) -> Record:
    key = sample["__key__"]
    image = next((sample[suffix] for suffix in IMAGE_SUFFIXES if suffix in sample), None)
    if image is None:
        raise ShardError(f"shard '{url}': sample '{key}' has no image (one of {', '.join(IMAGE_SUFFIXES)})")
    try:
        label = int(sample["cls"])
    except KeyError:
        raise ShardError(f"shard '{url}': sample '{key}' has no .cls file with its class number") from None
    except ValueError:
        found = sample["cls"][:20]
        raise ShardError(f"shard '{url}': sample '{key}' has the class {found!r}, not a number") from None
    return Record(row, key, image, label)


def spread(index: ShardIndex, count: int) -> list[Record]:
    """Records spread evenly over a set, `count` of them or all there are."""
    count = min(count, index.rows)
    wanted = [number * index.rows // count for number in range(count)]
    found, first = [], 0
    for number, shard in enumerate(index.shards):
        chosen = [row - first for row in wanted if first <= row < first + shard.rows]
        records = read_shard(index, number) if chosen else []
        found += [records[row] for row in chosen]
        first += shard.rows
    return found
