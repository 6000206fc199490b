"""Shards and their index: WebDataset tars, listed in webdataset's wids JSON format, with checksums."""

import hashlib
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from http.client import HTTPException
from itertools import zip_longest
from pathlib import Path
from ssl import SSLCertVerificationError
from typing import Any

from webdataset.shardlists import expand_urls
from webdataset.tariterators import group_by_keys

from teacher_cache.download import read_url
from teacher_cache.errors import LimbeckError, RecipeError, ShardError, UnavailableError
from teacher_cache.journal import progress
from teacher_cache.recipe import ShardCacheSpec
from teacher_cache.shard_cache import ShardCache
from teacher_cache.store import is_remote, open_store
from teacher_cache.tar import members

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm")
INDEX_NAME = "index.json"
INDEX_KIND = "wids-shard-index-v1"
LASTING = (PermissionError, IsADirectoryError, NotADirectoryError, SSLCertVerificationError)
"""What goes on being wrong at a URL, too, until somebody mends it."""


@dataclass(frozen=True)
class Shard:
    """One tar as the index lists it; `url` is relative to the index's folder, or a whole URL."""

    url: str
    rows: int
    bytes: int
    md5: str


@dataclass(frozen=True)
class Record:
    """One sample: its place in the shard, its key, the encoded image, the true class."""

    row: int
    key: str
    image: bytes
    label: int


@dataclass(frozen=True)
class ShardIndex:
    """Every shard of a set, in order, and the names of its classes. kept: where shards from URLs are kept."""

    folder: str
    shards: tuple[Shard, ...]
    classes: tuple[str, ...]
    kept: ShardCache | None = field(default=None, compare=False)

    @property
    def places(self) -> tuple[str, ...]:
        """Every shard's path or URL."""
        return tuple(self.url(number) for number in range(len(self.shards)))

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def url(self, number: int) -> str:
        url = self.shards[number].url
        return url if "://" in url or url.startswith("/") else f"{self.folder}/{url}"

    def contents(self) -> dict[str, Any]:
        """What two places that hold the same set agree on: rows and checksums, not paths."""
        return {
            "classes": list(self.classes),
            "rows": [shard.rows for shard in self.shards],
            "md5": [shard.md5 for shard in self.shards],
        }


def keep_shards(index: ShardIndex, spec: ShardCacheSpec, table: str) -> ShardIndex:
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
    return replace(index, kept=ShardCache(spec.shard_cache, limit))


