"""CPU load of other processes is measured; load of this process is not counted."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from teacher_cache import bystanders
from teacher_cache.bystanders import Bystanders

SPIN = [sys.executable, "-c", "while True: pass"]


def test_load_of_another_process_is_measured() -> None:
    with subprocess.Popen(SPIN) as other:
        with Bystanders() as seen:
            time.sleep(1.5)
        other.kill()
    assert 0.2 < seen.cores <= (os.cpu_count() or 1) and seen.share == seen.cores / (os.cpu_count() or 1)


@pytest.mark.parametrize(("busy", "idle", "share"), [(3, 1, 0.75), (0, 4, 0.0), (0, 0, 0.0)])
def test_kernel_counters_become_a_share(
    busy: int, idle: int, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counters in hours, so the CPU time of this test is negligible. User time includes guest time."""
    stat, hour = tmp_path / "stat", 3600 * os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr(bystanders, "STAT", stat)
    stat.write_text("cpu  5 5 5 5 5 5 5 5 5 5\ncpu0 9 9 9 9 9 9 9 9 9 9\n")
    with Bystanders() as seen:
        stat.write_text(f"cpu  {5 + busy * hour} 5 5 {5 + idle * hour} 5 5 5 5 {5 + busy * hour} 5\n")
    assert seen.share == pytest.approx(share, abs=1e-3)


def test_own_processes_are_not_counted_as_background_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counters show exactly the CPU time of this process and its child."""
    stat, tick = tmp_path / "stat", os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr(bystanders, "STAT", stat)
    stat.write_text("cpu  0 0 0 0 0 0 0 0 0 0\n")
    with Bystanders() as seen:
        before = sum(os.times()[:4])
        subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True)
        sum(range(10**7))
        stat.write_text(f"cpu  {round((sum(os.times()[:4]) - before) * tick)} 0 0 0 0 0 0 0 0 0\n")
    assert seen.share < 0.2


def test_without_kernel_counters_the_load_is_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bystanders, "STAT", tmp_path / "none")
    with Bystanders() as seen:
        pass
    assert seen.cores == 0
