"""The shares of an epoch's time, and the line of a training that waits for its views."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from facts import assert_facts

from student.training.loop import train
from student.training.meter import Meter
from teacher_cache.data import view_reader
from teacher_cache.distributed import bottleneck

SLOW = 0.01
"""Seconds that a view takes here, at least."""


def slow_batches() -> Iterator[Any]:
    while True:
        time.sleep(SLOW)
        yield None


def test_waiting_and_use_of_batches_are_timed() -> None:
    meter = Meter()
    for _ in meter.over(slow_batches(), range(5)):
        time.sleep(2 * SLOW)
    assert 5 * SLOW <= meter.epoch.waited < 15 * SLOW <= meter.epoch.seconds


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("is_slow", [True, False])
def test_a_training_says_once_that_its_views_are_the_slower_half(
    workers: int,
    is_slow: bool,
    student_recipe: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def slow_render(*arguments: Any) -> Any:
        time.sleep(SLOW)
        return render(*arguments)

    render = view_reader.render
    if is_slow:
        monkeypatch.setattr(view_reader, "render", slow_render)
        monkeypatch.setattr(bottleneck, "MIN_SECONDS", 0.0)
    train(student_recipe(f"machine.workers={workers}", "schedule.epochs=3"), tmp_path / "run")
    lines = [line for line in capsys.readouterr().err.splitlines() if "views are the bottleneck" in line]
    assert len(lines) == is_slow  # a short run says nothing
    if is_slow:
        pace = float(lines[0].partition(" views/s")[0].rpartition(" ")[2])
        assert 0.2 * max(workers, 1) / SLOW < pace <= max(workers, 1) / SLOW
        assert_facts(lines[0], f"{max(workers, 1)} worker", "% of the time", "aug_repeats")