def load_index(where: str | Path) -> ShardIndex:
    """Read an index file, or the `index.json` of a folder or URL prefix."""
    path = str(where)
    if not path.endswith(".json"):
        path = f"{path.rstrip('/')}/{INDEX_NAME}"
    try:
        fields = json.loads(read_url(path))
        if fields["__kind__"] != INDEX_KIND:
            raise ValueError(f"its __kind__ is {fields['__kind__']!r}, not {INDEX_KIND!r}")
        shards = tuple(
            Shard(str(entry["url"]), int(entry["nsamples"]), int(entry["filesize"]), str(entry["md5sum"]))
            for entry in fields["shardlist"]
        )
        return ShardIndex(path.rpartition("/")[0] or ".", shards, tuple(fields["classes"]))
    except FileNotFoundError:
        folder = Path(path).parent
        if not is_remote(path) and not folder.exists():
            raise ShardError(f"no shards at '{folder}', as there is no such folder; check the path") from None
        advice = "make it with: limbeck index SHARDS, or of images with: limbeck pack SOURCE SHARDS"
        raise ShardError(f"no shard index at '{path}'; {advice}") from None
    except (OSError, HTTPException) as error:
        raise _unread(
            path, error, f"shard index '{path}' cannot be read: {error}; limbeck index makes one"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ShardError(f"shard index '{path}' cannot be read: {reason}; limbeck index makes one") from None


def save_index(index: ShardIndex, where: str | Path) -> None:
    """Write the index durably, to a path or a URL; the same index always gives the same bytes."""
    shardlist = [
        {"url": shard.url, "nsamples": shard.rows, "filesize": shard.bytes, "md5sum": shard.md5}
        for shard in index.shards
    ]
    fields = {"__kind__": INDEX_KIND, "wids_version": 1, "classes": index.classes, "shardlist": shardlist}
    folder, _, name = str(where).rpartition("/")
    open_store(folder or ".").put(name, (json.dumps(fields, indent=1) + "\n").encode())


def read_shard(index: ShardIndex, number: int, verify: bool = True) -> list[Record]:
    """All records of a shard, in tar order; row i is record i.

    verify: compare the checksum, which a process that has done so once may leave out.
    Raises ShardError when the shard is missing, cut short, or not the one that was indexed.
    """
    url, wanted, kept = index.url(number), index.shards[number], _keeper(index, number)
    if kept:
        data = kept.read(wanted.md5, wanted.bytes, partial(_indexed, url, wanted), verify)
    else:
        data = _indexed(url, wanted, verify)
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
            yield _record(url, row, sample)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        reason = str(error.args[0] if error.args else error).partition(" in tar file")[
            0
        ]  # the rest is webdataset's
        raise ShardError(f"shard '{url}' is damaged or cut short ({reason}); restore it") from None


def hold_shard(index: ShardIndex, number: int) -> None:
    """Have a shard from a URL on the disk by the time that it is read, where shards are kept."""
    if kept := _keeper(index, number):
        wanted = index.shards[number]
        kept.hold(wanted.md5, wanted.bytes, partial(_indexed, index.url(number), wanted))


def _keeper(index: ShardIndex, number: int) -> ShardCache | None:
    return index.kept if is_remote(index.url(number)) else None


def _indexed(url: str, wanted: Shard, verify: bool = True) -> bytes:
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
        raise _unread(url, error, f"shard '{url}' cannot be read ({reason}); restore it") from None


def _unread(url: str, error: Exception, told: str) -> LimbeckError:
    """What is refused stays so, as does a certificate; a server that did not answer may do so later."""
    reason = getattr(error, "reason", error)  # urllib wraps what it met
    return UnavailableError(told) if is_remote(url) and not isinstance(reason, LASTING) else ShardError(told)


def index_shards(urls: Iterable[str], folder: str | Path, classes: tuple[str, ...] = ()) -> ShardIndex:
    """Index shards that exist: count rows, take checksums, check keys and labels.

    urls: tar files or URLs, in order. folder: where the index will lie. classes: names by label; without
    them the label numbers serve as names.
    """
    urls = list(urls)
    seen: dict[str, str] = {}
    labels: set[int] = set()
    shards = []
    with progress("index", len(urls), "shards") as bar:
        for url in urls:
            shard, records = examine_shard(url, folder)
            for key, label in records:
                if key in seen:
                    raise ShardError(
                        f"key '{key}' stands twice: in '{seen[key]}' and in '{url}'; keys must be unique"
                    )
                seen[key] = url
                labels.add(label)
            shards.append(shard)
            bar.advance(1)
    return ShardIndex(str(folder), tuple(shards), check_classes(labels, classes, urls))


def check_classes(labels: set[int], classes: tuple[str, ...], urls: list[str]) -> tuple[str, ...]:
    """Class names that fit the labels found; raises ShardError where there is nothing to tell apart."""
    if not labels:
        raise ShardError(f"no images in {urls[0] if urls else 'an empty list of shards'}; nothing to index")
    if len(labels) < 2:
        raise ShardError(f"every image has the class {min(labels)}; a classifier needs two classes or more")
    if min(labels) < 0 or (classes and max(labels) >= len(classes)):
        raise ShardError(
            f"labels run from {min(labels)} to {max(labels)}, which does not fit {len(classes)} class names"
        )
    return classes or tuple(str(label) for label in range(max(labels) + 1))


def check_same_classes(train: tuple[str, ...], val: tuple[str, ...]) -> None:
    """Raises RecipeError, with the first class that differs, where a recipe's two sets do not go together."""
    for number, names in enumerate(zip_longest(train, val)):
        if names[0] != names[1]:
            here, there = ("not there" if name is None else f"'{name}'" for name in names)
            raise RecipeError(
                f"class {number} is {here} in data.train and {there} in data.val; pack or index both with the "
                "same --classes FILE"
            )


def expand_shards(patterns: Iterable[str]) -> list[str]:
    """Tar paths and URLs from folders (of a bucket, too), brace patterns ("s/{000..012}.tar") and plain names."""
    urls: list[str] = []
    for pattern in patterns:
        try:
            found = _tars_in(pattern) if _is_folder(pattern) else expand_urls(pattern)
        except (ValueError, AssertionError) as error:  # an open brace; a ${NAME} without its WDS_NAME
            raise ShardError(f"pattern '{pattern}' cannot be expanded: {error}; mend it") from None
        if not found:
            raise ShardError(f"no .tar files in '{pattern}'; give a folder of shards or a pattern")
        urls += found
    return urls


def _is_folder(place: str) -> bool:
    if place.startswith(("http:", "https:")):
        return False  # nothing can be listed there
    return not place.endswith(".tar") and "{" not in place if is_remote(place) else Path(place).is_dir()


def _tars_in(folder: str) -> list[str]:
    tars = sorted(name for name in open_store(folder).names("") if name.endswith(".tar"))
    return [f"{folder.rstrip('/')}/{name}" for name in tars]


def examine_shard(url: str, folder: str | Path) -> tuple[Shard, list[tuple[str, int]]]:
    """A shard's index entry and the (key, label) of each record."""
    data = fetch(url)
    records = [(record.key, record.label) for record in scan_shard(url, data)]
    name = url.removeprefix(f"{str(folder).rstrip('/')}/")
    if not is_remote(url):  # links stay as they are named: a hub's cache links to files without a .tar name
        path, home = Path(url).parent.resolve() / Path(url).name, Path(folder).resolve()
        name = str(path.relative_to(home) if path.is_relative_to(home) else path)
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return Shard(name, len(records), len(data), md5), records


def _record(url: str, row: int, sample: dict[str, Any]) -> Record:
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
