"""What the processes of a training on Ray print: Ray hands it to the driver, among what its own helpers print."""

import io
import re
from typing import TextIO

PRINTED = re.compile(r"^(?:\x1b\[\d+m)*\((raylet|autoscaler|\w+(?= pid=))[^)]*\)(?:\x1b\[0m)* ?(.*)$")
"""A line as the driver has it: the class of the actor, or the part of Ray, and its words."""
ACTOR = "RayTrainWorker"
HIDDEN = "Setting up process group"
RETRY = "[FailurePolicy] RETRY"
AGAIN = "a process was lost; all begin again at the last checkpoint"


class Heard(io.TextIOBase):
    """A stream before another. Of what actors print it passes on the processes' lines, each once in a row."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._begun = self._last = ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            printed = PRINTED.match(line)
            words = _meant(*printed.groups()) if printed else line
            if not printed or words not in ("", self._last):
                self._out.write(f"{words}\n")
            self._last = words or self._last
        return len(text)

    def flush(self) -> None:
        self._out.flush()

    def isatty(self) -> bool:
        return self._out.isatty()


def _meant(actor: str, words: str) -> str:
    """What a person is to read of an actor's line; "" for nothing."""
    if actor != ACTOR:
        return AGAIN if RETRY in words else ""
    return "" if words.startswith(HIDDEN) else words
