"""The benchmark of GPUs runs from end to end on a CPU, so that it runs at once where there is a GPU."""

import re
import subprocess
import sys
from pathlib import Path

GPU = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def test_the_tiny_form_measures_everything_and_its_last_lines_are_the_figures() -> None:
    command = [sys.executable, str(GPU), "--tiny", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    machine, *figures, seconds = done.stdout.splitlines()
    assert machine.startswith("machine: CPU") and seconds.startswith("time of the benchmark: ")
    shares = [float(share) for line in figures for share in re.findall(r"([0-9.]+) of the (?:limit|slower)", line)]
    assert len(shares) == 5 and min(shares) > 0  # labeling and cached training twice, the live teacher once
    rates = [
        int(rate.replace(",", ""))
        for line in figures
        for rate in re.findall(r"([0-9,]+) (?:images|views)/s", line)
    ]
    assert len(rates) == 8 and min(rates) > 0
    (equal, labels), *others = re.findall(r"cached equals live: ([0-9,]+) of ([0-9,]+)", done.stdout)
    assert equal == labels and not others
