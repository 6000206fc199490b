"""What a user is told when something is wrong: one line that says what, where, what was found, what to do."""

import errno
import os

EXIT_USER_ERROR, EXIT_TRANSIENT = 2, os.EX_TEMPFAIL
"""Exit statuses: somebody has to mend it first; it may pass, and the same command may be run again (75)."""
TRANSIENT_ERRNOS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ETIMEDOUT,
    errno.ESTALE,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
}
"""What the system says of a disk that is full, and of one behind a network."""


class LimbeckError(Exception):
    """A mistake outside the code (input, recipe, disk). The command line prints it and exits with its status."""

    status = EXIT_USER_ERROR


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


class RunLockedError(RunError):
    """A run's folder that another process is at."""

    status = EXIT_TRANSIENT


class DivergedError(RunError):
    """A training whose loss is no number any more."""


class ImageError(LimbeckError):
    """Bytes that are no image we can decode."""


class StoreError(LimbeckError):
    """An object store cannot be reached, or refuses."""


class UnavailableError(StoreError):
    """A store that is out of reach or failing for longer than one asks again, or that is full."""

    status = EXIT_TRANSIENT


class ClusterError(LimbeckError):
    """A cluster cannot be reached, or has too little for the work."""


def validation_reason(message: str) -> str:
    """What a validator said, less the words that pydantic puts before it."""
    return message.replace("Value error, ", "").replace("Assertion failed, ", "")


def is_transient(error: BaseException) -> bool:
    """Whether what went wrong may be well later, though nobody mends it."""
    return getattr(error, "status", 0) == EXIT_TRANSIENT or (
        isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS
    )


def is_lost_worker(error: BaseException) -> bool:
    """Whether a DataLoader worker was killed, for which torch has no class of error."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")
