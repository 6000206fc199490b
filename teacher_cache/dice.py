"""A random stream named by its purpose. Nothing in Limbeck reads a global random generator."""

import numpy as np
import xxhash


def dice(*names: str | int) -> np.random.Generator:
    """A stream of random numbers that depends on its names alone, e.g. dice("view", seed, key).

    The hash of the names keys a Philox counter generator, so neighbouring names (seed 1 and 2, or
    ("a", "bc") and ("ab", "c")) give unrelated streams, on every machine and in every process.
    """
    name = "\x1f".join(f"{type(part).__name__}:{part}" for part in names)
    return np.random.Generator(np.random.Philox(key=xxhash.xxh3_128_intdigest(name)))
