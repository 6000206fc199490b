"""How near `limbeck estimate` comes to the time and bytes of a real build.

    python benchmarks/estimate.py [--tries 4] [--trial-seconds 1.5 5] [--seeds 10]

The cache of the demo's recipe on the demo's images (Debian's package dataset-fashion-mnist) is built once a try;
a trial runs before and after it. Printed: seconds of the build, both predictions, the error of their mean, and kB.
The teacher has random weights; it is as fast as a trained one.
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


def predict(recipe: CacheRecipe, index: ShardIndex, seconds: float) -> tuple[float, float]:
    """Seconds and bytes of the whole build, from a trial of `seconds`."""
    with tempfile.TemporaryDirectory() as folder:
        trial = calibrate(recipe, index, seconds, Path(folder))
    figures = {"machine": {"name": "here"}, "teacher": trial.teacher, "bytes": trial.bytes}
    work = workload_of(recipe, tuple(shard.rows for shard in index.shards), len(index.classes))
    found = estimate(recipe, work, Training(1, 1, 0), [Hardware.model_validate(figures)], 1, 1)
    target = trial.bytes[encoding_name(recipe.cache.encoding, recipe.cache.values)] + recipe.cache.digest_bits / 8
    return found.bills[0].teacher, target * work.views


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=4)
    parser.add_argument("--trial-seconds", type=float, nargs="+", default=[1.5, 5.0])
    parser.add_argument("--seeds", type=int, default=10)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        index = pack(DEBIAN_FOLDER, folder / "shards", split="train", limit=TRAIN_IMAGES, classes=CLASSES)
        write_teacher(folder / "teacher")
        changes = (
            f'data.train="{index.folder}"',
            f'teacher.run="{folder}/teacher"',
            f'cache.path="{folder}/cache.zarr"',
            f"cache.seeds={chosen.seeds}",
        )
        path = Path(str(files("teacher_cache.recipes"))) / "demo_cache.toml"
        recipe = load_recipe(path, CacheRecipe, changes)
        print(f"{index.rows * chosen.seeds:,} views")
        for trial in chosen.trial_seconds:
            for _ in range(chosen.tries):
                before, _ = predict(recipe, index, trial)
                start = time.monotonic()
                built = sum(build(recipe).bytes_by_column().values())
                took = time.monotonic() - start
                shutil.rmtree(folder / "cache.zarr")
                after, size = predict(recipe, index, trial)
                wrong = (before + after) / 2 / took - 1
                print(
                    f"trial of {trial} s: built in {took:.1f} s, predicted {before:.1f} and {after:.1f} s", end=""
                )
                print(f" ({wrong:+.0%}); {built / 1000:.0f} kB, predicted {size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
