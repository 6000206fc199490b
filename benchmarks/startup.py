"""Time of the commands that need no network: `limbeck --help`, `limbeck recipes` and `limbeck cache status`.

    python benchmarks/startup.py [--runs 15]

Each run is a new process; the bytecode of all modules is already compiled. The cache is a small one in tests/data.
Prints the median and quartiles of the wall-clock time in seconds.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

CACHE = Path(__file__).parents[1] / "tests/data/0.1.0/caches/hard"
COMMANDS = {"--help": ["--help"], "recipes": ["recipes"], "cache status": ["cache", "status", str(CACHE)]}


def time_command(arguments: list[str]) -> float:
    """Run `limbeck` with these arguments; return wall-clock seconds. Raises CalledProcessError if it fails."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "server.cli", *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="timed runs of each command")
    runs = parser.parse_args().runs
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs + 1):
        for name, arguments in COMMANDS.items():
            times[name].append(time_command(arguments))
    medians = {}
    for name, seconds in times.items():
        low, medians[name], high = statistics.quantiles(seconds[1:], n=4)  # the first run compiles bytecode
        print(f"{name:12}  median {medians[name]:.2f} s, quartiles {low:.2f} to {high:.2f} s")
    print("startup: " + ", ".join(f"{name} {median:.2f} s" for name, median in medians.items()))


if __name__ == "__main__":
    main()
