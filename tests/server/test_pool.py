"""A pool over real processes: deaths while it opens, and what becomes of those that ask too late."""

import asyncio
import gc
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from server.crew import Crew
from server.judged import Begun, Judged, Task
from server.metrics import Metrics
from server.nursery import Order
from server.pool import Pool
from server.refusals import BusyError
from server.registry import Registry, Source
from server.settings import Settings
from teacher_cache.errors import LimbeckError, RunError

SETTINGS = Settings(device="cpu", workers=2)
WAIT_SECONDS = 60
LABELS = {"model": "m", "version": "1"}
T = TypeVar("T")


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    with Crew() as crew:
        yield crew


@pytest.fixture(scope="module")
def order(bundle_folder: Path) -> Order:
    return Order(str(bundle_folder), "m", "1", "cpu", "torch", 0, 1_000_000)


@contextmanager
def nothing_left() -> Iterator[None]:
    """Whatever the block starts below this process, beside the crew's nursery, has ended soon after."""
    before = set(psutil.Process().children(recursive=True))
    yield
    until = time.monotonic() + WAIT_SECONDS
    while left := set(psutil.Process().children(recursive=True)) - before:
        assert time.monotonic() < until, left
        time.sleep(0.01)


def run(work: Coroutine[Any, Any, T]) -> T:
    """What the work returns, once its sockets are closed too."""

    async def whole() -> T:
        try:
            return await work
        finally:
            await asyncio.sleep(0.1)  # a transport closes when the loop comes to it

    return asyncio.run(whole())


def test_a_worker_that_dies_while_the_pool_opens_is_replaced(
    crew: Crew, order: Order, pictures: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: Callable[..., None] = Pool._heard
    killed: list[int] = []

    def kill_the_first(pool: Pool, lane: object, message: object) -> None:
        heard(pool, lane, message)
        if isinstance(message, Begun) and not killed:  # the pool still waits for the other
            killed.append(message.pid)
            psutil.Process(message.pid).kill()

    monkeypatch.setattr(Pool, "_heard", kill_the_first)

    async def work() -> Judged:
        metrics = Metrics()
        pool = await Pool.open(crew, order, SETTINGS, metrics)
        async with asyncio.timeout(WAIT_SECONDS):
            while metrics.registry.get_sample_value("limbeck_worker_restarts_total", LABELS) != 1:
                await asyncio.sleep(0.01)
        assert pool.alive == 2
        judged = await pool.judge(pictures["jpeg"])
        await pool.close()
        return judged

    with nothing_left():
        assert run(work()).joint.sum() == pytest.approx(1)
    assert killed


@pytest.mark.parametrize(
    ("change", "words"),
    [({"runtime": "none"}, "none"), ({"sha256": "0" * 64}, "other weights"), ({"folder": "/nowhere"}, "nowhere")],
)
def test_a_pool_that_cannot_open_leaves_no_process(
    crew: Crew, order: Order, change: dict[str, str], words: str
) -> None:
    with nothing_left(), pytest.raises(LimbeckError, match=words):
        run(Pool.open(crew, replace(order, **change), SETTINGS, Metrics()))


def test_a_pool_that_is_closed_says_so_at_once(crew: Crew, order: Order, pictures: dict[str, bytes]) -> None:
    async def work() -> None:
        pool = await Pool.open(crew, order, SETTINGS, Metrics())
        await pool.close()
        await pool.judge(pictures["jpeg"])

    with nothing_left(), pytest.raises(BusyError, match="no longer served from here; ask again"):
        run(work())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a socket may be left
def test_a_holder_that_is_gone_with_its_bundle_is_told_of_until_the_bundle_is_back(
    crew: Crew,
    new_bundle: Callable[[Path, int], Path],
    order: Order,
    pictures: dict[str, bytes],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = new_bundle(tmp_path / "bundle", 1)

    async def work() -> None:
        before = set(psutil.Process().children(recursive=True))
        pool = await Pool.open(crew, replace(order, folder=str(folder)), SETTINGS, Metrics())
        first = await pool.judge(pictures["jpeg"])
        folder.rename(tmp_path / "away")
        new_bundle(folder, 2)
        for process in set(psutil.Process().children(recursive=True)) - before:
            process.kill()
        async with asyncio.timeout(WAIT_SECONDS):
            while "m is not served meanwhile: " not in caplog.text:
                await asyncio.sleep(0.01)
        assert pool.problems() == ["m: no worker lives"] and "has other weights" in caplog.text
        folder.rename(tmp_path / "other")
        (tmp_path / "away").rename(folder)
        async with asyncio.timeout(WAIT_SECONDS):
            while not pool.alive:
                await asyncio.sleep(0.01)
        again = await pool.judge(pictures["jpeg"])
        await pool.close()
        assert (first.rows == again.rows).all()

    with nothing_left():
        run(work())
    gc.collect()


def test_closing_the_registry_ends_what_was_unloaded_and_is_not_yet_done(
    crew: Crew, slow_folder: Path, pictures: dict[str, bytes]
) -> None:
    async def work() -> list[object]:
        models = Registry(crew, SETTINGS, Metrics())
        await models.open([Source(str(slow_folder), "m")])
        asked = [asyncio.create_task(models.get("m").ask(Task(pictures["jpeg"]))) for _ in range(50)]
        await asyncio.sleep(0)
        await models.unload("m")
        await models.close()
        async with asyncio.timeout(SETTINGS.deadline / 2):
            return list(await asyncio.gather(*asked, return_exceptions=True))

    with nothing_left():
        found = run(work())
    assert {type(one) for one in found} == {BusyError}


def test_two_bundles_of_one_name_and_version_leave_no_process(crew: Crew, order: Order) -> None:
    async def work() -> None:
        models = Registry(crew, SETTINGS, Metrics())
        await models.open([Source(order.folder, "m", "1"), Source(order.folder, "m", "1")])

    with nothing_left(), pytest.raises(RunError, match="two bundles are 'm' version '1'"):
        run(work())
