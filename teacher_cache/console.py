"""Progress and log lines on standard error: a progress bar on a terminal, plain lines elsewhere."""

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
    """Progress display of one job."""

    def advance(self, count: int, note: str = "") -> None:
        """Add `count` completed units. note: text shown behind the bar, such as the loss."""


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
    """Print a line after PLAIN_FIRST_SECONDS, then every PLAIN_EVERY_SECONDS. Short jobs print none."""

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
    """Show the progress of a job of `total` units, `start` of them already completed; yields its bar."""
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
    """Suppress bars and lines in the block if enabled: only one of several processes prints."""
    previous, console.quiet = console.quiet, enabled or console.quiet
    try:
        yield
    finally:
        console.quiet = previous


def log_line(line: str) -> None:
    """Print one line on standard error. Standard output is for data only."""
    console.print(line, markup=False, soft_wrap=True)


def count_of(count: int, singular: str, plural: str = "") -> str:
    """A count with its noun: "1 unit", "1,200 units". plural: if it is not the singular with an s."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def format_bytes(count: float) -> str:
    """Number of bytes in the largest decimal unit that gives at least 1: "999 B", "1.0 kB", "2.4 GB"."""
    power = 0
    while count >= 999.5 and power < len(UNITS) - 1:  # 999.5 would be rounded to 1000
        count, power = count / 1000, power + 1
    return f"{count:,.0f} {UNITS[power]}" if power == 0 or count >= 100 else f"{count:.1f} {UNITS[power]}"


def join_first(names: Sequence[str], limit: int = 3) -> str:
    """The first `limit` names, and the number of the others: "a, b, c and 2 more"."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more:,} more" if more > 0 else "")
