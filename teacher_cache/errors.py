"""Exceptions for faults outside the code, and the exit statuses that the command line maps them to.

A message is one line: what is wrong, where, what was found, what to do.
"""

import errno
import os

EXIT_USER_ERROR = 2
"""Exit status of a user error: fix the input, the recipe or the machine, then rerun."""
EXIT_TRANSIENT = os.EX_TEMPFAIL
"""Exit status of a temporary error (75): rerun the same command later."""
TRANSIENT_ERRNOS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ETIMEDOUT,
    errno.ESTALE,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
}
"""OSError numbers of temporary errors: full disk, exceeded quota, unreachable network file system or host."""


class LimbeckError(Exception):
    """Fault outside the code: input, recipe, disk or network.

    The command line prints the message without a traceback and exits with `status`.
    """

    status = EXIT_USER_ERROR
    """Exit status of the command: EXIT_USER_ERROR, or EXIT_TRANSIENT in subclasses for temporary errors."""


class RecipeError(LimbeckError):
    """Invalid recipe, or invalid command-line option."""


class ShardError(LimbeckError):
    """Missing, damaged or invalid source of images, shard or shard index."""


class CacheError(LimbeckError):
    """Teacher cache that is missing, incomplete or damaged, or does not match the recipe."""


class ReplayError(LimbeckError):
    """The student's view differs from the view that the teacher labeled: their digests are not equal."""


class RunError(LimbeckError):
    """Missing, unfinished, damaged or mismatched run folder or bundle."""


class RunLockedError(RunError):
    """Run folder that another process is using. Temporary: rerun after that process exits."""

    status = EXIT_TRANSIENT


class DivergedError(RunError):
    """The training loss became NaN or infinite."""


class ImageError(LimbeckError):
    """Bytes that cannot be decoded as an image."""


class ImageTypeError(ImageError):
    """The image has a type that is not supported."""


class StoreError(LimbeckError):
    """Object store that cannot be reached, or that rejects the request."""


class UnavailableError(StoreError):
    """Store that is full, or that still fails or does not answer after all retries. Temporary: rerun later."""

    status = EXIT_TRANSIENT


class ClusterError(LimbeckError):
    """Ray cluster that cannot be reached, or that has too few CPUs or GPUs for the job."""


class LoaderError(LimbeckError):
    """Failure of a loader's worker process, or a loader that received less than planned."""


class LoaderLostError(LoaderError):
    """Worker that was killed or exited, or that ran out of memory, processes or open files.

    Another machine may be able to do the same work.
    """


def validation_reason(message: str) -> str:
    """The message of a pydantic error without the prefix that pydantic adds, such as "Value error, "."""
    return message.replace("Value error, ", "").replace("Assertion failed, ", "")


def is_transient(error: BaseException) -> bool:
    """Whether rerunning later may succeed without a fix: status EXIT_TRANSIENT, or one of TRANSIENT_ERRNOS."""
    return getattr(error, "status", 0) == EXIT_TRANSIENT or (
        isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS
    )
