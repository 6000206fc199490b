"""Build the index of existing shards: expand patterns, scan tars, check keys and classes."""

import glob
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from webdataset.shardlists import expand_urls

from teacher_cache.console import count_of, join_first, log_line, progress
from teacher_cache.data.index import (
    DEFAULT_FORMAT,
    SampleFormat,
    Shard,
    ShardIndex,
    SkippedSample,
    has_numbers,
    is_http,
)
from teacher_cache.data.samples import (
    HEIF_SUFFIXES,
    ClassNameError,
    Files,
    SampleError,
    class_names_found,
    image_suffix,
    label_of,
    remarks,
)
from teacher_cache.data.shards import fetch, shard_samples
from teacher_cache.data.tar import members
from teacher_cache.distributed.machine import cores
from teacher_cache.errors import ImageError, ShardError
from teacher_cache.storage.store import is_remote, open_store
from teacher_cache.views.decode import decode

COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
UNFINISHED_SUFFIXES = (".part", ".partial", ".crdownload", ".download", ".incomplete", ".aria2", ".tmp")


@dataclass(frozen=True)
class IndexOptions:
    """How shards are indexed. classes: class names by label; (): the label numbers, or the sorted names found.

    skip_broken: decode every image, and leave out samples without a usable image or label.
    """

    classes: tuple[str, ...] = ()
    format: SampleFormat = DEFAULT_FORMAT
    skip_broken: bool = False


@dataclass(frozen=True)
class ScannedShard:
    """A shard's index entry, the (key, label number or name) of each row, and unusual facts as (fact, key)."""

    shard: Shard
    records: list[tuple[str, int | str]]
    remarks: list[tuple[str, str]]


def index_shards(
    urls: Iterable[str], folder: str | Path, classes: tuple[str, ...] = (), options: IndexOptions | None = None
) -> ShardIndex:
    """Index existing shards: count rows, compute checksums, check keys and labels.

    urls: paths or URLs of tars, in order. folder: of the index file. classes: class names by label; if empty, the
    label numbers are the names, or the classes are the sorted names that the labels are. options: replaces
    `classes`.
    Raises ShardError for duplicate keys and unusable labels.
    """
    urls, options = list(urls), options or IndexOptions(classes)
    seen: dict[str, str] = {}
    checksums: dict[str, str] = {}
    places: dict[int | str, tuple[str, str]] = {}
    scans: list[ScannedShard] = []
    with progress("index", len(urls), "shards") as bar:
        for url in urls:
            found = scan(url, folder, options)
            if found.records and (copy := checksums.setdefault(found.shard.md5, url)) != url:
                raise ShardError(f"shard '{url}' has the same bytes as '{copy}'; remove one of them")
            _check_new_keys(url, found.records, seen, options.format)
            for key, label in found.records:
                places.setdefault(label, (key, url))
            scans.append(replace(found, records=[]))
            bar.advance(1)
    _report(urls, scans)
    skipped = [one for found in scans for one in found.shard.skipped]
    if skipped and not places:
        raise ShardError(
            f"none of {count_of(len(skipped), 'sample')} can be used: '{skipped[0].key}' {skipped[0].reason}"
        )
    names_found = class_names_found(places, sum(found.shard.rows for found in scans))
    labels = set(range(len(names_found))) or {label for label in places if isinstance(label, int)}
    names = check_classes(labels, options.classes or names_found, urls)
    _report_absent_classes(labels, names)
    return ShardIndex(str(folder), tuple(found.shard for found in scans), names, format=options.format)


def _report(urls: list[str], scans: list[ScannedShard]) -> None:
    """Print a line for each unusual fact, for broken samples, and for shards without rows."""
    facts: dict[str, list[str]] = {}
    for url, found in zip(urls, scans, strict=True):
        for fact, key in found.remarks:
            facts.setdefault(fact, []).append(f"'{key}' in '{url}'")
        for skipped in found.shard.skipped:
            facts.setdefault("broken, left out", []).append(f"'{skipped.key}' in '{url}', which {skipped.reason}")
        if not found.shard.rows:
            reason = "only broken samples" if found.shard.skipped else "no samples"
            log_line(f"shard '{url}' has {reason}")
    for fact, places in facts.items():
        log_line(f"{count_of(len(places), 'sample')}: {fact}; the first is {places[0]}")


