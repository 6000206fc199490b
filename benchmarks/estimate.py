"""Compare the time and bytes predicted by `limbeck estimate` with a real build.

    python benchmarks/estimate.py [--tries 4] [--trial-seconds 1.5 5] [--seeds 10]

Each try builds the cache of the demo's recipe from the demo's images (Debian's package dataset-fashion-mnist), and
runs one trial before the build and one after it. Prints the build time, both predictions, the relative error of
their mean, and the bytes built and predicted in kB. The teacher has random weights, which take the same time as
trained weights.
"""

import argparse
import shutil
import tempfile
import time
from importlib.resources import files
from pathlib import Path

from server.demo import CLASSES, DEBIAN_FOLDER, TRAIN_IMAGES
from student.estimate.cost import Training, estimate
from student.estimate.machine import Hardware
from student.estimate.teacher_trial import calibrate
from student.estimate.workload import encoding_name, workload_of
from student.recipe import TrainRecipe
from teacher_cache.config import load_recipe
from teacher_cache.data.index import ShardIndex
from teacher_cache.labeling.job import build
from teacher_cache.models.card import CARD_FORMAT, Card
from teacher_cache.models.network import create_network
from teacher_cache.models.run_folder import FINAL
from teacher_cache.models.weights import save_network, weights_sha256
from teacher_cache.packing.pack import pack
from teacher_cache.recipe import CacheRecipe


def write_teacher(folder: Path) -> None:
    """Write a run folder with the demo's teacher network and random weights."""
    recipe = load_recipe(Path(str(files("student.recipes"))) / "demo_teacher.toml", TrainRecipe)
    state = create_network(recipe.model, len(CLASSES)).state_dict()
    card = Card(
        format=CARD_FORMAT,
        network=recipe.model,
        eval=recipe.eval,
        classes=CLASSES,
        heads=("class",),
        fusion="class",
        sha256=weights_sha256(state),
        accuracy={},
        recipe={},
    )
    save_network(folder / FINAL, card, state)


def predict(recipe: CacheRecipe, index: ShardIndex, trial_seconds: float) -> tuple[float, float]:
    """Run a trial of `trial_seconds`; return the seconds and bytes that it predicts for the whole build."""
    with tempfile.TemporaryDirectory() as folder:
        trial = calibrate(recipe, index, trial_seconds, Path(folder))
    machine = {"machine": {"name": "local"}, "teacher": trial.teacher, "bytes": trial.bytes}
    work = workload_of(recipe, tuple(shard.rows for shard in index.shards), len(index.classes))
    predicted = estimate(recipe, work, Training(1, 1, 0), [Hardware.model_validate(machine)], 1, 1)
    encoding = encoding_name(recipe.cache.encoding, recipe.cache.values)
    target_bytes = trial.bytes[encoding] + recipe.cache.digest_bits / 8
    return predicted.bills[0].teacher, target_bytes * work.views


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=4, help="builds for each trial time")
    parser.add_argument("--trial-seconds", type=float, nargs="+", default=[1.5, 5.0], help="seconds per trial")
    parser.add_argument("--seeds", type=int, default=10, help="seeds of the cache")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        index = pack(DEBIAN_FOLDER, folder / "shards", split="train", limit=TRAIN_IMAGES, classes=CLASSES)
        write_teacher(folder / "teacher")
        overrides = (
            f'data.train="{index.folder}"',
            f'teacher.run="{folder}/teacher"',
            f'cache.path="{folder}/cache.zarr"',
            f"cache.seeds={options.seeds}",
        )
        path = Path(str(files("teacher_cache.recipes"))) / "demo_cache.toml"
        recipe = load_recipe(path, CacheRecipe, overrides)
        print(f"{index.rows * options.seeds:,} views")
        for trial_seconds in options.trial_seconds:
            for _ in range(options.tries):
                before, _ = predict(recipe, index, trial_seconds)
                start = time.monotonic()
                built_bytes = sum(build(recipe).bytes_by_column().values())
                seconds = time.monotonic() - start
                shutil.rmtree(folder / "cache.zarr")
                after, predicted_bytes = predict(recipe, index, trial_seconds)
                error = (before + after) / 2 / seconds - 1
                print(
                    f"trial of {trial_seconds} s: built in {seconds:.1f} s, "
                    f"predicted {before:.1f} and {after:.1f} s ({error:+.0%}); "
                    f"built {built_bytes / 1000:.0f} kB, predicted {predicted_bytes / 1000:.0f} kB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
