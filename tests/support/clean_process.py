"""Start processes by a forkserver that has only imported the student.

The tests' own process cannot be forked: after torch.compile has run in it, training fails in its forks.
"""

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess

import torch

_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(["student.training.loop"])


def start_process(function: Callable[..., object], *arguments: object) -> BaseProcess:
    """Start a process that calls the function with one torch thread, as in the tests."""
    process = _FORKSERVER.Process(target=_call, args=(function, *arguments))
    process.start()
    return process


def exit_code_of(function: Callable[..., object], *arguments: object) -> int:
    """Call the function in a process and return its exit code."""
    process = start_process(function, *arguments)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _call(function: Callable[..., object], *arguments: object) -> None:
    torch.set_num_threads(1)
    function(*arguments)
