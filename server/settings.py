"""What one server is told once, when it starts."""

import difflib
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from teacher_cache.errors import LimbeckError, validation_reason

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0.001, le=86_400)]
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def cores() -> int:
    """The CPU cores this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Settings:
    """The address and the limits of one server. Times in seconds."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    """0 picks a free one."""
    device: str = "auto"
    runtime: str = "torch"
    """What computes: a name in server.workers.runtime.RUNTIMES."""
    workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Processes for each model, each of which decodes and judges with one thread; 0 is one for each core."""
    batch: Annotated[int, Field(ge=0)] = 0
    """Images that go through the network at once, at most; 0: 1 on a CPU, 16 on a GPU."""

    max_body_bytes: Count = 20_000_000
    max_pixels: Count = 50_000_000
    """Of one image."""
    max_images: Count = 64
    """In one request."""
    max_waiting: Count = 256
    """Images that wait for a worker, for each model; more are refused with 503."""
    max_held_bytes: Count = 1_000_000_000
    """Of the bodies of all requests at once; more are refused with 503."""
    max_header_bytes: Count = 65_536

    deadline: Seconds = 10.0
    """Seconds to an answer; an image that no worker is free for in time is given up with 504."""
    header_seconds: Seconds = 10.0
    body_seconds: Seconds = 30.0
    """In which a request's header, and then its body, must have come in."""
    keep_alive_seconds: Count = 75
    """How long a connection may idle between two requests. Longer than proxies and clients keep theirs, mostly 60
    or less: a request that crosses with the server's closing is lost."""
    compute_seconds: Seconds = 60.0
    """After which a worker that is still at one batch is killed."""
    shutdown_seconds: Annotated[int, Field(ge=0)] = 30
    """How long requests in flight are waited for when the server is told to stop."""
    non_finite: Count = 5
    """After so many answers in a row that are not finite, the server is no longer ready."""

    api_keys: Path | None = None
    """A file with one key a line; None: the environment's LIMBECK_API_KEYS, and without them all are served."""
    rate: Annotated[float, Field(ge=0)] = 0.0
    """Requests a second for each key; 0 is no limit."""
    model_control: Literal["auto", "on", "off"] = "auto"
    """Whether clients may load and unload models over /v2; auto: where this machine alone can ask."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may ask."""
    access_log: str = ""
    """A file for one JSON line a request; "-" is standard output, "" is none."""

    @property
    def loads(self) -> bool:
        """Whether clients may load and unload models."""
        return self.model_control == "on" or (self.model_control == "auto" and self.host in LOOPBACK)


def read_settings(changes: list[str], **given: Any) -> Settings:
    """Settings with `changes` such as "max_waiting=8" over what is given. Raises LimbeckError for a wrong one."""
    names = [one.name for one in fields(Settings)]
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals or name not in names:
            near = difflib.get_close_matches(name, names, n=3) or names
            raise LimbeckError(f"--set {change}: there is no such limit; there are {', '.join(near)}")
        given[name] = value
    given["workers"] = given.get("workers") or cores()
    try:
        return TypeAdapter(Settings).validate_python(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise LimbeckError(
            f"--set {first['loc'][0]}={first['input']}: {validation_reason(first['msg'])}"
        ) from None
