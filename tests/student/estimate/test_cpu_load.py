"""What other processes do while something is timed is seen, and what this one does is not taken for theirs."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from student.estimate.cpu_load import BackgroundLoad

SPIN = [sys.executable, "-c", "while True: pass"]


def test_a_process_beside_this_one_is_seen() -> None:
    with subprocess.Popen(SPIN) as other:
        with BackgroundLoad() as seen:
            time.sleep(1.5)
        other.kill()
    assert 0.2 < seen.cores <= (os.cpu_count() or 1) and seen.share == seen.cores / (os.cpu_count() or 1)


@pytest.mark.parametrize(("busy", "idle", "share"), [(3, 1, 0.75), (0, 4, 0.0), (0, 0, 0.0)])
def test_what_the_kernel_counts_becomes_a_share(
    busy: int, idle: int, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In hours, beside which this test's own time is nothing. Guests' time is in the users' already."""
    stat, hour = tmp_path / "stat", 3600 * os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    stat.write_text("cpu  5 5 5 5 5 5 5 5 5 5\ncpu0 9 9 9 9 9 9 9 9 9 9\n")
    with BackgroundLoad() as seen:
        stat.write_text(f"cpu  {5 + busy * hour} 5 5 {5 + idle * hour} 5 5 5 5 {5 + busy * hour} 5\n")
    assert seen.share == pytest.approx(share, abs=1e-3)


def test_this_process_and_its_children_are_no_bystanders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All cores were busy for just as long as this process and a child of it computed."""
    stat, tick = tmp_path / "stat", os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    stat.write_text("cpu  0 0 0 0 0 0 0 0 0 0\n")
    with BackgroundLoad() as seen:
        before = sum(os.times()[:4])
        subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True)
        sum(range(10**7))
        stat.write_text(f"cpu  {round((sum(os.times()[:4]) - before) * tick)} 0 0 0 0 0 0 0 0 0\n")
    assert seen.share < 0.2


def test_a_kernel_that_counts_nothing_gives_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stat").write_text("cpu  0 0 0 0 0 0 0 0 0 0\n")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    with BackgroundLoad() as seen:
        pass
    assert seen.cores == 0
