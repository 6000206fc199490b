"""A job says once, and only if it is clear, that its views are the slower half, and what would help."""

import pytest
from facts import assert_facts

from teacher_cache.distributed import bottleneck
from teacher_cache.distributed.bottleneck import MIN_SECONDS, MIN_WAITING, Bottleneck
from teacher_cache.loading.pace import Pace


def pace_of(views: int, seconds: float, workers: int) -> Pace:
    pace = Pace()
    pace.views = views
    for worker in range(workers):
        pace.add(worker, seconds)
    return pace


def test_the_line_names_pace_workers_and_waiting_once() -> None:
    found = Bottleneck(pace_of(120_000, 100.0, 8), "machine", "views.aug_repeats", streams=8)
    assert_facts(found.add(100.0, 43.0), "1,200 views/s", "8 workers", "43%", "pack --size", "views.aug_repeats")
    assert found.add(100.0, 90.0) == ""


def test_it_is_said_when_it_has_become_clear() -> None:
    found = Bottleneck(pace_of(10_000, 2 * MIN_SECONDS, 1), "job", "cache.seeds_per_unit")
    assert found.add(0.7 * MIN_SECONDS, 0.5 * MIN_SECONDS) == ""
    assert_facts(found.add(0.7 * MIN_SECONDS, 0.5 * MIN_SECONDS), "1 worker", "71%", "cache.seeds_per_unit")


@pytest.mark.parametrize(
    ("busy", "seconds", "waited"),
    [
        (100.0, 100.0, MIN_WAITING * 100 - 1),  # hardly any wait
        (10.0, 100.0, 80.0),  # a wait for something else: the workers' own pace is ten times as high
        (100.0, MIN_SECONDS / 2, MIN_SECONDS / 3),  # too early
    ],
)
def test_nothing_is_said_if_the_views_are_not_clearly_slower(busy: float, seconds: float, waited: float) -> None:
    assert Bottleneck(pace_of(120_000, busy, 8), "machine", "views.aug_repeats", 8).add(seconds, waited) == ""


@pytest.mark.parametrize(
    ("cores", "workers", "streams", "facts"),
    [
        (8, 8, 16, ["more cores"]),
        (16, 4, 8, ["machine.workers = 16"]),
        (16, 8, 8, ["train.streams", "8 workers", "16 cores"]),
        (16, 15, None, ["machine.workers = 16"]),
    ],
)
def test_the_advice_names_the_limit(
    cores: int, workers: int, streams: int | None, facts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bottleneck, "process_cores", lambda: cores)
    found = Bottleneck(pace_of(1_000, 100.0, workers), "machine", "views.aug_repeats", streams)
    assert_facts(found.add(100.0, 50.0), *facts)
