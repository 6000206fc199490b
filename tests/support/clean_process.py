"""Processes of their own, forked from one that has imported the student and done nothing yet.

A fork of the tests' own process would not do: once a compiler has been at work in it, torch trains in none.
"""

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess

import torch

_FRESH = multiprocessing.get_context("forkserver")
_FRESH.set_forkserver_preload(["student.training.loop"])


def begin(function: Callable[..., object], *arguments: object) -> BaseProcess:
    """A process that calls the function, on one thread as the tests do."""
    process = _FRESH.Process(target=_call, args=(function, *arguments))
    process.start()
    return process


def exit_code_of(function: Callable[..., object], *arguments: object) -> int:
    """How a process that calls the function ends."""
    process = begin(function, *arguments)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _call(function: Callable[..., object], *arguments: object) -> None:
    torch.set_num_threads(1)
    function(*arguments)
