"""The index of a set of WebDataset shards: URLs, row counts and checksums, in webdataset's wids JSON format."""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from http.client import HTTPException
from itertools import zip_longest
from pathlib import Path
from ssl import SSLCertVerificationError
from typing import Any

from teacher_cache.console import join_first, log_line
from teacher_cache.disk_cache.decoded_cache import DecodedCache
from teacher_cache.disk_cache.shard_cache import ShardCache
from teacher_cache.errors import LimbeckError, RecipeError, ShardError, UnavailableError
from teacher_cache.storage.atomic import json_bytes
from teacher_cache.storage.download import read_url
from teacher_cache.storage.store import Store, is_remote, open_store

IMAGE_SUFFIXES = (
    *("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm"),
    *("jfif", "jpe", "mpo", "apng", "avif", "jp2", "j2k", "j2c", "jpc", "jpf", "jpx"),
    *("pgm", "pbm", "pnm", "pfm", "tga", "dib", "ico", "psd", "qoi", "dds", "sgi", "ras", "pcx"),
)
"""Still images (see views/formats.py). A sample's image has the first of these that it has, so append new ones."""
INDEX_NAME = "index.json"
INDEX_KIND = "wids-shard-index-v1"
PERMANENT_ERRORS = (PermissionError, IsADirectoryError, NotADirectoryError, SSLCertVerificationError)
"""Errors that retrying does not fix, also if they come from a server."""
HEAD_BYTES = 1000
"""An index has its `__kind__` in its first bytes, so that other JSON files need not be read to the end."""


@dataclass(frozen=True)
class SkippedSample:
    """A sample of a shard that is not a row. sample: its place in the tar, from 0."""

    sample: int
    key: str
    reason: str


@dataclass(frozen=True)
class Shard:
    """One tar in an index. url: relative to the index's folder, absolute, or a URL. bytes: the size of the tar.

    rows: the number of samples without the skipped ones.
    """

    url: str
    rows: int
    bytes: int
    md5: str
    skipped: tuple[SkippedSample, ...] = ()


@dataclass(frozen=True)
class SampleFormat:
    """How file names in a tar give keys, images and labels. The defaults are webdataset's.

    key_prefix: "shard" puts the name of the shard before each key, for keys that repeat in every shard.
    dotted_keys: the suffix of a file begins at the last dot of its name, not the first.
    label: suffix of the file with the class number or name, or "json:FIELD".
    """

    key_prefix: str = ""
    dotted_keys: bool = False
    label: str = "cls"

    def __post_init__(self) -> None:
        if self.key_prefix not in ("", "shard"):
            raise ValueError(f"key_prefix is {self.key_prefix!r} instead of '' or 'shard'")

    def changes(self) -> dict[str, Any]:
        """The fields that differ from the defaults."""
        default = asdict(DEFAULT_FORMAT)
        return {name: value for name, value in asdict(self).items() if value != default[name]}

    def options(self) -> str:
        """The options of limbeck index that give this format, each after a space."""
        key_prefix = f" --key-prefix {self.key_prefix}" if self.key_prefix else ""
        label = "" if self.label == "cls" else f" --label '{self.label}'"
        return f"{key_prefix}{' --dotted-keys' if self.dotted_keys else ''}{label}"

    def prefix(self, url: str) -> str:
        """The text before the keys of a shard."""
        return f"{shard_name(url)}/" if self.key_prefix else ""


DEFAULT_FORMAT = SampleFormat()


