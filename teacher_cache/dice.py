"""A random stream named by its purpose. Nothing that makes or orders a view reads a global random generator."""

from typing import Any

import numpy as np
import xxhash
from numpy.random.bit_generator import ISeedSequence


def dice(*names: str | int) -> np.random.Generator:
    """A stream of random numbers that depends on its names alone, e.g. dice("view", seed, key).

    The hash of the names keys a Philox counter generator, so neighbouring names (seed 1 and 2, 1 and "1", or
    ("a", "bc") and ("ab", "c")) give unrelated streams, on every machine and in every process.
    """
    assert all(type(name) in (str, int) for name in names), "another type of integer would be another name"
    key: Any = _Key("\x1f".join(map(ascii, names)))  # numpy takes any ISeedSequence; its stubs do not say so
    return np.random.Generator(np.random.Philox(key))


class _Key(ISeedSequence):
    """Hands Philox its 128-bit key; `Philox(key=...)` would read the system's entropy first, which costs 40 us."""

    def __init__(self, name: str) -> None:
        self._digest = xxhash.xxh3_128_digest(name.encode())

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> Any:
        return np.frombuffer(self._digest, dtype=np.dtype(dtype).newbyteorder("<"))[:n_words]
