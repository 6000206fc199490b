"""Index existing shards: expand patterns, scan tars, check classes."""

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
            shard, records = index_shard(url, folder)
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
    """Tar paths and URLs from folders (of a bucket, too), brace patterns ("s/{000..012}.tar") and plain names."""
    urls: list[str] = []
    for pattern in patterns:
        try:
            found = _list_tars(pattern) if _is_folder(pattern) else expand_urls(pattern)
        except (ValueError, AssertionError) as error:  # an open brace; a ${NAME} without its WDS_NAME
            raise ShardError(f"pattern '{pattern}' cannot be expanded: {error}; mend it") from None
        if not found:
            raise ShardError(f"no .tar files in '{pattern}'; give a folder of shards or a pattern")
        urls += found
    return urls


def _is_folder(location: str) -> bool:
    if location.startswith(("http:", "https:")):
        return False  # nothing can be listed there
    return (
        not location.endswith(".tar") and "{" not in location if is_remote(location) else Path(location).is_dir()
    )


def _list_tars(folder: str) -> list[str]:
    tars = sorted(name for name in open_store(folder).names("") if name.endswith(".tar"))
    return [f"{folder.rstrip('/')}/{name}" for name in tars]


def index_shard(url: str, folder: str | Path) -> tuple[Shard, list[tuple[str, int]]]:
    """A shard's index entry and the (key, label) of each record."""
    data = fetch(url)
    records = [(record.key, record.label) for record in scan_shard(url, data)]
    name = url.removeprefix(f"{str(folder).rstrip('/')}/")
    if not is_remote(url):  # links stay as they are named: a hub's cache links to files without a .tar name
        path, index_folder = Path(url).parent.resolve() / Path(url).name, Path(folder).resolve()
        name = str(path.relative_to(index_folder) if path.is_relative_to(index_folder) else path)
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return Shard(name, len(records), len(data), md5), records
