"""Recognize what a client sent instead of an image, and say how to send the image."""

import binascii
import codecs
import re
from enum import Enum

from teacher_cache.errors import ImageError, ImageTypeError, LimbeckError

_HEAD_BYTES = 2048
"""Bytes at the start that are searched."""
_IMAGE_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_IMAGE_BOXES = (b"ftyp", b"jP  ")  # at offset 4: AVIF, JPEG 2000
_PLAIN_PNM = re.compile(rb"P[1-3]\s")  # an image, but also text
_QUOTED_CHARS = 40
_SMALLEST_IMAGE_BYTES = 64
_STRIPPED_BYTES = b"\0\r\n"
"""Bytes that `curl -d @FILE` removes. Every image has some of them."""


class Carrier(Enum):
    """How the bytes of an image came."""

    BODY = "body"
    URL_ENCODED = "body with Content-Type: application/x-www-form-urlencoded"
    FORM_FILE = "file of a form"
    JSON = "base64 in JSON"
    TENSOR = "element of a tensor"


_BASE64_ADVICE = {
    Carrier.BODY: 'send the decoded bytes, or {"images": ["<base64>"]} with \'Content-Type: application/json\'',
    Carrier.FORM_FILE: "send the file itself, without encoding it",
    Carrier.JSON: "the image was encoded twice; encode it once",
    Carrier.TENSOR: 'add "parameters": {"content_type": "base64"} to the input, or send a binary tensor',
}
_BASE64_ADVICE[Carrier.URL_ENCODED] = _BASE64_ADVICE[Carrier.BODY]

_EXTENSIONS = rb"jpe?g|jfif|png|gif|webp|bmp|tiff?|avif|hei[cf]|jp2|ppm"
_RULES: tuple[tuple[bytes, str], ...] = (
    (
        rb"--[^\r\n]{1,200}\r?\ncontent-disposition:",
        "a multipart form, and its Content-Type does not say so; let the client library set that header",
    ),
    (rb"version https://git-lfs", "a Git LFS pointer, not the file; run 'git lfs pull' and send the file"),
    (
        rb"(<\?xml[^>]*>\s*)?(<!doctype html|<(html|head|body|script|title)\b)",
        "an HTML page, such as an error or login page saved as an image; download the image again",
    ),
    (
        rb"(<\?xml[^>]*>\s*)?<error>",
        "an XML error message, e.g. of an object store, saved as an image; download the image again",
    ),
    (rb"[\w.\[\]-]{1,60}=@", "a form field of curl that names a file; use curl --form image=@FILE"),
    (
        rb"[a-z][a-z0-9+.-]{0,20}://\S",
        "a URL; the server fetches nothing: download the image and send its bytes",
    ),
    (
        rb"@?[^\0-\x1f<>{}\"=]{0,1000}\.(" + _EXTENSIONS + rb")\s*\Z",
        "a file name; the server reads no files: send the file's bytes, with curl --data-binary @FILE",
    ),
    (rb"\[object \w+\]", "the text of a JavaScript object; send a Blob, a Buffer or a FormData of it"),
    (rb"b['\"]", "the text of a Python bytes object; use base64.b64encode(data).decode() in JSON"),
    (rb"=ff=d8|=89png", "quoted-printable text; send the file itself, without encoding it"),
    (rb"(\\x|0x)?(ffd8ff|89504e47)", "hexadecimal text; send the file's bytes"),
    (
        rb"\xc3\xbf\xc3\x98|(\xc2\x89|\xe2\x80\xb0|\xef\xbf\xbd)png|\xef\xbf\xbd\xef\xbf\xbd",
        "an image that was converted to text (UTF-8), which damages it; read and send the file as bytes",
    ),
    (rb"\x89png(\n|\r\r\n)", "a PNG whose line ends were changed; transfer the file in binary mode"),
    (rb"\x1f\x8b", "gzip data; send the decompressed file"),
    (rb"pk\x03\x04|\x28\xb5\x2f\xfd|7z\xbc\xaf|bzh[1-9]|\xfd7zxz", "an archive; send one image from it"),
    (rb"\x93numpy|\x80[\x02-\x05]", "a NumPy or pickle file; send an encoded image (JPEG, PNG or WebP)"),
    (codecs.BOM_UTF16_LE + rb"|" + codecs.BOM_UTF16_BE, "UTF-16 text; send the bytes of an image"),
)
_COMPILED = tuple((re.compile(pattern, re.IGNORECASE | re.DOTALL), words) for pattern, words in _RULES)


