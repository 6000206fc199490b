"""How many bytes of requests' bodies one server holds: of those that come in, and that wait for an answer."""


class ByteBudget:
    """A count of bytes, and the most that there may be."""

    def __init__(self, most: int) -> None:
        self._most, self.count = most, 0

    @property
    def full(self) -> bool:
        """Whether there are more than there may be."""
        return self.count > self._most
