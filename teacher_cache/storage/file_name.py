"""File names as text: bytes that are not UTF-8, control characters and line breaks are escaped."""

import posixpath
import re

UNWRITABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters, line breaks, and bytes that are not UTF-8 (which Python decodes to U+DC80 to U+DCFF)."""


def escape(name: str) -> str:
    r"""Replace each character that a line of UTF-8 cannot contain: "a\nb" becomes r"a\x0ab"."""
    return UNWRITABLE.sub(_escape_character, name)


def _escape_character(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00  # the byte itself
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def normalize_path(name: str) -> str:
    """A member's path without "./", doubled slashes, and slashes at its ends."""
    return posixpath.normpath(name).lstrip("/")
