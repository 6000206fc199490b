"""Decode an image that a client sent as base64 text."""

import binascii
import re
from urllib.parse import unquote

from server.schema.mistakes import Carrier, mistake_in

_URL_SAFE = str.maketrans("-_", "+/")
_DATA_URL = re.compile(r"\s*data:([^,]{0,200}),", re.IGNORECASE)


def decode_base64(text: str) -> bytes:
    """The bytes of base64 text: the standard or the URL-safe alphabet, with or without padding, or a data URL.

    Raises ValueError that says what the text seems to be instead.
    """
    data_url = _DATA_URL.match(text)
    encoded = text
    if data_url:
        if not data_url[1].lower().replace(" ", "").endswith(";base64"):
            raise ValueError("should be base64; this is a data URL without ';base64' before its comma")
        encoded = unquote(text[data_url.end() :])
    encoded = "".join(encoded.split())
    if "-" in encoded or "_" in encoded:
        encoded = encoded.translate(_URL_SAFE)
    if not encoded.endswith("="):
        encoded += "=" * (-len(encoded) % 4)
    try:
        return binascii.a2b_base64(encoded, strict_mode=True)
    except ValueError:  # binascii.Error, or characters that are not ASCII
        mistake = mistake_in(text.encode(errors="replace"), Carrier.JSON)
        raise ValueError(f"should be base64; {mistake}" if mistake else "should be base64") from None