def _check_new_keys(
    url: str, records: list[tuple[str, int | str]], seen: dict[str, str], sample_format: SampleFormat
) -> None:
    """Add a shard's keys to `seen`; raise ShardError if one exists."""
    for key, _ in records:
        if key in seen:
            advice = "add --key-prefix shard, which puts the name of the shard before each key"
            if sample_format.key_prefix:
                advice = "both shards have the same name, so rename one of them"
            raise ShardError(
                f"key '{key}' occurs twice: in '{seen[key]}' and in '{url}'; keys must be unique: {advice}"
            )
        seen[key] = url


def check_classes(labels: set[int], classes: tuple[str, ...], urls: list[str]) -> tuple[str, ...]:
    """Return the class names for the labels found, by default the label numbers.

    Raises ShardError without labels, with only one known class, or if a label has no name.
    """
    if not labels:
        raise ShardError(f"no images in {urls[0] if urls else 'an empty list of shards'}; nothing to index")
    if min(labels) < 0 or (classes and max(labels) >= len(classes)):
        raise ShardError(
            f"labels range from {min(labels)} to {max(labels)}, but there are {len(classes)} class names"
        )
    if len(classes or labels) < 2:
        raise ShardError(
            f"every image has class {min(labels)}; a classifier needs at least two classes (if these images are "
            "part of a larger set, name all its classes with --classes FILE)"
        )
    return classes or tuple(str(label) for label in range(max(labels) + 1))


def _report_absent_classes(labels: set[int], classes: tuple[str, ...]) -> None:
    """Print one line that names the classes without images, if there are any."""
    absent = [number for number in range(len(classes)) if number not in labels]
    if not absent:
        return
    names = [str(number) if has_numbers(classes) else f"{number} '{classes[number]}'" for number in absent]
    hint = "; the labels begin with 1, but class numbers begin with 0" if min(labels) == 1 < len(labels) else ""
    log_line(
        f"no images of {len(absent):,} of {count_of(len(classes), 'class', 'classes')}: {join_first(names)}{hint}"
    )


def index_shard(url: str, folder: str | Path) -> tuple[Shard, list[tuple[str, int | str]]]:
    """Scan a shard; return its index entry and the (key, label number or name) of each record."""
    found = scan(url, folder, IndexOptions())
    return found.shard, found.records


def scan(url: str, folder: str | Path, options: IndexOptions) -> ScannedShard:
    """Scan a shard. folder: of the index file.

    Raises ShardError for a damaged tar, for files without a sample and, without options.skip_broken, for the first
    broken sample.
    """
    data = fetch(url)
    samples = shard_samples(url, data, options.format)
    if not samples and (names := [name for name, _ in members(data)]):
        raise ShardError(
            f"shard '{url}' has no samples, but {count_of(len(names), 'file')}: {join_first(names)}; a sample has "
            "files such as KEY.jpg and KEY.cls"
        )
    prefix = options.format.prefix(url)
    records: list[tuple[str, int | str]] = []
    skipped: list[SkippedSample] = []
    facts: list[tuple[str, str]] = []
    for number, (key, label) in enumerate(zip(samples, _labels(samples, options), strict=True)):
        if not isinstance(label, SampleError):
            records.append((prefix + key, label))
            facts += [(fact, prefix + key) for fact in remarks(samples[key], options.format)]
        elif options.skip_broken:
            skipped.append(SkippedSample(number, prefix + key, str(label)))
        else:
            raise ShardError(
                f"shard '{url}': sample '{key}' {label}; {label.advice or '--skip-broken leaves such samples out'}"
            )
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    shard = Shard(_entry_url(url, folder), len(records), len(data), md5, tuple(skipped))
    return ScannedShard(shard, records, facts)


def _entry_url(url: str, folder: str | Path) -> str:
    """The path of a shard relative to the folder of its index if it is below it, otherwise its path or URL."""
    if is_remote(url):
        return url.removeprefix(f"{str(folder).rstrip('/')}/")
    path, index_folder = resolve_folder(url), Path(folder).resolve()
    return str(path.relative_to(index_folder) if path.is_relative_to(index_folder) else path)


def resolve_folder(path: str) -> Path:
    """Resolve the folder, but not the file: the Hugging Face cache links to files without .tar."""
    return Path(path).parent.resolve() / Path(path).name


def _labels(samples: Mapping[str, Files], options: IndexOptions) -> list[int | str | SampleError]:
    """The label of each sample, or why it is broken. Images are decoded only for options.skip_broken."""
    numbers = {name: number for number, name in enumerate(options.classes)}
    check = partial(_check_sample, options, numbers)
    if not options.skip_broken:
        return [check(files) for files in samples.values()]
    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(check, samples.values()))


