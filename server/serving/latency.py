"""Recent compute times of a model's batches, and the waiting times that follow from them."""

MAX_WAIT_FRACTION = 0.9
"""Images with a longer estimated wait than this fraction of their queue timeout are refused immediately."""
DECAY = 0.9
"""Weight of the previous mean at each update of the moving averages."""


class Latency:
    """Moving averages of the seconds per batch and per image of a worker; 0 before the first batch."""

    def __init__(self) -> None:
        self._image_seconds = self._batch_seconds = 0.0

    def record(self, seconds: float, images: int) -> None:
        """Add one finished batch."""
        self._image_seconds = _update(self._image_seconds, seconds / images)
        self._batch_seconds = _update(self._batch_seconds, seconds)

    def estimate_wait(self, images: int, workers: int) -> float:
        """Seconds until this number of images has been given to workers."""
        return images * self._image_seconds / max(workers, 1)

    def queue_timeout(self, deadline: float) -> float:
        """Seconds that an image may wait: the deadline minus one batch, at least half of the deadline."""
        return deadline - min(self._batch_seconds, deadline / 2)


def _update(mean: float, value: float) -> float:
    return DECAY * mean + (1 - DECAY) * value if mean else value
