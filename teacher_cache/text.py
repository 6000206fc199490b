"""Text files that people write: UTF-8, with or without a byte order mark, with any line ends."""

import codecs

from teacher_cache.errors import LimbeckError

MARK = "\ufeff"
"""Byte order mark, which Windows editors write at the start of a file."""
UTF_32 = codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE
UTF_16 = codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE


def decode_text(data: bytes, name: str, error_type: type[LimbeckError]) -> str:
    """The text of a file, without byte order marks; every line ends with a line feed.

    name: start of the error message, e.g. "recipe 'a.toml'". Raises `error_type` if the text is not UTF-8.
    """
    if wrong := _wrong_encoding(data):
        raise error_type(
            f"{name} is {wrong}, not UTF-8; save it as UTF-8, in PowerShell with: | Out-File -Encoding utf8 FILE"
        )
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise error_type(
            f"{name} is not UTF-8: byte 0x{data[error.start]:02x} in line {line}; save it as UTF-8"
        ) from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.lstrip(MARK).replace(f"\n{MARK}", "\n")  # within the text, where files were concatenated


def _wrong_encoding(data: bytes) -> str:
    """Name of an encoding that is not UTF-8; "" if the data may be UTF-8."""
    if data.startswith(UTF_32):
        return "UTF-32"
    if data.startswith(UTF_16):
        return "UTF-16"
    if b"\0" in data[:4096]:  # UTF-16 without a byte order mark has a NUL byte next to each Latin letter
        return "UTF-16 or binary"
    return ""