@dataclass(frozen=True)
class ShardIndex:
    """All shards of a set, in order, and the names of its classes.

    cache: the local cache for shards at URLs. decoded: the local cache for decoded images. name: the file name of
    the index.
    """

    folder: str
    shards: tuple[Shard, ...]
    classes: tuple[str, ...]
    cache: ShardCache | None = field(default=None, compare=False)
    decoded: DecodedCache | None = field(default=None, compare=False)
    format: SampleFormat = DEFAULT_FORMAT
    name: str = field(default=INDEX_NAME, compare=False)

    @property
    def path(self) -> str:
        """The path or URL of the index itself."""
        return f"{self.folder}/{self.name}"

    @property
    def urls(self) -> tuple[str, ...]:
        """The path or URL of each shard."""
        return tuple(self.url(number) for number in range(len(self.shards)))

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def url(self, number: int) -> str:
        url = self.shards[number].url
        return url if "://" in url or url.startswith("/") else f"{self.folder}/{url}"

    def contents(self) -> dict[str, Any]:
        """The fields that identify the set wherever it is stored: classes, row counts and checksums.

        Skipped samples, and rules for keys and labels that are not the default, are further fields.
        """
        contents: dict[str, Any] = {
            "classes": list(self.classes),
            "rows": [shard.rows for shard in self.shards],
            "md5": [shard.md5 for shard in self.shards],
        }
        if any(shard.skipped for shard in self.shards):
            contents["skipped"] = [[skipped.sample for skipped in shard.skipped] for shard in self.shards]
        if changes := self.format.changes():
            contents["format"] = changes
        if self.format.key_prefix:
            contents["prefixes"] = [self.format.prefix(shard.url) for shard in self.shards]
        return contents


def load_index(location: str | Path) -> ShardIndex:
    """Read an index file, or the `index.json` in a folder or under a URL prefix.

    Raises ShardError if the index is missing or invalid, UnavailableError if a server fails.
    """
    path = str(location)
    if not path.endswith(".json"):
        path = f"{path.rstrip('/')}/{INDEX_NAME}"
    try:
        fields = json.loads(read_url(path))
        if fields["__kind__"] != INDEX_KIND:
            raise ValueError(f"__kind__ is {fields['__kind__']!r} instead of {INDEX_KIND!r}")
        folder, _, name = path.rpartition("/")
        sample_format = SampleFormat(**fields.get("format", {}))
        shards = tuple(_parse_entry(entry) for entry in fields["shardlist"])
        index = ShardIndex(folder or ".", shards, tuple(fields["classes"]), format=sample_format, name=name)
    except FileNotFoundError:
        raise ShardError(_missing(path)) from None
    except (OSError, HTTPException) as error:
        raise read_error(
            path, error, f"shard index '{path}' cannot be read: {error}; create one with limbeck index"
        ) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"key {error} is missing" if isinstance(error, KeyError) else error
        raise ShardError(f"shard index '{path}' cannot be read: {reason}; create one with limbeck index") from None
    if path != str(location) and not is_remote(path) and (others := find_indexes(folder)):
        log_line(f"'{folder}' has other indexes too: {join_first(others)}; reading {INDEX_NAME}")
    return index


def _missing(path: str) -> str:
    """The message for an index that does not exist."""
    folder = path.rpartition("/")[0] or "."
    if not is_remote(path) and not Path(folder).exists():
        return f"no shards at '{folder}': the folder does not exist; check the path"
    if others := find_indexes(folder):
        return f"no shard index at '{path}', but these are in '{folder}': {', '.join(others)}; choose one of them"
    advice = "create it with: limbeck index SHARDS, or pack images with: limbeck pack SOURCE SHARDS"
    return f"no shard index at '{path}'; {advice}"


def find_indexes(folder: str) -> list[str]:
    """The names of all shard indexes in a folder or a bucket's prefix except INDEX_NAME, sorted."""
    if is_http(folder):
        return []
    store = open_store(folder)
    with suppress(LimbeckError, OSError):  # listing a bucket may be forbidden
        others = sorted(name for name in store.names("") if name.endswith(".json") and name != INDEX_NAME)
        return [name for name in others if INDEX_KIND.encode() in _head(store, name)]
    return []


def _head(store: Store, name: str) -> bytes:
    if is_remote(store.where):
        return store.get(name)[:HEAD_BYTES]
    with Path(store.where, name).open("rb") as file:
        return file.read(HEAD_BYTES)


def _parse_entry(entry: dict[str, Any]) -> Shard:
    skipped = tuple(
        SkippedSample(int(one["sample"]), str(one["key"]), str(one["reason"])) for one in entry.get("skipped", ())
    )
    rows = int(entry["nsamples"]) - len(skipped)
    return Shard(str(entry["url"]), rows, int(entry["filesize"]), str(entry["md5sum"]), skipped)


