"""A worker that fails in any way is an error in the receiver within seconds, and no item is lost."""

import errno
import faulthandler
import os
import pickle
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import Pipe, Process
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import psutil
import pytest
import torch
from facts import assert_facts
from wait import until

from teacher_cache.data.loader import load
from teacher_cache.errors import LimbeckError, LoaderError, LoaderLostError
from teacher_cache.loading import pool
from teacher_cache.loading.messages import PREFETCH, EndOfItems, LoadedItem

BOUND_SECONDS = 30
"""A receiver that waits for ever is an error; on a busy machine, a worker may take seconds to start."""
SPAWN = ("s3://bucket/shards",)
"""A URL whose workers are spawned."""


class Faulty:
    """Yields 0, then what `act` returns."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self._act = act

    def items(self, worker: int, workers: int) -> Iterator[Any]:
        yield 0
        yield self._act()


def error_of(items: Iterator[Any]) -> Any:
    """The error of a loader. It must be raised in time, in a thread that is not the main one."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            for _ in items:
                pass
        except LimbeckError as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(BOUND_SECONDS)
    assert not thread.is_alive(), "the receiver waits for ever"
    return errors[0]


def failure(dataset: Any, *places: str, workers: int = 1) -> LoaderError:
    """The error of a loader, in one line."""
    error = error_of(load(dataset, workers, *places))
    assert isinstance(error, LoaderError) and "\n" not in str(error)
    return error


def send(number: int) -> None:
    faulthandler.disable()  # pytest's would print the stack of the worker
    os.kill(os.getpid(), number)


def killed() -> None:
    send(signal.SIGKILL)


def bus_error() -> None:
    send(signal.SIGBUS)


def segmentation_fault() -> None:
    send(signal.SIGSEGV)


def terminated() -> None:
    send(signal.SIGTERM)


def exits_at_once() -> NoReturn:
    os._exit(0)


def exits_with_three() -> NoReturn:
    os._exit(3)


def calls_sys_exit() -> NoReturn:
    raise SystemExit(4)  # packages that wrap sys.exit would be the place of the error


def allocates_numpy() -> Any:
    return np.empty(2**60, np.uint8)


def allocates_torch() -> Any:
    return torch.empty(2**60, dtype=torch.uint8)


def limit_open_files() -> None:
    """Let this process open no more files."""
    last = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with suppress(OSError):
        while True:
            os.dup(0)


def opens_too_many_files() -> Any:
    limit_open_files()
    return Path(__file__).read_bytes()


def exceeds_memory_limit() -> Any:
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**26,) * 2)
    return torch.zeros(2**26, dtype=torch.uint8).clone()


def starts_no_thread() -> None:
    threading.stack_size(2**46)  # more than there are addresses
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()


@pytest.mark.parametrize("places", [(), SPAWN])
@pytest.mark.parametrize(
    ("act", "facts"),
    [(killed, ["SIGKILL", "memory"]), (opens_too_many_files, [os.strerror(errno.EMFILE), "ulimit -n"])],
)
def test_a_worker_that_is_lost_is_one_error(
    act: Callable[[], Any], facts: list[str], places: tuple[str, ...]
) -> None:
    error = failure(Faulty(act), *places)
    assert type(error) is LoaderLostError
    assert_facts(error, "worker 0 of 1", *facts)


@pytest.mark.parametrize(
    ("act", "facts"),
    [
        (bus_error, ["SIGBUS"]),
        (exits_at_once, ["status 0"]),
        (segmentation_fault, ["SIGSEGV", "workers = 0"]),
        (terminated, ["SIGTERM"]),
        (exits_with_three, ["status 3"]),
        (calls_sys_exit, ["SystemExit: 4", "test_worker.py"]),
        (allocates_numpy, ["MemoryError", "memory", "workers"]),
        (allocates_torch, ["memory", "workers"]),
        (exceeds_memory_limit, ["memory", "workers"]),
        (starts_no_thread, ["new thread", "ulimit -u"]),
    ],
)
def test_every_end_of_a_worker_is_named(act: Callable[[], Any], facts: list[str]) -> None:
    error = failure(Faulty(act), workers=2)
    assert type(error) is LoaderLostError
    assert_facts(error, "of 2", *facts)