def explain_error(error: LimbeckError, image: object, carrier: Carrier) -> LimbeckError:
    """The error of an image, of the same class, but with the mistake as its text if the bytes show one."""
    if not isinstance(image, bytes) or type(error) not in (ImageError, ImageTypeError):
        return error
    mistake = mistake_in(image, carrier)
    if not mistake and type(error) is ImageError and not _PLAIN_PNM.match(image):
        mistake = _text_mistake(image)
    return type(error)(mistake) if mistake else error


def mistake_in(data: bytes, carrier: Carrier) -> str:
    """What the bytes are instead of an image and what to do, in one line; "" if that is not known."""
    what = _what_is_it(data, carrier)
    return what and f"the {len(data)} bytes are {what}"


def _what_is_it(data: bytes, carrier: Carrier) -> str:
    head = data[:_HEAD_BYTES].removeprefix(codecs.BOM_UTF8).lstrip()
    if not head:
        return "white space; send the bytes of an image" if data else "empty; send the bytes of an image"
    if head[:1] in (b"{", b"[") and not head.startswith(b"[object "):
        return _what_json(head, carrier)
    if head[:5].lower() == b"data:":
        return f"a data URL; {_BASE64_ADVICE[carrier]}"
    if _is_base64(head):
        return f"base64 text; {_BASE64_ADVICE[carrier]}"
    if found := next((words for pattern, words in _COMPILED if pattern.match(head)), ""):
        return found
    if carrier is Carrier.URL_ENCODED and re.match(rb"[\w.\[\]-]{1,60}=", head):
        return "a URL-encoded form; send a multipart form with the image as a file, or the image as the body"
    if _is_stripped(data, carrier):
        return "a file without its line ends and zero bytes, as curl -d sends it; use curl --data-binary @FILE"
    return ""


def _is_stripped(data: bytes, carrier: Carrier) -> bool:
    """Whether a body is what `curl -d @FILE` sends of an image."""
    if carrier is Carrier.URL_ENCODED:
        is_suspect = not _text_mistake(data)
    else:
        is_suspect = carrier is Carrier.BODY and is_image(data) and len(data) >= _SMALLEST_IMAGE_BYTES
    return is_suspect and not any(byte in data for byte in _STRIPPED_BYTES)


def _what_json(head: bytes, carrier: Carrier) -> str:
    if carrier in (Carrier.BODY, Carrier.URL_ENCODED):
        if b'"inputs"' in head:
            return "JSON with tensors; send it to the infer route of the Open Inference Protocol"
        if b'"images"' in head:
            return "JSON; send it with 'Content-Type: application/json'"
    return (
        "JSON, such as an error message saved as an image; send the bytes of an image, or base64 in "
        "{\"images\": [...]} with 'Content-Type: application/json'"
    )


def _text_mistake(data: bytes) -> str:
    """A line that quotes the start of a text; "" if the bytes are not text."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data[:_HEAD_BYTES])
    except UnicodeDecodeError:
        return ""
    if not all(one.isprintable() or one.isspace() for one in text):
        return ""
    quoted = text.strip()[:_QUOTED_CHARS]
    return f"the {len(data)} bytes are text that starts with {quoted!r}; send the bytes of a JPEG, PNG or WebP"


def is_image(data: bytes) -> bool:
    """Whether the data starts like an image of a supported type."""
    return data.startswith(_IMAGE_SIGNATURES) or data[4:8] in _IMAGE_BOXES


def _is_base64(head: bytes) -> bool:
    """Whether the text is base64 of an image, also in quotes."""
    start = head[:200].lstrip(b"\"'").translate(bytes.maketrans(b"-_", b"+/"), b"\r\n\t ")[:32]
    try:
        return is_image(binascii.a2b_base64(start[: len(start) // 4 * 4], strict_mode=True))
    except binascii.Error:
        return False


def mistake_in_json(body: bytes) -> str:
    """What a body is instead of JSON and what to do, in one line; "" if it is malformed JSON or unknown."""
    if is_image(body):
        return "the body is an image, not JSON; send it to the classify route with 'Content-Type: image/*'"
    return "" if body.lstrip()[:1] in (b"{", b"[") else mistake_in(body, Carrier.BODY)
