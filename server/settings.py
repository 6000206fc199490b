"""The settings of one server: its address and its limits."""

import difflib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from teacher_cache.console import log_line
from teacher_cache.distributed.machine import memory_bytes
from teacher_cache.errors import LimbeckError, validation_reason

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0.001, le=86_400)]
LOOPBACK = ("localhost", "127.0.0.1", "::1")
WORKER_BYTES = 2**28
"""Memory of a worker beside the weights, which all workers share. It limits the default of `workers`."""
HELD_SHARE = 0.25
"""Limit of the default of `max_held_bytes`, as a share of the memory."""


@dataclass(frozen=True)
class Settings:
    """The settings of one server. Times are in seconds."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    """0 selects a free port."""
    device: str = "auto"
    runtime: str = "torch"
    """Library and precision of the network: a name in server.workers.runtime.RUNTIMES."""
    workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Processes per model; each decodes and classifies in one thread. 0: `default_workers` of the device, one per
    CPU core (if there are 256 MiB of memory for each), or one on a GPU."""
    batch: Annotated[int, Field(ge=0)] = 0
    """Maximum images per forward pass. 0: 1 on a CPU, 16 on a GPU."""

    max_body_bytes: Count = 20_000_000
    """Maximum size of one request's body; larger ones are refused with 413."""
    max_pixels: Count = 50_000_000
    """Maximum pixels of one image; larger ones are refused with 413."""
    max_images: Count = 64
    """Maximum images in one request."""
    max_waiting: Count = 256
    """Maximum images per model that wait for a worker; more are refused with 503."""
    max_held_bytes: Count = 1_000_000_000
    """Maximum total size of the bodies in memory, of all requests; more are refused with 503. The default is
    at most a quarter of the memory that the process may use."""
    max_header_bytes: Count = 65_536
    """Maximum size of one request's header."""

    deadline: Seconds = 10.0
    """Time limit of an answer. An image for which no worker is free in time fails with 504."""
    header_seconds: Seconds = 10.0
    """Time limit for receiving a request's header."""
    body_seconds: Seconds = 30.0
    """Time limit for receiving a request's body."""
    keep_alive_seconds: Count = 75
    """Time after which an idle connection is closed. Keep it longer than that of proxies and clients, often 60: a
    request that is sent while the server closes the connection is lost."""
    compute_seconds: Seconds = 60.0
    """Time limit for one batch. A worker that exceeds it is killed and replaced."""
    shutdown_seconds: Annotated[int, Field(ge=0)] = 30
    """Time limit for running requests when the server is stopped."""
    non_finite: Count = 5
    """Number of consecutive outputs that are NaN or infinite after which the server is not ready."""

    api_keys: Path | None = None
    """File with one key per line. None: the keys in the environment variable LIMBECK_API_KEYS; if it is not set,
    no key is required."""
    rate: Annotated[float, Field(ge=0)] = 0.0
    """Maximum requests per second and key. 0: no limit."""
    model_control: Literal["auto", "on", "off"] = "auto"
    """Whether clients may load and unload models with /v2. auto: only if `host` is a loopback address."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may send requests (CORS)."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of the reverse proxies whose X-Forwarded-For and X-Forwarded-Proto are used."""
    root_path: str = ""
    """The path prefix under which a reverse proxy offers the server, e.g. "/limbeck"."""
    access_log: str = ""
    """File for one JSON line per request. "-": standard output. "": no log."""

    @property
    def allows_loading(self) -> bool:
        """Whether clients may load and unload models, with 'auto' resolved."""
        return self.model_control == "on" or (self.model_control == "auto" and self.host in LOOPBACK)


def default_workers(device_type: str, own_cores: int, memory: int) -> int:
    """Processes per model: on a CPU one per core, if `memory` (bytes) has room for each; on another device one.

    On a GPU several processes would have a copy of the weights each, and would compute in turn.
    """
    return max(min(own_cores, memory // WORKER_BYTES), 1) if device_type == "cpu" else 1


def read_settings(changes: list[str], **values: Any) -> Settings:
    """Create settings from keyword arguments and `changes` such as "max_waiting=8". Raises LimbeckError."""
    names = [field.name for field in fields(Settings)]
    for change in changes:
        name, equals, value = change.partition("=")
        if name not in names:
            similar = difflib.get_close_matches(name, names, n=3) or names
            raise LimbeckError(f"--set {change}: unknown setting '{name}'; use {', '.join(similar)}")
        if not equals:
            raise LimbeckError(f"--set {change}: the value is missing; write {name}=VALUE")
        values[name] = value
    memory = memory_bytes()
    values.setdefault("max_held_bytes", min(Settings.max_held_bytes, int(HELD_SHARE * memory)))
    try:
        settings = TypeAdapter(Settings).validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise LimbeckError(
            f"--set {first['loc'][0]}={first['input']}: {validation_reason(first['msg'])}"
        ) from None
    if settings.max_held_bytes > memory:
        log_line(
            f"max_held_bytes = {settings.max_held_bytes:,} is more than the {memory:,} bytes of memory that this "
            "process may use; it can be killed before requests are refused: lower max_held_bytes"
        )
    return settings