def _check_sample(options: IndexOptions, numbers: Mapping[str, int], files: Files) -> int | str | SampleError:
    try:
        suffix = image_suffix(files)
        label = _label_or_name(files, options.format.label, numbers)
        if suffix in HEIF_SUFFIXES and find_spec("pillow_heif") is None:
            raise SampleError(
                f"has a .{suffix} image, which needs pillow-heif", "run: pip install 'limbeck[heif]'"
            )
        if not files[suffix]:
            raise SampleError(f"has an image of 0 bytes, .{suffix}")
        if isinstance(label, int) and label < 0:
            raise SampleError(f"has class {label}, but class numbers begin with 0")
        if options.skip_broken:
            decode(files[suffix])
    except ImageError as error:
        return SampleError(f"has an image that is broken: {error}")
    except SampleError as error:
        return error
    return label


def _label_or_name(files: Files, label: str, numbers: Mapping[str, int]) -> int | str:
    try:
        return label_of(files, label, numbers)
    except ClassNameError as error:
        return error.name


def expand_shards(patterns: Iterable[str]) -> list[str]:
    """Expand folders, brace patterns ("s/{000..012}.tar"), wildcards and plain names to paths or URLs of tars.

    A folder may also be a prefix in an object store. Raises ShardError for an invalid pattern, an empty folder, or
    a shard that is given twice.
    """
    urls: list[str] = []
    for pattern in patterns:
        try:
            found = _list_tars(pattern) if _is_folder(pattern) else _expand(pattern)
        except (ValueError, AssertionError) as error:  # an open brace, or ${NAME} without the variable WDS_NAME
            raise ShardError(f"pattern '{pattern}' cannot be expanded: {error}; fix it") from None
        if not found:
            raise ShardError(
                f"no .tar files in '{pattern}'; give a folder of shards or a pattern{_below(pattern)}"
            )
        urls += found
    if twice := [url for url, count in Counter(urls).items() if count > 1]:
        raise ShardError(f"shard '{twice[0]}' is given twice; give each shard once")
    return urls


def _is_folder(location: str) -> bool:
    if is_http(location):
        return False
    if is_remote(location):
        return "{" not in location and not location.endswith((".tar", *COMPRESSED_SUFFIXES))
    return Path(location).is_dir()


def _expand(pattern: str) -> list[str]:
    """Expand braces, and wildcards in local paths that do not exist literally."""
    found = []
    for url in expand_urls(pattern):
        is_wildcard = not is_remote(url) and glob.has_magic(url) and not Path(url).exists()
        found += sorted(glob.glob(url)) if is_wildcard else [url]  # noqa: PTH207 Path.glob has no absolute patterns
    return found


def _list_tars(folder: str) -> list[str]:
    """All .tar files of a folder, or else all compressed tars. A line names other shards."""
    names = sorted(open_store(folder).names(""))
    tars = [name for name in names if name.lower().endswith(".tar")]
    compressed = [name for name in names if name.lower().endswith(COMPRESSED_SUFFIXES)]
    partial_files = [name for name in names if name.lower().endswith(UNFINISHED_SUFFIXES) and ".tar" in name]
    if tars and compressed:
        log_line(
            f"compressed tars in '{folder}' are left out: {join_first(compressed)}; to index them, give a pattern"
        )
    if partial_files:
        log_line(f"unfinished downloads in '{folder}' are left out: {join_first(partial_files)}")
    if missing := _missing_numbers(tars or compressed):
        log_line(f"shards in '{folder}' have gaps in their numbers, e.g. no {missing[0]}; check for lost shards")
    return [f"{folder.rstrip('/')}/{name}" for name in tars or compressed]


def _missing_numbers(names: Sequence[str]) -> list[str]:
    """The names that are missing between the first and the last number of names that differ in one number only."""
    groups: dict[tuple[str, int, str], set[int]] = {}
    for name in names:
        if match := re.fullmatch(r"(.*(?<!\d)|)(\d+)(\.[^/]*)", name):
            groups.setdefault((match[1], len(match[2]), match[3]), set()).add(int(match[2]))
    return [
        f"{start}{number:0{width}d}{end}"
        for (start, width, end), found in groups.items()
        if max(found) - min(found) < 2 * len(found)  # otherwise the numbers do not count the shards
        for number in range(min(found), max(found))
        if number not in found
    ]


def _below(folder: str) -> str:
    """A hint if the shards are in subfolders of a local folder."""
    tars = [] if is_remote(folder) else list(Path(folder).glob("*/*.tar"))
    return f", e.g. '{tars[0].parent}' with {tars[0].name}" if tars else ""
