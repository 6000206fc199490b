"""Log lines, progress and journals."""

import re
from pathlib import Path

import pytest
from facts import assert_facts

from teacher_cache.console import format_bytes, log_line, progress
from teacher_cache.storage.jsonl import Journal
from teacher_cache.timing import Stopwatch


def test_line_truncated_by_a_kill_is_dropped(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.write(epoch=1)
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"epoch": 2, "lo')
    assert journal.read() == [{"epoch": 1}]
    journal.write(epoch=2)
    assert journal.read() == [{"epoch": 1}, {"epoch": 2}]


def test_without_a_terminal_progress_is_lines_with_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 4.0, 5.0, 15.0])
    monkeypatch.setattr("teacher_cache.console.time.monotonic", lambda: next(clock))
    with progress("pack", 1000, "images", start=100) as bar:
        for _ in range(4):
            bar.advance(100)
    first, second = capsys.readouterr().err.splitlines()
    assert_facts(first, "pack", "300/1,000 images", "50/s", "0:00:14")
    assert_facts(second, "pack", "500/1,000 images", "27/s", "0:00:19")


def test_progress_of_a_long_job_shows_days(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 10.0])
    monkeypatch.setattr("teacher_cache.console.time.monotonic", lambda: next(clock))
    with progress("cache", 100_000, "views") as bar:
        bar.advance(1)
    assert_facts(capsys.readouterr().err, "cache", "1/100,000 views", "0.1/s", "11 days, 13:46:30")


def test_log_line_is_printed_unchanged_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    log_line("a [bold]name[/bold] of :fire: " + "x" * 300)
    assert capsys.readouterr().err == "a [bold]name[/bold] of :fire: " + "x" * 300 + "\n"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_900, "99.9 kB"), (499_999, "500 kB")),
        *((999_499, "999 kB"), (999_999, "1.0 MB"), (2.4e9, "2.4 GB"), (7e18, "7,000 PB")),
    ],
)
def test_byte_counts_use_the_largest_fitting_unit(count: float, text: str) -> None:
    assert format_bytes(count) == text


def test_stopwatch_measures_seconds() -> None:
    with Stopwatch() as watch:
        pass
    assert 0 <= watch.seconds < 1 and re.fullmatch(r"\d+\.\d+(e-\d+)?", str(watch.seconds))
