"""Group the files of a tar into samples, and find the image and the label of each."""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

from teacher_cache.console import count_of, join_first, log_line
from teacher_cache.data.index import IMAGE_SUFFIXES, SampleFormat
from teacher_cache.data.tar import members
from teacher_cache.errors import ShardError
from teacher_cache.storage.file_name import UNWRITABLE

Files = dict[str, bytes]
"""The files of a sample by suffix, in lower case and without the first dot."""

HEIF_SUFFIXES = ("heic", "heif", "hif")
"""Images that need the extra limbeck[heif]."""
OTHER_IMAGES = ("jxl", "svg", "dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf", "exr", "hdr")
LABEL_FIELDS = (
    "label",
    "class",
    "cls",
    "class_id",
    "class_index",
    "label_id",
    "target",
    "category",
    "category_id",
)
LABEL_SUFFIXES = ("cls", "label", "class", "txt", "target", "label.txt", "cls.txt", "class.txt", "class_id", "y")
METADATA = re.compile(r"__[^/]*__(/|$)")
"""webdataset: files named __*__ are metadata of the tar."""
STRAY_ADVICE = "if these files are not a sample, index with --skip-broken, which leaves them out"
SHOWN_BYTES = 20
SHOWN_SUFFIX_CHARS = 40
CLASS_NAME_CHARS = 100
"""Longer texts are not taken for class names: they are captions."""
MOST_RARE_NAMES = 100
"""More names than this need at least two images each on average; otherwise the labels are captions."""
_INTEGER = re.compile("[+-]?[0-9]{1,18}")
"""int() also reads "1_0", and digits of other scripts."""


class SampleError(ShardError):
    """Sample without a usable image or label. The message is the reason only; the caller adds shard and key.

    advice: how to index such shards, or "".
    """

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason)
        self.advice = advice


class ClassNameError(SampleError):
    """Label that is a class name, while no class names are known. name: in NFC, without spaces around it."""

    def __init__(self, name: str) -> None:
        advice = "give all names with --classes FILE"
        super().__init__(f"has class {name[:SHOWN_BYTES]!r}, which is not an integer", advice)
        self.name = name


def read_samples(url: str, data: bytes, dotted_keys: bool) -> dict[str, Files]:
    """The samples of a tar by key, in the order of their first files. A sample's files may be apart.

    Raises tarfile.TarError for a damaged tar, ShardError if a file occurs twice.
    """
    samples: dict[str, Files] = {}
    for name, content in members(data):
        start = name.rfind("/") + 1
        dot = name.rfind(".") if dotted_keys else name.find(".", start)
        if dot <= start or name[start] == "." or METADATA.match(name):  # no suffix, or hidden
            continue
        key, suffix = name[:dot], name[dot + 1 :].lower()
        files = samples.setdefault(key, {})
        if suffix in files:
            raise ShardError(
                f"shard '{url}': key '{key}' occurs twice, with a second file '{name}'; keys must be unique, so "
                "write the shard again"
            )
        files[suffix] = content
    return samples


def image_suffix(files: Files) -> str:
    """The suffix of the image of a sample. Raises SampleError without an image."""
    for suffix in (*IMAGE_SUFFIXES, *HEIF_SUFFIXES):
        if suffix in files:
            return suffix
    listed = _list_suffixes(files)
    if any(suffix.rpartition(".")[2] in IMAGE_SUFFIXES for suffix in files):
        advice = "by default, a key ends at the first dot of a file name; if keys contain dots, add --dotted-keys"
        raise SampleError(f"has no image, but {listed}", advice)
    if other := next((suffix for suffix in files if suffix in OTHER_IMAGES), None):
        raise SampleError(f"has an image of type .{other}, which is not supported", "convert it to .png")
    raise SampleError(f"has no image (.jpg, .png or another type), but {listed}", STRAY_ADVICE)


def _list_suffixes(files: Files) -> str:
    return join_first([f".{suffix[:SHOWN_SUFFIX_CHARS]}" for suffix in files])


def label_of(files: Files, label: str, numbers: Mapping[str, int]) -> int:
    """The class number of a sample. numbers: class number by name, for labels that are names.

    label: as in SampleFormat. Raises SampleError if it is missing, or neither a number nor a known name;
    ClassNameError for a name if `numbers` is empty.
    """
    suffix, _, field = label.partition(":")
    try:
        content = files[suffix]
    except KeyError:
        reason = f"has no .{suffix} file with a class number, but {_list_suffixes(files)}"
        raise SampleError(reason, _label_advice(files)) from None
    if field:
        return _json_label(files, field, numbers)
    if content.isdigit() and len(content) <= SHOWN_BYTES:  # nearly always, and faster than the rest
        return int(content)
    text = content.decode("utf-8-sig", errors="replace").strip()
    if _INTEGER.fullmatch(text):
        return int(text)
    return _number(text, numbers)


