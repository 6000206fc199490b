"""Pools of real processes: failures while opening, batching, reloading and closing."""

import asyncio
import json
import re
import shutil
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
import torch
from facts import assert_facts

from server.errors import BusyError
from server.ipc.messages import ModelInfo, Prediction, Task
from server.ipc.spawn import HostSpec
from server.metrics import ServerMetrics
from server.serving.pool import Pool
from server.serving.registry import Registry, Source
from server.serving.supervisor import Supervisor
from server.serving.worker_client import WorkerClient
from server.serving.worker_group import shared_device_warning
from server.settings import Settings, default_workers
from server.workers.model_host import device_type
from teacher_cache.distributed.machine import cores, memory_bytes
from teacher_cache.errors import LimbeckError, RunError

SETTINGS = Settings(device="cpu", workers=2)
WAIT_SECONDS = 60
LABELS = {"model": "m", "version": "1"}
T = TypeVar("T")


@pytest.fixture(scope="module")
def supervisor() -> Iterator[Supervisor]:
    with Supervisor() as supervisor:
        yield supervisor


@pytest.fixture(scope="module")
def spec(bundle_folder: Path) -> HostSpec:
    return HostSpec(str(bundle_folder), "m", "1", "cpu", "torch", 0, 1_000_000)


@contextmanager
def nothing_left() -> Iterator[None]:
    """Assert that all child processes started in the block exit soon after it."""
    before = set(psutil.Process().children(recursive=True))
    yield
    until = time.monotonic() + WAIT_SECONDS
    while left := set(psutil.Process().children(recursive=True)) - before:
        assert time.monotonic() < until, left
        time.sleep(0.01)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine and return its result after its sockets are closed."""

    async def whole() -> T:
        try:
            return await work
        finally:
            await asyncio.sleep(0.1)  # transports close in a later iteration of the loop

    return asyncio.run(whole())


def test_worker_that_exits_while_the_pool_opens_is_replaced(
    supervisor: Supervisor, spec: HostSpec, pictures: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = WorkerClient.connect
    killed: list[int] = []

    async def connect_and_kill_the_first(worker: WorkerClient, connection: socket.socket) -> ModelInfo:
        info = await connect(worker, connection)
        if not killed:  # the pool still waits for the second worker
            killed.append(worker.pid)
            psutil.Process(worker.pid).kill()
        return info

    monkeypatch.setattr(WorkerClient, "connect", connect_and_kill_the_first)

    async def work() -> Prediction:
        metrics = ServerMetrics()
        pool = await Pool.open(supervisor, spec, SETTINGS, metrics)
        async with asyncio.timeout(WAIT_SECONDS):
            while metrics.registry.get_sample_value("limbeck_worker_restarts_total", LABELS) != 1:
                await asyncio.sleep(0.01)
        assert pool.ready_workers == 2
        prediction = await pool.predict(pictures["jpeg"])
        await pool.close()
        return prediction

    with nothing_left():
        assert run(work()).joint.sum() == pytest.approx(1)
    assert killed


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"runtime": "tensorrt"}, "tensorrt"),
        ({"card": "0" * 64}, "{folder}"),
        ({"folder": "/nowhere"}, "/nowhere"),
    ],
)
def test_pool_that_fails_to_open_leaves_no_process(
    supervisor: Supervisor, spec: HostSpec, change: dict[str, str], fact: str
) -> None:
    with nothing_left(), pytest.raises(LimbeckError) as raised:
        run(Pool.open(supervisor, replace(spec, **change), SETTINGS, ServerMetrics()))
    assert_facts(raised.value, fact.format(folder=spec.folder))


def test_closed_pool_raises_busy_error(supervisor: Supervisor, spec: HostSpec, pictures: dict[str, bytes]) -> None:
    async def work() -> None:
        pool = await Pool.open(supervisor, spec, SETTINGS, ServerMetrics())
        await pool.close()
        await pool.predict(pictures["jpeg"])

    with nothing_left(), pytest.raises(BusyError):
        run(work())


def test_pool_with_a_replaced_bundle_is_not_ready_until_the_bundle_is_restored(
    supervisor: Supervisor,
    new_bundle: Callable[[Path, int], Path],
    spec: HostSpec,
    pictures: dict[str, bytes],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = new_bundle(tmp_path / "bundle", 1)

    async def work() -> None:
        before = set(psutil.Process().children(recursive=True))
        pool = await Pool.open(supervisor, replace(spec, folder=str(folder)), SETTINGS, ServerMetrics())
        first = await pool.predict(pictures["jpeg"])
        folder.rename(tmp_path / "away")
        new_bundle(folder, 2)
        for process in set(psutil.Process().children(recursive=True)) - before:
            process.kill()
        async with asyncio.timeout(WAIT_SECONDS):
            while caplog.text.count(str(folder)) < 2:  # each failed attempt to start a worker is logged
                await asyncio.sleep(0.01)
        assert (pool.ready_workers, len(pool.problems())) == (0, 1)
        folder.rename(tmp_path / "other")
        (tmp_path / "away").rename(folder)
        async with asyncio.timeout(WAIT_SECONDS):
            while not pool.ready_workers:
                await asyncio.sleep(0.01)
        again = await pool.predict(pictures["jpeg"])
        await pool.close()
        assert (first.rows == again.rows).all()

    with nothing_left():
        run(work())


def test_batches_form_only_under_load_and_a_full_queue_is_busy(
    supervisor: Supervisor, spec: HostSpec, pictures: dict[str, bytes]
) -> None:
    async def work() -> None:
        metrics = ServerMetrics()
        settings = replace(SETTINGS, workers=1, max_waiting=8)
        pool = await Pool.open(supervisor, replace(spec, batch=4), settings, metrics)

        def sample(name: str, **labels: str) -> float | None:
            return metrics.registry.get_sample_value(f"limbeck_batch_images_{name}", LABELS | labels)

        for _ in range(3):
            await pool.predict(pictures["jpeg"])
        assert (sample("count"), sample("sum")) == (3, 3)
        asked = [asyncio.create_task(pool.predict(pictures["jpeg"])) for _ in range(9)]
        await asyncio.sleep(0)
        assert (pool.ready_workers, len(pool.problems())) == (1, 1)
        with pytest.raises(BusyError):
            pool.admit()
        await asyncio.gather(*asked)
        assert pool.problems() == []
        assert (sample("count"), sample("sum"), sample("bucket", le="4.0")) == (
            6,
            12,
            6,
        )  # three batches of 1, then 1, 4 and 4
        await pool.close()

    with nothing_left():
        run(work())


def test_closing_the_registry_ends_the_work_of_an_unloaded_model(
    supervisor: Supervisor, slow_folder: Path, pictures: dict[str, bytes]
) -> None:
    async def work() -> list[object]:
        models = Registry(supervisor, SETTINGS, ServerMetrics())
        await models.open([Source(str(slow_folder), "m")])
        asked = [asyncio.create_task(models.get("m").run(Task(pictures["jpeg"]))) for _ in range(50)]
        await asyncio.sleep(0)
        await models.unload("m")
        await models.close()
        async with asyncio.timeout(SETTINGS.deadline / 2):
            return list(await asyncio.gather(*asked, return_exceptions=True))

    with nothing_left():
        found = run(work())
    assert {type(one) for one in found} == {BusyError}


def test_reload_of_an_unchanged_bundle_keeps_the_pool_and_logs_it(
    supervisor: Supervisor, spec: HostSpec, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        models = Registry(supervisor, SETTINGS, ServerMetrics())
        await models.open([Source(spec.folder, "animals", "7.5")])
        before = models.get("animals")
        await models.reload()
        assert models.get("animals") is before
        await models.close()

    with nothing_left():
        run(work())
    (line,) = caplog.messages
    assert_facts(line, "animals", "7.5")


def test_two_bundles_with_one_name_and_version_leave_no_process(supervisor: Supervisor, spec: HostSpec) -> None:
    async def work() -> None:
        models = Registry(supervisor, SETTINGS, ServerMetrics())
        await models.open([Source(spec.folder, "animals", "7.5"), Source(spec.folder, "animals", "7.5")])

    with nothing_left(), pytest.raises(RunError) as raised:
        run(work())
    assert_facts(raised.value, "animals", "7.5", "NAME@VERSION=FOLDER")


def test_close_kills_stopped_and_orphaned_processes(spec: HostSpec) -> None:
    with nothing_left():
        supervisor, myself = Supervisor(), psutil.Process()
        others = set(myself.children(recursive=True))
        first = asyncio.run(supervisor.open(spec))
        (orphan,) = set(myself.children(recursive=True)) - others
        orphan.suspend()
        forkserver = psutil.Process(orphan.ppid())
        forkserver.kill()
        while forkserver.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        others = set(myself.children(recursive=True))
        second = asyncio.run(supervisor.open(spec))
        (stopped,) = [child for child in set(myself.children(recursive=True)) - others if not child.children()]
        stopped.suspend()
        first.close()
        second.close()
        supervisor.close(seconds=0.5)
        gone, left = psutil.wait_procs([orphan, stopped], timeout=5)
    assert not [one for one in left if one.status() != psutil.STATUS_ZOMBIE]
    assert len(gone) + len(left) == 2


def test_cancelled_open_leaves_no_process_and_no_output(spec: HostSpec, capfd: pytest.CaptureFixture[str]) -> None:
    async def leave() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await supervisor.open(spec)

    with nothing_left(), Supervisor() as supervisor:
        asyncio.run(leave())
    assert capfd.readouterr().err == ""


def test_reload_to_a_duplicate_name_and_version_changes_nothing(
    supervisor: Supervisor, new_bundle: Callable[[Path, int], Path], pictures: dict[str, bytes], tmp_path: Path
) -> None:
    one, two = new_bundle(tmp_path / "one", 1), new_bundle(tmp_path / "two", 2)

    async def work() -> None:
        metrics = ServerMetrics()
        models = Registry(supervisor, SETTINGS, metrics)
        await models.open([Source(str(one), "m"), Source(str(two), "m")])
        before, rows = models.pools(), (await models.get("m").predict(pictures["jpeg"])).rows
        before_text = metrics.text()
        for folder, seed in ((one, 3), (two, 3)):
            shutil.rmtree(folder)
            new_bundle(folder, seed)
        with pytest.raises(RunError) as raised:
            await models.load("m")
        version = json.loads((one / "card.json").read_text())["sha256"][:8]
        assert_facts(raised.value, version, "NAME@VERSION=FOLDER")
        assert models.pools() == before and not any(pool.problems() for pool in before)
        assert ((await models.get("m").predict(pictures["jpeg"])).rows == rows).all()
        assert {line.rpartition(b" ")[0] for line in metrics.text().splitlines()} == {
            line.rpartition(b" ")[0] for line in before_text.splitlines()
        }
        shutil.rmtree(two)
        new_bundle(two, 4)
        old = {pool.info.version for pool in before}
        await models.load("m")
        new = {pool.info.version for pool in models.pools()}
        assert len(new) == 2 and not new & old
        while models._closing:
            await asyncio.sleep(0.01)
        assert set(re.findall(r'version="(\w+)"', metrics.text().decode())) == new
        await models.close()

    with nothing_left():
        run(work())


def test_without_a_number_there_is_a_worker_for_each_core(supervisor: Supervisor, spec: HostSpec) -> None:
    async def count(device: str) -> int:
        pool = await Pool.open(supervisor, replace(spec, device=device), Settings(), ServerMetrics())
        found = pool.workers
        assert pool.ready_workers == found
        await pool.close()
        return found

    assert run(count("cpu")) == default_workers("cpu", cores(), memory_bytes())


@pytest.mark.parametrize(
    ("device", "runtime", "expected"),
    [
        ("cpu", "torch", "cpu"),
        ("cuda", "torch", "cuda"),
        ("cuda:1", "onnx", "cuda"),
        ("cuda", "openvino-bfloat16", "cpu"),
        ("auto", "torch", "cuda" if torch.cuda.is_available() else "cpu"),
    ],
)
def test_a_host_knows_the_type_of_its_device_without_opening_it(
    spec: HostSpec, device: str, runtime: str, expected: str
) -> None:
    assert device_type(replace(spec, device=device, runtime=runtime)) == expected
    assert not torch.cuda.is_initialized()


@pytest.mark.parametrize(
    ("device", "workers", "is_warned"), [("cpu", 9, False), ("cuda", 1, False), ("cuda", 3, True)]
)
def test_workers_that_share_a_gpu_are_one_line(
    supervisor: Supervisor, spec: HostSpec, device: str, workers: int, is_warned: bool
) -> None:
    async def info() -> ModelInfo:
        pool = await Pool.open(supervisor, spec, replace(SETTINGS, workers=1), ServerMetrics())
        await pool.close()
        return replace(pool.info, device=device)

    line = shared_device_warning(run(info()), device, workers)
    assert bool(line) == is_warned and "\n" not in line
    if is_warned:
        assert_facts(line, "3 workers", "cuda", "--workers 1", "--batch")
