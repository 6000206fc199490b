"""The load of other processes is measured; the load of this process is not counted as theirs."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from student.estimate import cpu_load
from student.estimate.cpu_load import BackgroundLoad

SPIN = [sys.executable, "-c", "while True: pass"]


def test_the_load_of_another_process_is_measured() -> None:
    with subprocess.Popen(SPIN) as process:
        with BackgroundLoad() as load:
            time.sleep(1.5)
        process.kill()
    assert 0.2 < load.cores <= (os.cpu_count() or 1) and load.share == load.cores / (os.cpu_count() or 1)


@pytest.mark.parametrize(("busy", "idle", "share"), [(3, 1, 0.75), (0, 4, 0.0), (0, 0, 0.0)])
def test_the_kernels_counters_become_a_share(
    busy: int, idle: int, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counters move by hours, so the test's own CPU time does not matter. User time includes guest time."""
    stat, hour = tmp_path / "stat", 3600 * os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    stat.write_text("cpu  5 5 5 5 5 5 5 5 5 5\ncpu0 9 9 9 9 9 9 9 9 9 9\n")
    with BackgroundLoad() as load:
        stat.write_text(f"cpu  {5 + busy * hour} 5 5 {5 + idle * hour} 5 5 5 5 {5 + busy * hour} 5\n")
    assert load.share == pytest.approx(share, abs=1e-3)


def test_this_process_and_its_children_are_not_background_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All cores are busy exactly as long as this process and its child compute."""
    stat, tick = tmp_path / "stat", os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    stat.write_text("cpu  0 0 0 0 0 0 0 0 0 0\n")
    with BackgroundLoad() as load:
        before = sum(os.times()[:4])
        subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True)
        sum(range(10**7))
        stat.write_text(f"cpu  {round((sum(os.times()[:4]) - before) * tick)} 0 0 0 0 0 0 0 0 0\n")
    assert load.share < 0.2


def test_a_kernel_that_counts_nothing_gives_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stat").write_text("cpu  0 0 0 0 0 0 0 0 0 0\n")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    with BackgroundLoad() as load:
        pass
    assert load.cores == 0


@pytest.mark.parametrize(("own", "share"), [(64, 0.5), (40, 0.2), (32, 0.0), (1, 0.0)])
def test_other_processes_use_the_cores_that_this_process_may_not_use(
    own: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial with a quota of 1 of 64 cores is not slower if others use 32 cores."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(cpu_load, "cores", lambda: own)
    load = BackgroundLoad()
    load.cores = 32.0
    assert load.share == pytest.approx(share)
