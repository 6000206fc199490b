"""Measure how much a small teacher's accuracy depends on its seed.

    python benchmarks/seeds.py cifar10.tar.gz [--seeds 3] [--out FOLDER]

Runs `limbeck study seeds` on student/recipes/rsb_small.toml in the short form of benchmarks/supervision.py (2,000
images of CIFAR-10, a resnet10t of 16 to 128 channels), but for 6 epochs. Prints the study's table: mean accuracy,
standard deviation, and the sampling error of 1,000 test images. Run it again with the same --out to continue an
interrupted study.
"""

import argparse
import time
from importlib.resources import files
from pathlib import Path

from rich.console import Console
from supervision import FORMS, prepare

from student.recipe import TrainRecipe
from student.study.seeds import study_seeds
from teacher_cache.config import load_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="CIFAR-10 as a tar archive")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (0 to N-1)")
    parser.add_argument("--out", type=Path, default=Path("seeds"), help="folder for the shards and the runs")
    options = parser.parse_args()
    start = time.monotonic()
    data = prepare(options.archive, options.out, "short")
    path = Path(str(files("student.recipes"))) / "rsb_small.toml"
    recipe = load_recipe(path, TrainRecipe, (*data, *FORMS["short"]["teacher"], "schedule.epochs=6"))
    Console().print(study_seeds(recipe, path.stem, options.seeds, options.out / "study"))
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