def _entry_of(shard: Shard) -> dict[str, Any]:
    samples = shard.rows + len(shard.skipped)  # what wids finds in the tar
    entry = {"url": shard.url, "nsamples": samples, "filesize": shard.bytes, "md5sum": shard.md5}
    return entry | ({"skipped": [asdict(skipped) for skipped in shard.skipped]} if shard.skipped else {})


def save_index(index: ShardIndex, location: str | Path) -> None:
    """Write the index to a path or a URL, durably. Equal indexes give equal bytes."""
    fields: dict[str, Any] = {"__kind__": INDEX_KIND, "wids_version": 1, "classes": index.classes}
    if changes := index.format.changes():
        fields["format"] = changes
    fields["shardlist"] = [_entry_of(shard) for shard in index.shards]
    folder, _, name = str(location).rpartition("/")
    open_store(folder or ".").put(name, json_bytes(fields))


def is_http(url: str) -> bool:
    """Whether this is a URL of an HTTP server, which has no listing."""
    return url.startswith(("http:", "https:"))


def shard_name(url: str) -> str:
    """The file name of a shard without .tar or .tar.gz, and without the query of an http(s) URL."""
    path = url.partition("?")[0] if is_http(url) else url
    return re.sub(r"(?i)\.(tar(\.\w+)?|tgz)$", "", path.rpartition("/")[2])


def read_error(url: str, error: Exception, message: str) -> LimbeckError:
    """The error to raise if a file or URL cannot be read.

    UnavailableError for a remote error that retrying may fix; ShardError for PERMANENT_ERRORS and local files.
    """
    reason = getattr(error, "reason", error)  # urllib wraps the cause
    return (
        UnavailableError(message)
        if is_remote(url) and not isinstance(reason, PERMANENT_ERRORS)
        else ShardError(message)
    )


def has_numbers(classes: tuple[str, ...]) -> bool:
    """Whether the names of the classes are their numbers, as they are without a file of class names."""
    return classes == tuple(map(str, range(len(classes))))


def includes_classes(train: tuple[str, ...], val: tuple[str, ...]) -> bool:
    """Whether each label means the same in both sets.

    Without class names, the validation set may have no images of the last classes.
    """
    return train == val or (len(val) < len(train) and has_numbers(train) and has_numbers(val))


def check_same_classes(train: tuple[str, ...], val: ShardIndex, train_location: str) -> None:
    """Raise RecipeError, naming the first class that differs, if a recipe's two sets have different classes.

    train: the classes of data.train. train_location: the value of data.train.
    """
    if includes_classes(train, val.classes):
        return
    number, names = next(
        (n, names) for n, names in enumerate(zip_longest(train, val.classes)) if len(set(names)) > 1
    )
    train_name, val_name = ("missing" if name is None else f"'{name}'" for name in names)
    first, second = load_index(train_location), val
    shorter, longer = (first, second) if len(val.classes) > len(train) else (second, first)
    raise RecipeError(
        f"class {number} is {train_name} in data.train and {val_name} in data.val; if their labels have the same "
        f"meaning, run: {_index_command(shorter, longer)}; otherwise pack both with the same --classes FILE"
    )


def _index_command(index: ShardIndex, names: ShardIndex) -> str:
    """The command that indexes the shards of an index again, with the class names of another."""
    skip = " --skip-broken" if any(shard.skipped for shard in index.shards) else ""
    options = f"--out '{index.path}' --classes '{names.path}'{index.format.options()}{skip}"
    return f"limbeck index '{brace_pattern(index.urls) or index.folder}' {options}"


def brace_pattern(urls: Sequence[str]) -> str:
    """One name or brace pattern for all shards, such as "s/train-{0000..1023}.tar", or ""."""
    if len(urls) == 1:
        return urls[0]
    parts = (
        [re.fullmatch(r"(.*(?<!\d)|)(\d+)(\.[^/]*)", url) for url in (urls[0], urls[-1])] if urls else [None, None]
    )
    first, last = parts
    if first is None or last is None:
        return ""
    low, high, width = int(first[2]), int(last[2]), len(first[2])
    if list(urls) != [f"{first[1]}{number:0{width}d}{first[3]}" for number in range(low, high + 1)]:
        return ""
    return f"{first[1]}{{{first[2]}..{last[2]}}}{first[3]}"
