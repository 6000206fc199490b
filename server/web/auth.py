"""API keys and request rates."""

import hashlib
import os
import re
import time
from collections.abc import Mapping

from server.settings import Settings
from teacher_cache.errors import LimbeckError
from teacher_cache.text import decode_text

KEYS_VARIABLE = "LIMBECK_API_KEYS"
BEARER = re.compile(rb"^bearer +", re.IGNORECASE)


def read_keys(settings: Settings, environment: Mapping[str, str] = os.environ) -> list[bytes]:
    """SHA-256 digests of the valid API keys; [] if none are set. Raises LimbeckError for an invalid file."""
    if settings.api_keys is not None:
        try:
            text = decode_text(settings.api_keys.read_bytes(), f"--api-keys '{settings.api_keys}'", LimbeckError)
        except OSError as error:
            raise LimbeckError(f"--api-keys '{settings.api_keys}' cannot be read: {error.strerror}") from None
        keys = [key for line in text.splitlines() if (key := line.strip()) and not key.startswith("#")]
        if not keys:
            raise LimbeckError(f"--api-keys '{settings.api_keys}' has no key; write one per line")
    else:
        keys = environment.get(KEYS_VARIABLE, "").replace(",", " ").split()
    if settings.rate and not keys:
        raise LimbeckError(f"--rate needs API keys; give --api-keys or set {KEYS_VARIABLE}")
    return [key_digest(key.encode()) for key in keys]


def key_digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class TokenBucket:
    """A rate limit: `rate` requests per second, with bursts of at most one second's requests."""

    def __init__(self, rate: float) -> None:
        self._rate, self._capacity = rate, max(rate, 1.0)
        self._tokens, self._updated = self._capacity, time.monotonic()

    def take(self) -> float:
        """Take one token. Returns 0, or the seconds until the next token if the bucket is empty."""
        now = time.monotonic()
        self._tokens = min(self._capacity, self._tokens + (now - self._updated) * self._rate)
        self._updated = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate
