"""What a person sees of a long job: a progress bar on a terminal, plain lines elsewhere, JSON lines on disk."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.progress import TimeRemainingColumn as Remaining
from rich.text import Text

UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
PLAIN_FIRST_SECONDS = 2.0
PLAIN_EVERY_SECONDS = 10.0

console = Console(stderr=True, highlight=False, emoji=False)


class Bar(Protocol):
    """Something that is told how far a job has come."""

    def advance(self, count: int, note: str = "") -> None: ...


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        speed = task.speed or 0.0
        return Text(f"{speed:,.0f} {unit}/s" if speed >= 10 else f"{speed:.2g} {unit}/s")


class _RichBar:
    def __init__(self, bar: Progress, task: Any) -> None:
        self._bar, self._task = bar, task

    def advance(self, count: int, note: str = "") -> None:
        self._bar.update(self._task, advance=count, note=note)


class _NoBar:
    def advance(self, count: int, note: str = "") -> None: ...


class _PlainBar:
    """A line after two seconds and every ten from then on; short jobs print nothing but their end."""

    def __init__(self, title: str, total: int, unit: str, start: int) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done = self._start = start
        self._started = time.monotonic()
        self._next_line = self._started + PLAIN_FIRST_SECONDS

    def advance(self, count: int, note: str = "") -> None:
        self._done += count
        now = time.monotonic()
        if now < self._next_line:
            return
        self._next_line = now + PLAIN_EVERY_SECONDS
        rate = (self._done - self._start) / (now - self._started)
        remaining = str(timedelta(seconds=round((self._total - self._done) / rate))) if rate else "unknown time"
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        text = f"{self._title}: {self._done:,}/{self._total:,} {self._unit}, {speed}/s, {remaining} left"
        log_line(f"{text}  {note}".rstrip())


@contextmanager
def progress(title: str, total: int, unit: str, start: int = 0) -> Iterator[Bar]:
    """Show a job of `total` units, of which `start` were done before; yields what to advance."""
    if console.quiet:
        yield _NoBar()
        return
    if not console.is_terminal:
        yield _PlainBar(title, total, unit, start)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        Remaining(compact=True),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console) as bar:
        yield _RichBar(bar, bar.add_task(title, total=total, completed=start, unit=unit, note=""))


@contextmanager
def quiet(enabled: bool) -> Iterator[None]:
    """Where it is wanted, no bar and no line: of several processes, one speaks."""
    previous, console.quiet = console.quiet, enabled or console.quiet
    try:
        yield
    finally:
        console.quiet = previous


def log_line(line: str) -> None:
    """One line for a person, on standard error, so that standard output stays data."""
    console.print(line, markup=False, soft_wrap=True)


def count_of(count: int, singular: str, plural: str = "") -> str:
    """A count and its noun: "1 unit", "1,200 units"."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def format_bytes(count: float) -> str:
    """Bytes in the largest unit of which there is one."""
    power = 0
    while count >= 999.5 and power < len(UNITS) - 1:  # which is shown as 1000
        count, power = count / 1000, power + 1
    return f"{count:,.0f} {UNITS[power]}" if power == 0 or count >= 100 else f"{count:.1f} {UNITS[power]}"


def join_first(names: Sequence[str], limit: int = 3) -> str:
    """The first of some names, and how many more there are."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more:,} more" if more > 0 else "")
