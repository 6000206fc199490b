"""How many bytes of requests' bodies one server holds: of those that come in, and that wait for an answer."""


class ByteBudget:
    """A count of bytes, and the most that there may be."""

    def __init__(self, limit: int) -> None:
        self._limit, self.reserved = limit, 0

    @property
    def is_exceeded(self) -> bool:
        """Whether there are more than there may be."""
        return self.reserved > self._limit
