"""How long a model's batches take lately, and what follows for who has to wait."""

ROOM = 0.9
"""Of the time that an image may wait; one that would by all appearance wait longer is refused at once."""
MEMORY = 0.9
"""How much of the mean times is kept at each batch."""


class Latency:
    """Mean seconds of workers' batches, and of an image in them; 0 before the first."""

    def __init__(self) -> None:
        self._image = self._batch = 0.0

    def record(self, seconds: float, images: int) -> None:
        """A worker's batch of so many images is done."""
        self._image = _mean(self._image, seconds / images)
        self._batch = _mean(self._batch, seconds)

    def wait(self, ahead: int, workers: int) -> float:
        """Seconds until so many images have found a worker."""
        return ahead * self._image / max(workers, 1)

    def queue_timeout(self, deadline: float) -> float:
        """Seconds that an image may wait to be answered within its deadline; at least half of that."""
        return deadline - min(self._batch, deadline / 2)


def _mean(lately: float, now: float) -> float:
    return MEMORY * lately + (1 - MEMORY) * now if lately else now
