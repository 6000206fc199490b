"""Write the index of existing shards; an index of other shards is never replaced."""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from teacher_cache.console import count_of, join_first, log_line
from teacher_cache.data.index import (
    INDEX_NAME,
    ShardIndex,
    brace_pattern,
    find_indexes,
    has_numbers,
    is_http,
    load_index,
    save_index,
    shard_name,
)
from teacher_cache.data.indexing import IndexOptions, expand_shards, index_shards, resolve_folder
from teacher_cache.errors import ShardError
from teacher_cache.packing.classes.split_names import split_roles
from teacher_cache.storage.store import is_remote, open_store


def index_patterns(patterns: Sequence[str], out: str | None, options: IndexOptions) -> ShardIndex:
    """Index existing shards, write the index and print what it has.

    patterns: as in `expand_shards`. out: the file of the index, or a folder for `index.json`; None: the folder of
    the shards. Without class names in the options, the index that is replaced gives them.
    Raises ShardError if the shards cannot be indexed, or if the file exists and is not an index of these shards.
    """
    for pattern in patterns:
        if not is_http(pattern) and "{" not in pattern and not pattern.endswith(".tar"):
            _require_one_split(pattern, expand_shards([pattern]))
    urls = expand_shards(patterns)
    path = _index_path(urls, out)
    previous = _load_replaceable(path, urls)
    keeps_names = not options.classes and previous is not None and not has_numbers(previous.classes)
    if previous and keeps_names:
        options = replace(options, classes=previous.classes)
    if previous and not options.skip_broken and (skipped := sum(len(one.skipped) for one in previous.shards)):
        log_line(f"the index before left out {count_of(skipped, 'sample')}; --skip-broken leaves them out again")
    index = index_shards(urls, path.rpartition("/")[0] or ".", options=options)
    save_index(index, path)
    hint = "; the class names are those of the index before" if keeps_names else ""
    if has_numbers(index.classes) and not options.classes:
        hint = "; the class names are numbers, set them with --classes FILE"
    log_line(
        f"indexed {count_of(index.rows, 'image')} of {len(index.classes)} classes "
        f"in {count_of(len(index.shards), 'shard')} in {path}{hint}"
    )
    return index


def _require_one_split(folder: str, urls: Sequence[str]) -> None:
    """Raise ShardError, with a command for each, if the names of a folder's shards are those of several splits."""
    shards: dict[str, list[str]] = {}
    for url in urls:
        name = re.sub(r"[-_.]*\d+$", "", url.rpartition("/")[2].partition(".tar")[0])
        shards.setdefault(name, []).append(url)
    roles = split_roles(shards)
    if len(set(roles.values())) < 2:
        return
    commands = [
        f"limbeck index '{brace_pattern(shards[name]) or f'{folder}/{name}*.tar'}' --out '{folder}/{name}.json'"
        for name in roles
    ]
    raise ShardError(
        f"'{folder}' has shards of the splits {join_first(list(roles))}; index each: {'; '.join(commands)}"
    )


def _index_path(urls: Sequence[str], out: str | None) -> str:
    """The path of an index file. out: the file, or a folder for `index.json`; None: the folder of the shards.

    Raises ShardError if the shards are in several folders or on an HTTP server, and `out` is None.
    """
    folders = {out} if out else {url.rpartition("/")[0] or "." for url in urls}
    if not out and (len(folders) > 1 or is_http(urls[0])):
        raise ShardError(f"the index of '{urls[0]}' has no default path; set one with --out FILE")
    path = folders.pop().rstrip("/")
    return path if path.endswith(".json") else f"{path}/{INDEX_NAME}"


def _load_replaceable(path: str, urls: Sequence[str]) -> ShardIndex | None:
    """The index that a new one of these shards replaces; None if it does not exist.

    Raises ShardError if the file is not an index, or if it is an index of other shards: it has a shard that still
    exists and is not among `urls`, or it has none of `urls`. Deleted shards are logged in one line.
    """
    folder, _, name = path.rpartition("/")
    try:
        open_store(folder or ".").get(name)
    except FileNotFoundError:
        return None
    try:
        existing = load_index(path)
    except ShardError as error:
        raise ShardError(
            f"'{path}' exists and is not replaced, since it is not a valid index ({error}); choose another file "
            "with --out FILE, or remove it"
        ) from None
    if others := _remaining_shards(existing, urls):
        raise ShardError(
            f"'{path}' is the index of other shards ({_describe(existing.urls)}) and is not replaced by an index "
            f"of {_describe(urls)}, because '{others[0]}' still exists; write this index to another file: "
            f"--out '{_free_path(folder or '.', urls)}'"
        )
    if not _share_shards(existing, urls):
        raise ShardError(
            f"'{path}' is the index of other shards ({_describe(existing.urls)}), which are missing, and is "
            f"not replaced by an index of {_describe(urls)}; if those shards are gone for good, delete "
            f"'{path}', otherwise write this index to another file: --out '{_free_path(folder or '.', urls)}'"
        )
    new = _identities(urls)
    if deleted := [url for url in existing.urls if _identity(url) not in new]:
        log_line(
            f"the index before had {count_of(len(deleted), 'shard')} that are missing now: {join_first(deleted)}"
        )
    return existing


def _share_shards(existing: ShardIndex, urls: Sequence[str]) -> bool:
    """Whether an existing index has a shard of `urls`; also True if it has no shards at all."""
    return not existing.urls or bool(_identities(existing.urls) & _identities(urls))


def _identities(urls: Sequence[str]) -> set[str]:
    return {_identity(url) for url in urls}


def _identity(url: str) -> str:
    return url if is_remote(url) else str(resolve_folder(url))


def _remaining_shards(existing: ShardIndex, urls: Sequence[str]) -> list[str]:
    """The shards of an existing index that still exist and are not among `urls`."""
    new = _identities(urls)
    others = [url for url in existing.urls if _identity(url) not in new]
    names = {folder: _names(folder) for folder in {url.rpartition("/")[0] for url in others}}
    return [url for url in others if is_http(url) or url.rpartition("/")[2] in names[url.rpartition("/")[0]]]


def _names(folder: str) -> set[str]:
    return set() if is_http(folder) else open_store(folder or "/").names("")


def _free_path(folder: str, urls: Sequence[str]) -> str:
    """A path for an index of these shards, named after them, which does not exist or may be replaced."""
    stems = sorted({re.sub(r"[\W_]*\d+$", "", shard_name(url)) for url in urls} - {""})
    stem = stems[0] if len(stems) == 1 else f"shards-{shard_name(urls[0])}-{shard_name(urls[-1])}"
    names = {INDEX_NAME, *open_store(folder).names("")}
    for number in count(1):
        name = f"{stem}.json" if number == 1 else f"{stem}-{number}.json"
        if name not in names:
            break
        if name in find_indexes(folder):
            existing = load_index(f"{folder}/{name}")
            if _share_shards(existing, urls) and not _remaining_shards(existing, urls):
                break
    return f"{folder}/{name}"


def _describe(urls: Sequence[str]) -> str:
    """The shards as one pattern, or the first ones and their number."""
    return brace_pattern(urls) or join_first(urls)
