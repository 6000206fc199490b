"""Speed of two checkouts in alternation: reads, step, views and framework.

    git worktree add ../before REVISION
    python benchmarks/side_by_side.py ../before . --photos FOLDER_OR_TAR [--rounds 3] [--only reads step]

Both run with this environment's libraries. Each figure is the median of the rounds. The ratio is the second
checkout's cost divided by the first one's, so that 1.03 means 3 % slower.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Benchmark:
    """A script with its options. pattern: a name and a figure in each match. is_rate: whether higher is better."""

    options: tuple[str, ...]
    pattern: str
    is_rate: bool = False


BENCHMARKS = {
    "reads": Benchmark(("--rounds", "3"), r"│ (hard|topk)\s+│[^│]+│ ([\d.]+)", is_rate=True),
    "step": Benchmark(
        ("--rounds", "5", "--batch", "8", "--teachers", "resnet18"), r"│ (cached, [\w-]+)\s+│[^│]+│ ([\d.]+)"
    ),
    "views": Benchmark(("--count", "32", "--rounds", "3"), r"(limbeck, \d) \w+ decode\s+(\d+) us"),
    "framework": Benchmark(("--rounds", "3", "--seconds", "2"), r"(up to \d+) .*?: ([\d.]+) \("),
}


def run(checkout: Path, name: str, photos: Path) -> dict[str, float]:
    """The figures that the script of a checkout prints; raises CalledProcessError if it fails."""
    benchmark = BENCHMARKS[name]
    options = [*benchmark.options, *(("--photos", str(photos)) if name == "views" else ())]
    result = subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", *options],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return {key: float(value) for key, value in re.findall(benchmark.pattern, result.stdout + result.stderr)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs=2, type=lambda path: Path(path).resolve())
    parser.add_argument("--photos", type=lambda path: Path(path).resolve(), required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    options = parser.parse_args()
    worst = 0.0
    for name in options.only:
        found: dict[Path, list[dict[str, float]]] = {checkout: [] for checkout in options.checkouts}
        for number in range(options.rounds):
            for checkout in options.checkouts[:: 1 if number % 2 == 0 else -1]:
                found[checkout].append(run(checkout, name, options.photos))
        for key in found[options.checkouts[0]][0]:
            first, second = (
                statistics.median(figures[key] for figures in found[checkout]) for checkout in options.checkouts
            )
            ratio = first / second if BENCHMARKS[name].is_rate else second / first
            worst = max(worst, ratio)
            print(f"{name}: {key}: {first:g} and {second:g}, ratio {ratio:.3f}", flush=True)
    print(f"side by side: worst ratio {worst:.3f}")


if __name__ == "__main__":
    main()
