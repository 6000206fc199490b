"""Store in a bucket, by obstore: S3 and compatible servers, Google Cloud Storage, Azure Blob Storage."""

import errno
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar
from urllib.parse import quote

import obstore
import obstore.store
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError

from teacher_cache.errors import StoreError, UnavailableError
from teacher_cache.storage.retry import retry

BUCKET_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")
"""URL schemes of obstore."""
BACKOFF = {"init_backoff": timedelta(milliseconds=250), "max_backoff": timedelta(seconds=15), "base": 2}
RETRY: Any = {"max_retries": 8, "retry_timeout": timedelta(hours=1), "backoff": BACKOFF}
"""Retries inside obstore: of error statuses such as 500, and of reads. `retry` repeats everything else."""
TIMEOUTS = {"connect_timeout": "7 seconds", "read_timeout": "20 seconds", "timeout": "1 hour"}
"""read_timeout: longest wait for the next byte. timeout: of a whole request; long enough for any object."""
UPLOAD_CONCURRENCY = 4
"""Parts of a large object that are uploaded at the same time. Each one must finish within the read timeout."""
METADATA_SERVICE = "169.254.169.254"
"""Address of a cloud machine's credentials service, which is used if the environment has no keys."""
NO_BUCKET = "NoSuchBucket|ContainerNotFound|bucket does not exist"
TRANSIENT_ERRORS = r"HTTP error|status code: (408|429|500|502|503|504)\b"
"""No response, or a status of a temporary error. 501 is permanent: the store does not support the request."""
UNTRUSTED = "InvalidCertificate"

AWS_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
AZURE_KEYS = "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
KEYS = {"s3": AWS_KEYS, "s3a": AWS_KEYS, "gs": "GOOGLE_SERVICE_ACCOUNT (the path of a key file)"}
"""Environment variables with the keys of a store, by URL scheme. All other schemes are Azure's."""
ADVICE = "check the address, the keys and the endpoint"

T = TypeVar("T")


class ObjectStore:
    """`Store` under a prefix of a bucket. Temporary errors are retried, as every operation is idempotent."""

    def __init__(self, url: str) -> None:
        scheme, _, rest = url.partition("://")
        rest = re.sub("/+", "/", rest).rstrip("/")  # obstore's keys have no empty parts
        self.where = f"{scheme}://{rest}"
        if {".", ".."} & set(rest.split("/")):  # some stores resolve them, others do not
            raise StoreError(f"'{url}': '.' and '..' are invalid in a bucket's path; write the full path")
        try:
            options: Any = {**TIMEOUTS, "allow_http": True}
            quoted = f"{scheme}://{quote(rest, safe='/@')}"  # obstore parses # and % in a key as URL syntax
            self._store = obstore.store.from_url(quoted, client_options=options, retry_config=RETRY)
        except (BaseError, ValueError) as error:
            raise _store_error(url, error) from None

    def get(self, name: str) -> bytes:
        try:
            return self._retry(name, lambda: bytes(obstore.get(self._store, name).bytes()))
        except FileNotFoundError as error:
            if re.search(NO_BUCKET, str(error)):
                raise _store_error(f"{self.where}/{name}", error) from None
            raise FileNotFoundError(errno.ENOENT, "object does not exist", f"{self.where}/{name}") from None

    def put(self, name: str, data: bytes) -> None:
        self._retry(name, lambda: _put(self._store, name, data))

    def create(self, name: str, data: bytes) -> bool:
        attempts = 0

        def attempt() -> bool:
            nonlocal attempts
            attempts += 1
            try:
                _put(self._store, name, data, mode="create")
            except AlreadyExistsError:
                return attempts > 1 and self.get(name) == data  # the response to the first attempt was lost
            return True

        return self._retry(name, attempt)

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._retry(name, lambda: obstore.delete(self._store, name))

    def sweep(self, folder: str) -> None:
        """Do nothing: an object appears only when its upload is complete."""

    def is_empty(self) -> bool:
        return self._retry("", lambda: not next(iter(obstore.list(self._store, chunk_size=1)), []))

    def names(self, folder: str) -> set[str]:
        return set(self.sizes(folder))

    def sizes(self, folder: str) -> dict[str, int]:
        listed = self._retry(folder, lambda: obstore.list_with_delimiter(self._store, folder or None)["objects"])
        return {found["path"].rpartition("/")[2]: found["size"] for found in listed}

    def _retry(self, name: str, operation: Callable[[], T]) -> T:
        """Run an operation with retries. The last error becomes a one-line StoreError."""
        try:
            return retry(operation, _is_transient)
        except FileNotFoundError:
            raise
        except BaseError as error:
            raise _store_error(f"{self.where}/{name}".rstrip("/"), error) from None


def _put(store: Any, name: str, data: bytes, mode: Any = "overwrite") -> None:
    try:
        obstore.put(store, name, data, mode=mode, max_concurrency=UPLOAD_CONCURRENCY)
    except FileNotFoundError as error:  # obstore's error for a missing bucket
        raise BaseError(str(error)) from None


def _is_transient(error: Exception) -> bool:
    """Whether the network failed. Obstore itself has already retried temporary statuses of the server."""
    message = str(error)
    if isinstance(error, BaseError) and "NoSuchUpload" in message:  # completed; the response was lost
        return True
    permanent = METADATA_SERVICE in message or UNTRUSTED in message
    return isinstance(error, GenericError) and "HTTP error" in message and not permanent


def _store_error(url: str, error: Exception) -> StoreError:
    """The one-line error for an exception of obstore; UnavailableError if it is temporary."""
    message = " ".join(str(error).partition("\n\nDebug source")[0].split())
    advice = "create the bucket, or check its name" if re.search(NO_BUCKET, message) else ADVICE
    if METADATA_SERVICE in message:
        keys = KEYS.get(url.partition("://")[0], AZURE_KEYS)
        return StoreError(
            f"'{url}' cannot be reached: no keys found; set {keys}, or use a machine whose role has access"
        )
    answer = re.search(r"<Code>(.*?)</Code>(?:.*?<Message>(.*?)</Message>)?", message)
    reason = ": ".join(part.rstrip(".") for part in answer.groups() if part) if answer else message[:300]
    if no_answer := re.search(r"Error performing \w+ (https?://[^/ ]+).*HTTP error: (.*)", message):
        reason = f"no answer from {no_answer.group(1)} ({no_answer.group(2)[:100]})"
    error_type = UnavailableError if re.search(TRANSIENT_ERRORS, message) else StoreError
    if UNTRUSTED in str(error):
        reason, error_type = f"{reason}; its certificate is not trusted", StoreError
    return error_type(f"'{url}' cannot be reached: {reason}; {advice}")
