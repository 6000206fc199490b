"""The index of a set of WebDataset shards: URLs, row counts and checksums, in webdataset's wids JSON format."""

import json
from dataclasses import dataclass, field
from http.client import HTTPException
from itertools import zip_longest
from pathlib import Path
from ssl import SSLCertVerificationError
from typing import Any

from teacher_cache.data.shard_cache import ShardCache
from teacher_cache.errors import LimbeckError, RecipeError, ShardError, UnavailableError
from teacher_cache.storage.atomic import json_bytes
from teacher_cache.storage.download import read_url
from teacher_cache.storage.store import is_remote, open_store

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm")
INDEX_NAME = "index.json"
INDEX_KIND = "wids-shard-index-v1"
PERMANENT_ERRORS = (PermissionError, IsADirectoryError, NotADirectoryError, SSLCertVerificationError)
"""Errors that retrying does not fix, also if they come from a server."""


@dataclass(frozen=True)
class Shard:
    """One tar in an index. url: relative to the index's folder, absolute, or a URL. bytes: the size of the tar."""

    url: str
    rows: int
    bytes: int
    md5: str


@dataclass(frozen=True)
class ShardIndex:
    """All shards of a set, in order, and the names of its classes. cache: the local cache for shards at URLs."""

    folder: str
    shards: tuple[Shard, ...]
    classes: tuple[str, ...]
    cache: ShardCache | None = field(default=None, compare=False)

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
        """The fields that identify the set wherever it is stored: classes, row counts and checksums."""
        return {
            "classes": list(self.classes),
            "rows": [shard.rows for shard in self.shards],
            "md5": [shard.md5 for shard in self.shards],
        }


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
        shards = tuple(
            Shard(str(entry["url"]), int(entry["nsamples"]), int(entry["filesize"]), str(entry["md5sum"]))
            for entry in fields["shardlist"]
        )
        return ShardIndex(path.rpartition("/")[0] or ".", shards, tuple(fields["classes"]))
    except FileNotFoundError:
        folder = Path(path).parent
        if not is_remote(path) and not folder.exists():
            raise ShardError(f"no shards at '{folder}': the folder does not exist; check the path") from None
        advice = "create it with: limbeck index SHARDS, or pack images with: limbeck pack SOURCE SHARDS"
        raise ShardError(f"no shard index at '{path}'; {advice}") from None
    except (OSError, HTTPException) as error:
        raise read_error(
            path, error, f"shard index '{path}' cannot be read: {error}; create one with limbeck index"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        reason = f"key {error} is missing" if isinstance(error, KeyError) else error
        raise ShardError(f"shard index '{path}' cannot be read: {reason}; create one with limbeck index") from None


def save_index(index: ShardIndex, location: str | Path) -> None:
    """Write the index to a path or a URL, durably. Equal indexes give equal bytes."""
    shardlist = [
        {"url": shard.url, "nsamples": shard.rows, "filesize": shard.bytes, "md5sum": shard.md5}
        for shard in index.shards
    ]
    fields = {"__kind__": INDEX_KIND, "wids_version": 1, "classes": index.classes, "shardlist": shardlist}
    folder, _, name = str(location).rpartition("/")
    open_store(folder or ".").put(name, json_bytes(fields))


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


def check_same_classes(train: tuple[str, ...], val: tuple[str, ...]) -> None:
    """Raise RecipeError, naming the first class that differs, if a recipe's two sets have different classes."""
    for number, names in enumerate(zip_longest(train, val)):
        if names[0] != names[1]:
            train_name, val_name = ("missing" if name is None else f"'{name}'" for name in names)
            raise RecipeError(
                f"class {number} is {train_name} in data.train and {val_name} in data.val; pack or index both "
                "with the same --classes FILE"
            )
