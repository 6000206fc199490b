"""What a user is told when something is wrong: one line that says what, where, what was found, what to do."""

import difflib
import errno
import os
from collections.abc import Iterable

MEND, TRY_AGAIN = 2, os.EX_TEMPFAIL
"""Exit statuses: somebody has to mend it first; it may pass, and the same command may be run again (75)."""
PASSING = {errno.ENOSPC, errno.EDQUOT, errno.ETIMEDOUT, errno.ESTALE, errno.ECONNREFUSED, errno.ECONNRESET}
"""What the system says of a disk that is full, and of one behind a network."""


class LimbeckError(Exception):
    """A mistake outside the code (input, recipe, disk). The command line prints it and exits with its status."""

    status = MEND


class RecipeError(LimbeckError):
    """A recipe, or an option given beside it, cannot be used."""


class ShardError(LimbeckError):
    """A source of images, a shard or a shard index cannot be used."""


class CacheError(LimbeckError):
    """A teacher cache is missing, incomplete, damaged, or was built from something else."""


class ReplayError(LimbeckError):
    """A replayed view is not, bit for bit, the one the teacher judged."""


class RunError(LimbeckError):
    """A run folder or a bundle cannot be used."""


class HeldError(RunError):
    """A run's folder that another process is at."""

    status = TRY_AGAIN


class DivergedError(RunError):
    """A training whose loss is no number any more."""


class ImageError(LimbeckError):
    """Bytes that are no image we can decode."""


class StoreError(LimbeckError):
    """An object store cannot be reached, or refuses."""


class UnavailableError(StoreError):
    """A store that is out of reach or failing for longer than one asks again, or that is full."""

    status = TRY_AGAIN


class ClusterError(LimbeckError):
    """A cluster cannot be reached, or has too little for the work."""


def reason(message: str) -> str:
    """What a validator said, less the words that pydantic puts before it."""
    return message.replace("Value error, ", "").replace("Assertion failed, ", "")


def passes(error: BaseException) -> bool:
    """Whether what went wrong may be well later, though nobody mends it."""
    return getattr(error, "status", 0) == TRY_AGAIN or (isinstance(error, OSError) and error.errno in PASSING)


def is_lost_worker(error: BaseException) -> bool:
    """Whether a DataLoader worker was killed, for which torch has no class of error."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")


def unknown_to_timm(key: str, name: str, kind: str, known: Iterable[str], otherwise: str) -> RecipeError:
    """What a recipe's key names is none of these; says which are nearest, or, where none is, what to do."""
    near = difflib.get_close_matches(name, known, n=3)
    advice = f"nearest are {', '.join(near)}" if near else otherwise
    return RecipeError(f"{key} = '{name}': timm has no such {kind}; {advice}")
