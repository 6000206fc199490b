"""Build the index of existing shards: expand patterns, scan tars, check keys and classes."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from webdataset.shardlists import expand_urls

from teacher_cache.console import progress
from teacher_cache.data.index import Shard, ShardIndex
from teacher_cache.data.shards import fetch, scan_shard
from teacher_cache.errors import ShardError
from teacher_cache.storage.store import is_remote, open_store


def index_shards(urls: Iterable[str], folder: str | Path, classes: tuple[str, ...] = ()) -> ShardIndex:
    """Index existing shards: count rows, compute checksums, check keys and labels.

    urls: paths or URLs of tars, in order. folder: of the index file. classes: class names by label; if empty, the
    label numbers are the names. Raises ShardError for duplicate keys and unusable labels.
    """
    urls = list(urls)
    seen: dict[str, str] = {}
    labels: set[int] = set()
    shards = []
    with progress("index", len(urls), "shards") as bar:
        for url in urls:
            shard, records = index_shard(url, folder)
            for key, label in records:
                if key in seen:
                    raise ShardError(
                        f"key '{key}' occurs twice: in '{seen[key]}' and in '{url}'; keys must be unique"
                    )
                seen[key] = url
                labels.add(label)
            shards.append(shard)
            bar.advance(1)
    return ShardIndex(str(folder), tuple(shards), check_classes(labels, classes, urls))


def check_classes(labels: set[int], classes: tuple[str, ...], urls: list[str]) -> tuple[str, ...]:
    """Return the class names for the labels found, by default the label numbers.

    Raises ShardError without labels, with only one class, or if a label has no name.
    """
    if not labels:
        raise ShardError(f"no images in {urls[0] if urls else 'an empty list of shards'}; nothing to index")
    if len(labels) < 2:
        raise ShardError(f"every image has class {min(labels)}; a classifier needs at least two classes")
    if min(labels) < 0 or (classes and max(labels) >= len(classes)):
        raise ShardError(
            f"labels range from {min(labels)} to {max(labels)}, but there are {len(classes)} class names"
        )
    return classes or tuple(str(label) for label in range(max(labels) + 1))


def expand_shards(patterns: Iterable[str]) -> list[str]:
    """Expand folders, brace patterns ("s/{000..012}.tar") and plain names to paths or URLs of tars.

    A folder may also be a prefix in an object store. Raises ShardError for an invalid pattern or an empty folder.
    """
    urls: list[str] = []
    for pattern in patterns:
        try:
            found = _list_tars(pattern) if _is_folder(pattern) else expand_urls(pattern)
        except (ValueError, AssertionError) as error:  # an open brace, or ${NAME} without the variable WDS_NAME
            raise ShardError(f"pattern '{pattern}' cannot be expanded: {error}; fix it") from None
        if not found:
            raise ShardError(f"no .tar files in '{pattern}'; give a folder of shards or a pattern")
        urls += found
    return urls


def _is_folder(location: str) -> bool:
    if location.startswith(("http:", "https:")):
        return False  # HTTP servers have no listing
    return (
        not location.endswith(".tar") and "{" not in location if is_remote(location) else Path(location).is_dir()
    )


def _list_tars(folder: str) -> list[str]:
    tars = sorted(name for name in open_store(folder).names("") if name.endswith(".tar"))
    return [f"{folder.rstrip('/')}/{name}" for name in tars]


def index_shard(url: str, folder: str | Path) -> tuple[Shard, list[tuple[str, int]]]:
    """Scan a shard; return its index entry and the (key, label) of each record."""
    data = fetch(url)
    records = [(record.key, record.label) for record in scan_shard(url, data)]
    name = url.removeprefix(f"{str(folder).rstrip('/')}/")
    if not is_remote(url):  # do not resolve the file itself: the Hugging Face cache links to files without .tar
        path, index_folder = Path(url).parent.resolve() / Path(url).name, Path(folder).resolve()
        name = str(path.relative_to(index_folder) if path.is_relative_to(index_folder) else path)
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return Shard(name, len(records), len(data), md5), records
