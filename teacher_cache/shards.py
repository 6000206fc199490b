"""Shards and their index: WebDataset tars, listed in webdataset's wids JSON format with counts and checksums."""

import hashlib
import json
import tarfile
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from webdataset.shardlists import expand_urls
from webdataset.tariterators import group_by_keys, tar_file_expander

from teacher_cache.disk import write_durably
from teacher_cache.errors import ShardError
from teacher_cache.journal import progress

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm")
INDEX_NAME = "index.json"
INDEX_KIND = "wids-shard-index-v1"


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
    """Every shard of a set, in order, and the names of its classes."""

    folder: str
    shards: tuple[Shard, ...]
    classes: tuple[str, ...]

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


def load_index(where: str | Path) -> ShardIndex:
    """Read an index file, or the `index.json` of a folder or URL prefix."""
    path = str(where)
    if not path.endswith(".json"):
        path = f"{path.rstrip('/')}/{INDEX_NAME}"
    try:
        with open_url(path) as file:
            fields = json.load(file)
        if fields["__kind__"] != INDEX_KIND:
            raise ValueError(f"its __kind__ is {fields['__kind__']!r}, not {INDEX_KIND!r}")
        shards = tuple(
            Shard(entry["url"], entry["nsamples"], entry["filesize"], entry["md5sum"])
            for entry in fields["shardlist"]
        )
        return ShardIndex(path.rpartition("/")[0] or ".", shards, tuple(fields["classes"]))
    except FileNotFoundError:
        raise ShardError(f"no shard index at '{path}'; make it with: limbeck index SHARDS") from None
    except (KeyError, TypeError, ValueError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ShardError(f"shard index '{path}' cannot be read: {reason}; make it anew: limbeck index") from None


def save_index(index: ShardIndex, path: Path) -> None:
    """Write the index durably; the same index always gives the same bytes."""
    shardlist = [
        {"url": shard.url, "nsamples": shard.rows, "filesize": shard.bytes, "md5sum": shard.md5}
        for shard in index.shards
    ]
    fields = {"__kind__": INDEX_KIND, "wids_version": 1, "classes": index.classes, "shardlist": shardlist}
    write_durably(path, (json.dumps(fields, indent=1) + "\n").encode())


def read_shard(index: ShardIndex, number: int) -> list[Record]:
    """All records of a shard, in tar order; row i is record i.

    Raises ShardError when the shard is missing, cut short, or holds other rows than the index says.
    """
    url = index.url(number)
    wanted = index.shards[number]
    if "://" not in url and Path(url).exists() and (size := Path(url).stat().st_size) != wanted.bytes:
        raise ShardError(
            f"shard '{url}' has {size} bytes where the index says {wanted.bytes}; "
            "restore it, or index the shards anew"
        )
    records = list(scan_shard(url))
    if len(records) != wanted.rows:
        raise ShardError(
            f"shard '{url}' has {len(records)} samples where the index says {wanted.rows}; index it anew"
        )
    return records


def scan_shard(url: str, file: IO[bytes] | None = None) -> Iterator[Record]:
    """The records of one tar, whatever any index says of it."""
    try:
        with file or open_url(url) as stream:
            samples = group_by_keys(tar_file_expander([{"url": url, "stream": stream}]))
            for row, sample in enumerate(samples):
                yield _record(url, row, sample)
    except FileNotFoundError:
        raise ShardError(f"shard '{url}' is missing; restore it, or index the shards that exist") from None
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        reason = str(error.args[0] if error.args else error).partition(" @ ")[0]
        raise ShardError(f"shard '{url}' is damaged or cut short ({reason}); restore it") from None


def index_shards(urls: Iterable[str], folder: Path, classes: tuple[str, ...] = ()) -> ShardIndex:
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
            shard, records = _examine(url, folder)
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


def expand_shards(patterns: Iterable[str]) -> list[str]:
    """Tar paths and URLs from folders, brace patterns ("s/{000..012}.tar") and plain names."""
    urls: list[str] = []
    for pattern in patterns:
        if Path(pattern).is_dir():
            urls += sorted(str(path) for path in Path(pattern).glob("*.tar"))
        else:
            urls += expand_urls(pattern)
    if not urls:
        raise ShardError(f"no .tar files in {', '.join(patterns)}; give a folder of shards or a pattern")
    return urls


def open_url(url: str) -> IO[bytes]:
    """Open a local path or a URL for reading; http(s) by the standard library, anything else by fsspec."""
    scheme, separator, _ = url.partition("://")
    if not separator:
        return Path(url).open("rb")
    if scheme in ("http", "https"):
        try:
            response: IO[bytes] = urllib.request.urlopen(url, timeout=60)
        except OSError as error:
            raise ShardError(f"'{url}' cannot be opened: {error}; check the address") from None
        return response
    import fsspec  # only remote stores need it

    try:
        file: IO[bytes] = fsspec.open(url, "rb").open()
    except (ImportError, ValueError) as error:
        raise ShardError(f"'{url}' cannot be opened: {error}") from None
    return file


def _examine(url: str, folder: Path) -> tuple[Shard, list[tuple[str, int]]]:
    """A shard's index entry and the (key, label) of each record, in one pass over its bytes."""
    reader = None
    try:
        reader = _HashingReader(open_url(url))
        records = [(record.key, record.label) for record in scan_shard(url, reader)]
    except FileNotFoundError:
        raise ShardError(f"shard '{url}' is missing; check the pattern") from None
    name = url
    if "://" not in url:
        path = Path(url).resolve()
        name = str(path.relative_to(folder.resolve()) if path.is_relative_to(folder.resolve()) else path)
    return Shard(name, len(records), reader.bytes, reader.md5()), records


class _HashingReader:
    """A file that counts and hashes what is read of it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash, self.bytes = file, hashlib.md5(usedforsecurity=False), 0
        self._tail = b""

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._hash.update(data)
        self.bytes += len(data)
        self._tail = (self._tail + data[-1024:])[-1024:]
        return data

    def md5(self) -> str:
        return self._hash.hexdigest()

    def __enter__(self) -> "_HashingReader":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        rest = b""
        while data := self.read(1 << 20):  # what the tar reader leaves unread counts too
            rest = rest or data.strip(b"\0")
        self._file.close()
        if kind is None and (rest or self._tail != bytes(1024)):  # tarfile itself passes over both
            raise tarfile.ReadError("it does not end as a tar does" if rest == b"" else "a header is damaged")


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
        raise ShardError(f"shard '{url}': sample '{key}' has the class {sample['cls'][:20]!r}, not a number") from None
    return Record(row, key, image, label)