class OddError(LimbeckError):
    """Cannot be unpickled: its constructor takes two arguments, and `args` has one."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} in {where}")


class OddOSError(OSError):
    """Cannot be unpickled either, like those of some HTTP clients."""

    def __init__(self, *, url: str) -> None:
        super().__init__(f"no answer of {url}")


class UnreadableItem:
    """Can be pickled, but not unpickled."""

    def __reduce__(self) -> Any:
        return divide, (1, 0)


def divide(one: int, other: int) -> float:
    return one / other


def raises_odd_error() -> NoReturn:
    raise OddError("fault", "a.tar")


def raises_odd_os_error() -> NoReturn:
    raise OddOSError(url="http://a")


def raises_broken_pipe() -> NoReturn:
    raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def raises_two_lines() -> NoReturn:
    raise ValueError("one\ntwo")


def raises_stop_iteration() -> NoReturn:
    next(iter(()))
    raise AssertionError


@pytest.mark.parametrize(
    ("act", "facts"),
    [
        (raises_odd_error, ["OddError: fault in a.tar"]),
        (raises_odd_os_error, ["OddOSError", "http://a"]),
        (raises_broken_pipe, ["BrokenPipeError"]),
        (raises_two_lines, ["ValueError: one two", "test_worker.py"]),
        (raises_stop_iteration, ["StopIteration"]),
        (threading.Lock, ["item 1", "lock"]),
        (UnreadableItem, ["ZeroDivisionError"]),
    ],
)
def test_every_exception_of_a_worker_is_one_line(act: Callable[[], Any], facts: list[str]) -> None:
    assert_facts(failure(Faulty(act)), "worker 0 of 1", *facts)


class Large:
    """Each item is more than a connection holds."""

    def items(self, worker: int, workers: int) -> Iterator[Any]:
        while True:
            yield bytes(4_000_000)


def workers_of(loader: Iterator[Any], before: set[psutil.Process]) -> list[psutil.Process]:
    """Take an item, and return the processes that were started for that."""
    next(loader)
    return [process for process in psutil.Process().children() if process not in before]


@pytest.mark.parametrize("in_order", [True, False])
def test_a_worker_killed_while_it_sends_an_item_is_noticed(in_order: bool) -> None:
    """Also beside other workers, which must not keep its connection open."""
    loader = load(Large(), 3, in_order=in_order)
    workers = workers_of(loader, {*psutil.Process().children()})
    assert len(workers) == 3
    time.sleep(0.2)  # until each waits for room in its connection
    for process in workers[:2]:
        process.send_signal(signal.SIGKILL)
    error = error_of(loader)
    assert type(error) is LoaderLostError
    assert_facts(error, "SIGKILL")
    assert not any(process.is_running() for process in workers)


def start_with_few_files() -> None:
    limit_open_files()
    list(load(Large(), 2))


def report(act: Callable[[], None], into: Any) -> None:
    try:
        act()
    except LoaderLostError as error:
        into.send(str(error))


def message_of(act: Callable[[], None]) -> str:
    """The LoaderLostError of a receiver in a process of its own."""
    ours, theirs = Pipe()
    process = Process(target=report, args=(act, theirs))
    process.start()
    theirs.close()
    assert ours.poll(BOUND_SECONDS)
    message: str = ours.recv()
    process.join()
    assert "\n" not in message
    return message


def skips_an_item(_: Any, number: int, workers: int, connection: Any, parent: int) -> None:
    for message in (LoadedItem(0, "a"), LoadedItem(2, "c")):
        connection.send_bytes(pickle.dumps(message))
    time.sleep(60)


def ends_too_early(_: Any, number: int, workers: int, connection: Any, parent: int) -> None:
    for message in (LoadedItem(0, "a"), EndOfItems(3)):
        connection.send_bytes(pickle.dumps(message))
    time.sleep(60)


@pytest.mark.parametrize(("broken", "facts"), [(skips_an_item, (2, 1)), (ends_too_early, (3, 1))])
def test_a_gap_between_items_is_an_error(
    broken: Callable[..., None], facts: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No known fault loses an item; this is the check that would find one."""
    monkeypatch.setattr(pool, "run_worker", broken)
    assert_facts(failure(Faulty(killed)), "worker 0 of 1", *facts)


def test_a_worker_that_cannot_be_started_is_one_error() -> None:
    assert_facts(message_of(start_with_few_files), "worker 0 of 2", "ulimit -n")


class Counted:
    """Appends a byte to a file for each item that it makes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def items(self, worker: int, workers: int) -> Iterator[int]:
        for number in range(10):
            with self._path.open("ab") as file:
                file.write(b".")
            yield number


def test_a_worker_is_only_some_items_ahead(tmp_path: Path) -> None:
    loader = load(Counted(tmp_path / "made"), 1)
    workers = workers_of(loader, {*psutil.Process().children()})
    until(lambda: (tmp_path / "made").stat().st_size == 1 + PREFETCH)
    time.sleep(0.2)
    assert (tmp_path / "made").stat().st_size == 1 + PREFETCH
    assert next(loader) == 1
    until(lambda: (tmp_path / "made").stat().st_size == 2 + PREFETCH)
    del loader
    assert not workers[0].is_running()


class Alternating:
    """Worker 0 yields five items, worker 1 two; the first item of worker 0 takes `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def items(self, worker: int, workers: int) -> Iterator[str]:
        time.sleep(0 if worker else self._seconds)
        for number in range(2 if worker else 5):
            yield f"{'ab'[worker]}{number}"


def test_workers_are_taken_in_turn_until_each_has_ended() -> None:
    assert list(load(Alternating(0), 2)) == ["a0", "b0", "a1", "b1", "a2", "a3", "a4"]


def test_out_of_order_a_slow_worker_delays_no_other() -> None:
    found = list(load(Alternating(1), 2, in_order=False))
    assert found[:2] == ["b0", "b1"] and sorted(found) == ["a0", "a1", "a2", "a3", "a4", "b0", "b1"]


def test_a_loader_may_be_left_early() -> None:
    loader = load(Large(), 2)
    workers = workers_of(loader, {*psutil.Process().children()})
    del loader
    assert len(workers) == 2 and not any(worker.is_running() for worker in workers)
