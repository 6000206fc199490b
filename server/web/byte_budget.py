"""A limit on the bytes of all request bodies that the server has in memory."""


class ByteBudget:
    """A counter of reserved bytes with a limit."""

    def __init__(self, limit: int) -> None:
        self._limit, self.reserved = limit, 0

    @property
    def is_exceeded(self) -> bool:
        """Whether more bytes are reserved than the limit."""
        return self.reserved > self._limit
