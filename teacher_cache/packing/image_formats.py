"""Image files by content and suffix: which files are images, and which suffix names their format."""

import mimetypes
import posixpath
import re
from collections import Counter
from functools import cache
from importlib.util import find_spec

from PIL import Image

from teacher_cache.console import count_of
from teacher_cache.data.index import IMAGE_SUFFIXES
from teacher_cache.data.samples import HEIF_SUFFIXES
from teacher_cache.errors import ImageError, ImageTypeError
from teacher_cache.packing.file_tree import FileTree
from teacher_cache.views.formats import FORMATS, HEIF, open_image

HEAD_BYTES = 16
"""Number of bytes from which Pillow recognizes a format."""
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
SHORT_SIGNATURES = frozenset(("BMP", "ICO", "PPM", "SGI", "TIFF"))
"""Formats recognized by content only in files without a suffix; raw photos and slides are TIFF files too."""
DRAWINGS = frozenset(("PSD",))
"""Formats that can be decoded, but are the source files of images next to them."""
NO_SIGNATURES = frozenset(("PCX", "TGA", HEIF))
"""Formats that are recognized by suffix only."""
SAME_FORMAT = {"dib": "BMP", "mpo": "JPEG"}
"""Suffixes for which Pillow has another format than their files' content has here."""
BACKUP = re.compile(
    r"(\.~\d+~|~|_original|\.(bak|backup|old|orig|original|save|sav|swp|tmp|temp|part))$", re.IGNORECASE
)
"""What editors, exiftool and others append to the name of a file, or put in place of its suffix."""
KINDS_SHOWN = 12
"""Maximum number of kinds of files in the line about files left out."""


def split_images(tree: FileTree) -> tuple[list[str], dict[str, str]]:
    """The paths of the images in a tree, and the kind of every other file by path.

    A known image suffix is enough. Without one, the content decides, unless the suffix is that of another type, or
    the file is the backup of an image beside it.
    """
    images, others = [], {}
    for path in tree.fingerprints:
        suffix = suffix_of(path)
        if suffix in _format_by_suffix() or (
            suffix not in _other_types() and not _is_backup(tree, path) and _is_image(tree, path, suffix)
        ):
            images.append(path)
        else:
            others[path] = suffix
    return images, others


def describe_left_out(kinds: Counter[str]) -> str:
    """The number of files of each kind, most frequent first: "6 .heic (install pillow-heif), 2 .txt"."""
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    shown = [
        f"{count:,} {f'.{kind}' if kind else 'without suffix'}{f' ({hint})' if (hint := _hint(kind)) else ''}"
        for kind, count in ordered[:KINDS_SHOWN]
    ]
    if more := sum(count for _, count in ordered[KINDS_SHOWN:]):
        shown.append(f"{count_of(more, 'file')} of other kinds")
    return ", ".join(shown)


def member_suffix(path: str, data: bytes) -> str:
    """The suffix in a shard of an image file: the one of its content's format.

    The file's own suffix is kept if it is one of several of this format (.tiff), or the content is not an image.
    Raises ImageTypeError for an image of a type that is not packed.
    """
    own = suffix_of(path)
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    try:
        with open_image(data) as image:
            name = image.format or ""
    except Exception:  # Pillow may raise anything on malicious bytes; decoding reports the cause
        return own
    suffixes = [suffix for suffix in (*IMAGE_SUFFIXES, *HEIF_SUFFIXES) if _format_by_suffix().get(suffix) == name]
    if not suffixes:
        raise ImageTypeError(f"its content is a {name} file; convert it to JPEG, PNG or WebP")
    return own if own in suffixes else suffixes[0]


def suffix_of(path: str) -> str:
    """The lower-case suffix of a path without its dot, or ""."""
    return posixpath.splitext(path)[1][1:].lower()


@cache
def _format_by_suffix() -> dict[str, str]:
    """Pillow's name of the format of each suffix, for the formats in IMAGE_SUFFIXES that this machine opens."""
    Image.init()
    extensions = Image.registered_extensions()
    formats = {extensions.get(f".{suffix}") for suffix in IMAGE_SUFFIXES} & set(FORMATS) - DRAWINGS
    found = {extension[1:]: name for extension, name in extensions.items() if name in formats}
    found |= SAME_FORMAT
    return found | (dict.fromkeys(HEIF_SUFFIXES, HEIF) if find_spec("pillow_heif") else {})


@cache
def _other_types() -> frozenset[str]:
    """Suffixes of text, video, audio and documents: types that Python knows, and that are not images."""
    known = mimetypes.MimeTypes().types_map[True]
    return frozenset(
        suffix[1:]
        for suffix, kind in known.items()
        if not kind.startswith("image/") and kind != "application/octet-stream"
    )


def _is_backup(tree: FileTree, path: str) -> bool:
    """Whether the image is beside a file with the name of its backup: 1.jpg for 1.jpg~, 1.jpg.bak and 1.bak."""
    backup = BACKUP.search(path)
    if not backup:
        return False
    name = path[: backup.start()]
    if suffix_of(name) in _format_by_suffix() and name in tree.fingerprints:
        return True
    suffixes = _format_by_suffix()
    return any(f"{name}.{one}" in tree.fingerprints for suffix in suffixes for one in (suffix, suffix.upper()))


def _is_image(tree: FileTree, path: str, suffix: str) -> bool:
    try:
        head = tree.head(path, HEAD_BYTES)
    except ImageError:  # damaged in its archive
        return False
    formats = _format_by_suffix()
    if HEIF in formats.values() and _is_heif(head):
        return True
    weak = NO_SIGNATURES | SHORT_SIGNATURES if suffix else NO_SIGNATURES
    accepts = [Image.OPEN[name][1] for name in set(formats.values()) - weak]
    return any(accept is not None and accept(head) is True for accept in accepts)


def _is_heif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS


def _hint(kind: str) -> str:
    if kind in HEIF_SUFFIXES and kind not in _format_by_suffix():
        return "install pillow-heif"
    if BACKUP.search(f".{kind}"):
        return "backup copies"
    return "--sidecar json reads the one beside an image" if kind == "json" else ""
