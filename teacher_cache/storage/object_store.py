"""Objects in a bucket, by obstore: S3 and what speaks its protocol, Google's, or Azure's."""

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

BUCKETS = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")
"""URL schemes that obstore reads and writes."""
BACKOFF = {"init_backoff": timedelta(milliseconds=250), "max_backoff": timedelta(seconds=15), "base": 2}
RETRY: Any = {"max_retries": 8, "retry_timeout": timedelta(hours=1), "backoff": BACKOFF}
"""By obstore, of answers such as 500 and of what only reads, late in a large object too; else by `persist`."""
TIMEOUTS = {"connect_timeout": "7 seconds", "read_timeout": "20 seconds", "timeout": "1 hour"}
"""read_timeout: without a byte. timeout: of a whole request, which must not limit how large an object may be."""
UPLOADS = 4
"""Parts of a large object on their way at the same time; each must be done within the read timeout."""
METADATA_SERVICE = "169.254.169.254"
"""Whom a cloud's machine asks for its keys, when the environment has none."""
NO_BUCKET = "NoSuchBucket|ContainerNotFound|bucket does not exist"
TRANSIENT_ERRORS = r"HTTP error|status code: (408|429|500|502|503|504)\b"
"""No answer, or one that says that another may come later; 501 comes of a store that lacks what is asked of it."""
UNTRUSTED = "InvalidCertificate"

AMAZONS_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
AZURES_KEYS = "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
KEYS = {"s3": AMAZONS_KEYS, "s3a": AMAZONS_KEYS, "gs": "GOOGLE_SERVICE_ACCOUNT (the path of a key file)"}
"""The variables that hold a store's keys, by URL scheme; Azure has the other schemes."""
ADVICE = "check the address, the keys and the endpoint"

T = TypeVar("T")


class ObjectStore:
    """A `Store` under a prefix. Faults that may pass are met by trying again: here all can be done twice."""

    def __init__(self, url: str) -> None:
        scheme, _, rest = url.partition("://")
        rest = re.sub("/+", "/", rest).rstrip("/")  # no key that obstore reads has an empty part
        self.where = f"{scheme}://{rest}"
        if {".", ".."} & set(rest.split("/")):  # some stores would resolve them, and others keep them
            raise StoreError(f"'{url}': a path in a bucket has no '.' or '..'; write it out")
        try:
            options: Any = {**TIMEOUTS, "allow_http": True}
            quoted = f"{scheme}://{quote(rest, safe='/@')}"  # obstore takes a key's own # and % for a URL's
            self._store = obstore.store.from_url(quoted, client_options=options, retry_config=RETRY)
        except (BaseError, ValueError) as error:
            raise _told(url, error) from None

    def get(self, name: str) -> bytes:
        try:
            return self._retry(name, lambda: bytes(obstore.get(self._store, name).bytes()))
        except FileNotFoundError as error:
            if re.search(NO_BUCKET, str(error)):
                raise _told(f"{self.where}/{name}", error) from None
            raise FileNotFoundError(errno.ENOENT, "there is no such object", f"{self.where}/{name}") from None

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
                return attempts > 1 and self.get(name) == data  # the answer to the first attempt was lost
            return True

        return self._retry(name, attempt)

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._retry(name, lambda: obstore.delete(self._store, name))

    def sweep(self, folder: str) -> None:
        """Nothing to do: an object store shows no object before it is whole."""

    def is_empty(self) -> bool:
        return self._retry("", lambda: not next(iter(obstore.list(self._store, chunk_size=1)), []))

    def names(self, folder: str) -> set[str]:
        return set(self.sizes(folder))

    def sizes(self, folder: str) -> dict[str, int]:
        listed = self._retry(folder, lambda: obstore.list_with_delimiter(self._store, folder or None)["objects"])
        return {found["path"].rpartition("/")[2]: found["size"] for found in listed}

    def _retry(self, name: str, act: Callable[[], T]) -> T:
        """Does what may have to be done again; what the store says at last becomes a line for the user."""
        try:
            return retry(act, _is_transient)
        except FileNotFoundError:
            raise
        except BaseError as error:
            raise _told(f"{self.where}/{name}".rstrip("/"), error) from None


def _put(store: Any, name: str, data: bytes, mode: Any = "overwrite") -> None:
    try:
        obstore.put(store, name, data, mode=mode, max_concurrency=UPLOADS)
    except FileNotFoundError as error:  # so obstore calls a bucket that is not there
        raise BaseError(str(error)) from None


def _is_transient(error: Exception) -> bool:
    """Whether the network failed, and not the request: an answer of the server obstore has judged already."""
    told = str(error)
    if isinstance(error, BaseError) and "NoSuchUpload" in told:  # it was completed, and the answer was lost
        return True
    lasting = METADATA_SERVICE in told or UNTRUSTED in told
    return isinstance(error, GenericError) and "HTTP error" in told and not lasting


def _told(url: str, error: Exception) -> StoreError:
    said = " ".join(str(error).partition("\n\nDebug source")[0].split())
    advice = "make the bucket, or check its name" if re.search(NO_BUCKET, said) else ADVICE
    if METADATA_SERVICE in said:
        keys = KEYS.get(url.partition("://")[0], AZURES_KEYS)
        return StoreError(
            f"'{url}' cannot be reached: there are no keys to it; set {keys}, or run where the machine's role has "
            "them"
        )
    answer = re.search(r"<Code>(.*?)</Code>(?:.*?<Message>(.*?)</Message>)?", said)
    reason = ": ".join(part.rstrip(".") for part in answer.groups() if part) if answer else said[:300]
    if silent := re.search(r"Error performing \w+ (https?://[^/ ]+).*HTTP error: (.*)", said):
        reason = f"no answer from {silent.group(1)} ({silent.group(2)[:100]})"
    kind = UnavailableError if re.search(TRANSIENT_ERRORS, said) else StoreError
    if UNTRUSTED in str(error):
        reason, kind = f"{reason}; its certificate is not one to be trusted", StoreError
    return kind(f"'{url}' cannot be reached: {reason}; {advice}")