def _json_label(files: Files, field: str, numbers: Mapping[str, int]) -> int:
    try:
        value = json.loads(files["json"])[field]
    except (ValueError, KeyError, TypeError, IndexError):
        raise SampleError(f"has no field '{field}' in its .json file", _label_advice(files)) from None
    if isinstance(value, str):
        return _number(value, numbers)
    if type(value) is not int:
        raise SampleError(f"has {field} {str(value)[:SHOWN_BYTES]} in its .json file, which is not a class number")
    return value


def _number(text: str, numbers: Mapping[str, int]) -> int:
    """The class number for a text: a class name, in any Unicode normalization, or an integer."""
    name = unicodedata.normalize("NFC", text.strip())
    for known in (text, name):
        if known in numbers:
            return numbers[known]
    if _INTEGER.fullmatch(text.strip()):
        return int(text)
    shown = text[:SHOWN_BYTES]
    if numbers:
        reason = f"which is neither an integer nor one of the {len(numbers)} class names"
        raise SampleError(f"has class {shown!r}, {reason}", "add the name to the class names: --classes FILE")
    if _is_class_name(name):
        raise ClassNameError(name)
    advice = "if it is a class name, give all names with --classes FILE"
    raise SampleError(f"has class {shown!r}, which is neither an integer nor a class name", advice)


def _is_class_name(text: str) -> bool:
    """Whether a text is one short line and not a number, such as "1.0", "0x1" or "1_0"."""
    if not text or len(text) > CLASS_NAME_CHARS or UNWRITABLE.search(text) or "\ufffd" in text:
        return False
    for parse in (float, partial(int, base=0)):
        with suppress(ValueError):
            parse(text)
            return False
    return True


def class_names_found(places: Mapping[int | str, tuple[str, str]], rows: int) -> tuple[str, ...]:
    """The sorted class names among the labels, () if all labels are numbers. places: (key, URL) of each label.

    Raises ShardError for labels of both kinds, for only one name, and for texts that look like captions.
    """
    names = sorted(label for label in places if isinstance(label, str))
    if not names:
        return ()
    key, url = places[names[0]]
    if numbers := [label for label in places if isinstance(label, int)]:
        number = numbers[0]
        other_key, other_url = places[number]
        raise ShardError(
            f"sample '{key}' in '{url}' has the class name '{names[0]}', but '{other_key}' in '{other_url}' has "
            f"the class number {number}; give all names with --classes FILE"
        )
    if len(names) == 1:
        raise ShardError(
            f"sample '{key}' in '{url}' and all others have class '{names[0]}'; a classifier needs at least "
            "two classes (if these images are part of a larger set, name all its classes with --classes FILE)"
        )
    if len(names) > max(MOST_RARE_NAMES, rows // 2):
        raise ShardError(
            f"{rows:,} samples have {len(names):,} different labels ({join_first(names)}), which look like "
            "captions; choose another file with --label, or give all class names with --classes FILE"
        )
    log_line(f"{count_of(len(names), 'class name')} from the labels, sorted: {join_first(names)}")
    return tuple(names)


def _label_advice(files: Files) -> str:
    """Options to try if the label may be in another file of the sample, or ""."""
    try:
        fields = json.loads(files.get("json", b"{}"))
    except ValueError:
        fields = {}
    named = [name for name in LABEL_FIELDS if isinstance(fields, dict) and name in fields]
    labels = [suffix for suffix in LABEL_SUFFIXES if suffix in files]
    choices = [f"--label json:{name}" for name in named] + [f"--label {suffix}" for suffix in labels]
    return f"if another file has the label, add one of: {', '.join(choices)}" if choices else ""


def remarks(files: Files, sample_format: SampleFormat) -> list[str]:
    """List what is unusual in a valid sample, in words that are equal for all samples of a kind."""
    if len(files) == 2:  # an image and a label
        return []
    images: Sequence[str] = [suffix for suffix in files if suffix in IMAGE_SUFFIXES]
    found = []
    if len(images) > 1:
        used = image_suffix(files)
        found.append(f"several images ({join_first(sorted(images))}), of which .{used} is used")
    label = sample_format.label.partition(":")[0]
    own_labels = (suffix.removesuffix(label) for suffix in files if suffix.endswith(f".{label}"))
    if any(start + image in files for start in own_labels for image in IMAGE_SUFFIXES):
        found.append(
            f"several images with a .{label} file each, of which only the first is used, since keys end at the "
            "first dot (if they contain dots, add --dotted-keys)"
        )
    return found
