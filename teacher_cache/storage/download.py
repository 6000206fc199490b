"""Read a whole file from a path or a URL: http(s) by urllib, buckets by obstore, other schemes by fsspec."""

import urllib.request
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

from teacher_cache.errors import ShardError
from teacher_cache.storage.object_store import BUCKET_SCHEMES, ObjectStore
from teacher_cache.storage.retry import retry

HTTP_TIMEOUT_SECONDS = 20
"""Longest wait for the next byte."""
TRANSIENT_STATUSES = (408, 429, 500, 502, 503, 504)
"""HTTP statuses of temporary errors, which are retried."""


def read_url(url: str) -> bytes:
    """The bytes of a file. Temporary errors are retried.

    Raises FileNotFoundError if the file does not exist, ShardError if the URL is invalid or the server rejects the
    request, StoreError if a bucket cannot be read, OSError or HTTPException for other failures.
    """
    scheme, separator, _ = url.partition("://")
    if not separator:
        return Path(url).read_bytes()
    if scheme in ("http", "https"):
        return retry(lambda: _read_http(url), _is_transient)
    if scheme in BUCKET_SCHEMES:
        folder, _, name = url.rpartition("/")
        return ObjectStore(folder).get(name)
    import fsspec  # slow to import, and only other schemes need it

    try:
        with fsspec.open(url, "rb") as file:
            return bytes(file.read())
    except (ImportError, ValueError) as error:
        raise ShardError(f"'{url}' cannot be opened: {error}") from None


def _read_http(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=HTTP_TIMEOUT_SECONDS) as response:
            return bytes(response.read())
    except HTTPError as error:
        error.close()
        if error.code in TRANSIENT_STATUSES:
            raise
        raise ShardError(f"'{url}' cannot be opened: {error}; check the address") from None


def _is_transient(error: Exception) -> bool:
    return isinstance(error, (OSError, HTTPException))  # connection refused or reset, body incomplete, timeout
