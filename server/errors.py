"""Why a request gets no answer, each with its HTTP status: the routes raise these, the app alone words them."""

from teacher_cache.errors import ImageError, LimbeckError


class ImageSizeError(ImageError):
    """An image of more pixels than the server takes."""


class ImageTypeError(ImageError):
    """An image of a type that the server does not take."""


class RefusedError(LimbeckError):
    """A request that cannot be answered now, or at all."""


class RequestError(RefusedError):
    """A request that is not as its protocol has it."""


class UnknownModelError(RefusedError):
    """No such model, or no such version of it."""


class BusyError(RefusedError):
    """Too many wait already, or no worker lives. retry_after: seconds after which to ask again."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(RefusedError):
    """The time in which a worker had to begin has passed."""


class WorkerLostError(RefusedError):
    """The worker that was at this image is gone."""


class NoMemoryError(RefusedError):
    """Not even one image fits into the device's memory now."""


class NoMapsError(RefusedError):
    """The model has no attention that could be shown."""


class ClientDisconnectedError(RefusedError):
    """The client went away, and its work with it."""


class NonFiniteError(RefusedError):
    """The network's output for this image is not finite."""


class ComputeError(RefusedError):
    """The worker failed over this image in a way that nobody foresaw; its log says how."""


STATUS: dict[type[LimbeckError], int] = {
    ImageError: 400,
    ImageSizeError: 413,
    ImageTypeError: 415,
    RequestError: 400,
    UnknownModelError: 404,
    BusyError: 503,
    DeadlineError: 504,
    WorkerLostError: 503,
    NoMemoryError: 503,
    NoMapsError: 422,
    ClientDisconnectedError: 499,
    NonFiniteError: 500,
    ComputeError: 500,
}


def status_of(error: LimbeckError) -> int:
    """The HTTP status that an error is answered with."""
    return STATUS.get(type(error), 500)


def headers_of(error: LimbeckError) -> dict[str, str]:
    """The HTTP headers that go with it."""
    return {"Retry-After": str(getattr(error, "retry_after", 1))} if status_of(error) == 503 else {}
