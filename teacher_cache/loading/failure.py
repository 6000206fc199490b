"""Errors of a loader's worker, as errors that can be sent to the receiver and say what to do."""

import errno
import os
import pickle
import signal
import traceback
from pathlib import Path
from typing import Any

from teacher_cache.errors import LimbeckError, LoaderError, LoaderLostError
from teacher_cache.loading.messages import LoadedItem

MAX_TEXT = 300
"""Maximum number of characters of another library's message."""
LESS_MEMORY = "lower workers or the batch, or give the job more memory"


def worker_name(number: int, workers: int) -> str:
    """The name of a worker in messages."""
    return f"worker {number} of {workers}"


def explain(error: BaseException, worker: str) -> LimbeckError | OSError:
    """The error to raise in the receiver for an error of a worker.

    LimbeckError and OSError stay as they are if they can be pickled. Of any other error, the worker's traceback is
    lost, so its last line becomes part of the message.
    """
    advice = resource_advice(error)
    if isinstance(error, LimbeckError | OSError) and not advice and _can_be_sent(error):
        return error
    if advice:
        return LoaderLostError(f"{worker}: {_describe(error)}; {advice}")
    if isinstance(error, SystemExit):
        return LoaderLostError(f"{worker}: {_describe(error)}{_place(error)}; the worker may not exit")
    return LoaderError(f"{worker}: {_describe(error)}{_place(error)}; for the whole traceback set workers = 0")


def explain_sending(error: Exception, item: LoadedItem[Any], worker: str) -> LoaderError:
    """The error for an item that cannot be serialized."""
    what = f"{worker} cannot send item {item.number} ({type(item.value).__name__}): {_describe(error)}"
    return _with_advice(error, what, "rerun" if isinstance(error, OSError) else "it must be picklable")


def explain_receiving(error: Exception, worker: str) -> LoaderError:
    """The error for an item that the receiver cannot read."""
    return _with_advice(error, f"an item of {worker} cannot be received: {_describe(error)}", "set workers = 0")


def explain_starting(error: Exception, worker: int, workers: int) -> LoaderLostError:
    """The error for a worker that the system refuses to start."""
    message = f"{worker_name(worker, workers)} cannot be started: {_describe(error)}"
    return LoaderLostError(f"{message}; {resource_advice(error) or 'lower workers'}")


def _with_advice(error: Exception, message: str, other_advice: str) -> LoaderError:
    if advice := resource_advice(error):
        return LoaderLostError(f"{message}; {advice}")
    return LoaderError(f"{message}; {other_advice}")


def lost(worker: str, exit_code: int | None) -> LoaderLostError:
    """The error for a worker that ended before its last item. exit_code: as of `multiprocessing.Process`."""
    if exit_code is None:
        return LoaderLostError(f"{worker} closed its connection; rerun")
    if exit_code >= 0:
        return LoaderLostError(f"{worker} exited with status {exit_code} before its last item; rerun")
    name = next((one.name for one in signal.Signals if one == -exit_code), f"signal {-exit_code}")
    advice = {
        "SIGKILL": f"if memory ran out, {LESS_MEMORY}; then rerun",
        "SIGBUS": "a file that it has mapped may have become shorter, or its disk is full; restore it and rerun",
    }.get(name, "rerun, with workers = 0 if it happens again")
    return LoaderLostError(f"{worker} was killed by {name}; {advice}")


def resource_advice(error: BaseException) -> str:
    """What to do if an error means that memory, processes or open files ran out; "" for any other error.

    Torch raises RuntimeError for each of them, so that only its message names the cause.
    """
    if isinstance(error, LimbeckError):
        return ""
    text = f"{error} {os.strerror(error.errno)}" if isinstance(error, OSError) and error.errno else str(error)
    if any(sign in text for sign in (os.strerror(errno.EMFILE), os.strerror(errno.ENFILE))):
        return "raise the limit of open files (ulimit -n), or lower workers"
    if "can't start new thread" in text:
        return f"raise the limit of processes (ulimit -u), or {LESS_MEMORY}"
    if isinstance(error, MemoryError) or os.strerror(errno.ENOMEM) in text or "can't allocate memory" in text:
        return f"memory ran out: {LESS_MEMORY}"
    return ""


def _describe(error: BaseException) -> str:
    text = " ".join(str(error).split())[:MAX_TEXT]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""


def _can_be_sent(error: LimbeckError | OSError) -> bool:
    """Whether the receiver would get an equal error, and the command line would report it in one line."""
    if isinstance(error, BrokenPipeError):  # the command line takes it for its own closed output
        return False
    try:
        received = pickle.loads(pickle.dumps(error))
    except Exception:  # pickle calls the class, which may raise anything
        return False
    return type(received) is type(error) and str(received) == str(error)
