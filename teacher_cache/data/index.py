"""Shards and their index: WebDataset tars, listed in webdataset's wids JSON format, with checksums."""

import json
from dataclasses import dataclass, field
from http.client import HTTPException
from itertools import zip_longest
from pathlib import Path
from ssl import SSLCertVerificationError
from typing import Any

from teacher_cache.config import Plain
from teacher_cache.data.shard_cache import ShardCache
from teacher_cache.errors import LimbeckError, RecipeError, ShardError, UnavailableError
from teacher_cache.storage.atomic import json_bytes
from teacher_cache.storage.download import read_url
from teacher_cache.storage.store import is_remote, open_store

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
class ShardIndex:
    """Every shard of a set, in order, and the names of its classes. kept: where shards from URLs are kept."""

    folder: str
    shards: tuple[Shard, ...]
    classes: tuple[str, ...]
    cache: ShardCache | None = field(default=None, compare=False)

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
        raise unreadable(
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
    open_store(folder or ".").put(name, json_bytes(fields))


def unreadable(url: str, error: Exception, told: str) -> LimbeckError:
    """What is refused stays so, as does a certificate; a server that did not answer may do so later."""
    reason = getattr(error, "reason", error)  # urllib wraps what it met
    return UnavailableError(told) if is_remote(url) and not isinstance(reason, LASTING) else ShardError(told)


def check_same_classes(train: tuple[str, ...], val: tuple[str, ...]) -> None:
    """Raises RecipeError, with the first class that differs, where a recipe's two sets do not go together."""
    for number, names in enumerate(zip_longest(train, val)):
        if names[0] != names[1]:
            here, there = ("not there" if name is None else f"'{name}'" for name in names)
            raise RecipeError(
                f"class {number} is {here} in data.train and {there} in data.val; pack or index both with the "
                "same --classes FILE"
            )


def shard_set(index: "ShardIndex") -> Plain:
    """The part of a manifest that says which shards it is about."""
    return {"shards": index.contents()}
