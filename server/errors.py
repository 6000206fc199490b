"""Exceptions for requests that fail, each with its HTTP status and its reason in the metrics."""

from typing import NamedTuple

from teacher_cache.errors import ImageError, ImageTypeError, LimbeckError


class ImageSizeError(ImageError):
    """The image has too many pixels, or takes too long to decode."""


class RefusedError(LimbeckError):
    """The request cannot be answered."""


class RequestError(RefusedError):
    """The request does not follow its protocol."""


class UnknownModelError(RefusedError):
    """No loaded model has this name and version."""


class BusyError(RefusedError):
    """Too many images are waiting, or the model is closed. retry_after: seconds until the client should retry."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(RefusedError):
    """No worker was free before the deadline."""


class WorkerLostError(RefusedError):
    """The worker exited while it computed this image."""


class NoMemoryError(RefusedError):
    """The device has not enough free memory for one image."""


class NoMapsError(RefusedError):
    """The model has no attention maps."""


class ClientDisconnectedError(RefusedError):
    """The client closed the connection before its answer."""


class NonFiniteError(RefusedError):
    """The network's output for this image is NaN or infinite."""


class ComputeError(RefusedError):
    """The worker failed on this image with an unexpected exception, which is in the log."""


class _Outcome(NamedTuple):
    status: int
    """HTTP status."""
    reason: str
    """Value of the label `reason` of the metric limbeck_faults_total."""


_UNEXPECTED = _Outcome(500, "other")
_OUTCOMES: dict[type[LimbeckError], _Outcome] = {
    ImageError: _Outcome(400, "invalid_image"),
    ImageSizeError: _Outcome(413, "image_size"),
    ImageTypeError: _Outcome(415, "image_type"),
    RequestError: _Outcome(400, "request"),
    UnknownModelError: _Outcome(404, "unknown_model"),
    BusyError: _Outcome(503, "busy"),
    DeadlineError: _Outcome(504, "deadline"),
    WorkerLostError: _Outcome(503, "worker"),
    NoMemoryError: _Outcome(503, "out_of_memory"),
    NoMapsError: _Outcome(422, "no_maps"),
    ClientDisconnectedError: _Outcome(499, "disconnected"),
    NonFiniteError: _Outcome(500, "non_finite"),
    ComputeError: _Outcome(500, "compute"),
}


def status_of(error: LimbeckError) -> int:
    """The HTTP status of the answer to a request that failed with this error."""
    return _OUTCOMES.get(type(error), _UNEXPECTED).status


def reason_of(error: LimbeckError) -> str:
    """The reason by which the metrics count this error."""
    return _OUTCOMES.get(type(error), _UNEXPECTED).reason


def headers_of(error: LimbeckError) -> dict[str, str]:
    """The HTTP headers of the answer: Retry-After with status 503."""
    return {"Retry-After": str(getattr(error, "retry_after", 1))} if status_of(error) == 503 else {}
