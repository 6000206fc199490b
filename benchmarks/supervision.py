"""DeiT's comparison of supervisions, small, on CIFAR-10: no teacher, soft, hard, and the distillation token.

    python benchmarks/supervision.py cifar10.tar.gz                             # 2 CPU cores, minutes
    python benchmarks/supervision.py cifar10.tar.gz --form long                 # a GPU

One teacher (student/recipes/rsb_small.toml) labels one cache (teacher_cache/recipes/cifar10_cache.toml). For each
seed, four students (student/recipes/cifar10_student.toml) are trained: one without a teacher, two with one head
(soft and hard distillation), and one with the distillation token. With the same seed they see the same views in
the same order; the seed sets the initial weights, stochastic depth and the order of images. Each part has its own
folder under --out: finished parts are skipped, interrupted ones continue. --teacher, --cache and --student
override keys of the recipes.

The short form (2,000 images, a few epochs, small networks) shows that every part runs. Its ranking has no
meaning.
"""

import argparse
import statistics
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from rich.console import Console
from rich.table import Table

from student.recipe import TrainRecipe
from student.training.loop import train
from teacher_cache.config import load_recipe
from teacher_cache.console import log_line
from teacher_cache.labeling.job import build
from teacher_cache.packing.pack import pack
from teacher_cache.recipe import CacheRecipe
from teacher_cache.storage.atomic import write_json
from teacher_cache.timing import Stopwatch

ONE_HEADED = ('model.name="deit_tiny_patch16_224"', 'loss.head="class"')
STUDENTS: dict[str, tuple[str, ...]] = {
    "none": (*ONE_HEADED, 'loss.distillation="none"'),
    "soft": (*ONE_HEADED, 'loss.distillation="soft"', "loss.tau=3.0", "loss.balance=0.1"),
    "hard": ONE_HEADED,
    "token": (),
}
ROWS = (  # row title, student, head, top-1 of DeiT-Ti on ImageNet in the paper
    ("none", "none", "class", 72.2),
    ("soft, class token only", "soft", "class", 72.2),
    ("hard, class token only", "hard", "class", 74.3),
    ("distillation token: class head", "token", "class", 73.9),
    ("distillation token: distillation head", "token", "distill", 74.6),
    ("distillation token: joint", "token", "joint", 74.5),
)
Form = dict[str, tuple[str, ...]]
SHORT = (
    "schedule.warmup_epochs=1",
    "train.batch=64",
    "train.streams=4",
    "train.evaluate_every=4",
    "machine.workers=1",
)
FORMS: dict[str, Form] = {
    "long": {"teacher": (), "cache": (), "student": ()},
    "short": {
        "teacher": (
            *SHORT,
            'model.name="resnet10t"',
            'model.args={stem_type = "", channels = [16, 32, 64, 128]}',
            "schedule.epochs=4",
        ),
        "cache": ("cache.seeds=4", "job.workers=1"),
        "student": (
            *SHORT,
            "model.args={img_size = 32, patch_size = 8, embed_dim = 64, depth = 4, num_heads = 2}",
            "schedule.epochs=4",
        ),
    },
}
LIMITS = {"long": (0, 0), "short": (2_000, 1_000)}
"""Numbers of training and test images; 0 for all."""


def prepare(archive: Path, out: Path, form: str) -> tuple[str, ...]:
    """Pack CIFAR-10; returns the recipe overrides with the paths of the shards."""
    for split, limit in zip(("train", "test"), LIMITS[form], strict=True):
        pack(archive, out / "shards" / split, split=split, limit=limit)
    return (f'data.train="{out}/shards/train"', f'data.val="{out}/shards/test"')


def train_teacher(out: Path, data: Sequence[str], form: Form) -> float:
    """Train the teacher and build its cache; returns the teacher's top-1 in percent."""
    path = Path(str(files("student.recipes"))) / "rsb_small.toml"
    top1 = train(load_recipe(path, TrainRecipe, (*data, *form["teacher"])), out / "teacher")["class"]
    path = Path(str(files("teacher_cache.recipes"))) / "cifar10_cache.toml"
    places = (data[0], f'teacher.run="{out}/teacher"', f'cache.path="{out}/cache.zarr"')
    build(load_recipe(path, CacheRecipe, (*places, *form["cache"])))
    return top1


def train_student(out: Path, data: Sequence[str], form: Form, student: str, seed: int) -> dict[str, float]:
    """Train one student; returns its top-1 in percent by head."""
    path = Path(str(files("student.recipes"))) / "cifar10_student.toml"
    own = (*form["student"], *STUDENTS[student], f"train.seed={seed}")
    recipe = load_recipe(path, TrainRecipe, (*data, f'cache.path="{out}/cache.zarr"', *own))
    return train(recipe, out / f"{student}-{seed}")


def make_table(teacher: float, accuracies: dict[str, list[dict[str, float]]]) -> Table:
    """The results table. accuracies: by student, a dict per seed with top-1 in percent by head."""
    seeds = len(accuracies["none"])
    table = Table(title=f"CIFAR-10, top-1 in percent, {seeds} seed{'s' * (seeds > 1)}")
    for name in ("supervision", "mean", "standard deviation", "DeiT-Ti on ImageNet (paper)"):
        table.add_column(name, justify="left" if name == "supervision" else "right")
    table.add_row("(the teacher)", f"{teacher:.2f}", "-", "82.9")
    for name, student, head, paper_top1 in ROWS:
        values = [accuracy[head] for accuracy in accuracies[student]]
        spread = f"{statistics.stdev(values):.2f}" if seeds > 1 else "-"
        table.add_row(name, f"{statistics.fmean(values):.2f}", spread, f"{paper_top1:.1f}")
    return table


def summarize(teacher: float, accuracies: dict[str, list[dict[str, float]]]) -> str:
    """The joint head's top-1 minus that of the undistilled student and minus that of the teacher, as text."""
    joint = statistics.fmean(accuracy["joint"] for accuracy in accuracies["token"])
    undistilled = statistics.fmean(accuracy["class"] for accuracy in accuracies["none"])
    return (
        f"joint head minus undistilled student: {joint - undistilled:+.2f} points (goal: at least +2); "
        f"joint head minus teacher: {joint - teacher:+.2f} (goal: at least -1)"
    )


def main() -> None:
    """Run the unfinished parts, print the table and write supervision.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--out", type=Path, default=Path("supervision"))
    parser.add_argument("--form", choices=sorted(FORMS), default="short")
    parser.add_argument("--seeds", type=int, default=3)
    for name in ("teacher", "cache", "student"):
        parser.add_argument(f"--{name}", action="append", default=[], metavar="TABLE.KEY=VALUE")
    options = parser.parse_args()
    form = {name: (*keys, *getattr(options, name)) for name, keys in FORMS[options.form].items()}
    results: dict[str, list[dict[str, float]]] = {student: [] for student in STUDENTS}
    with Stopwatch() as watch:
        data = prepare(options.archive, options.out, options.form)
        teacher = train_teacher(options.out, data, form)
        for seed in range(options.seeds):
            for student, accuracies in results.items():
                log_line(f"student {student}, seed {seed}")
                accuracies.append(train_student(options.out, data, form, student, seed))
    figures = {"form": options.form, "teacher": teacher, "students": results, "seconds": round(watch.seconds)}
    write_json(options.out / "supervision.json", figures)
    Console().print(make_table(teacher, results))
    print(summarize(teacher, results))
    print(f"{watch.seconds:.0f} s in this run; results in {options.out}/supervision.json")


if __name__ == "__main__":
    main()
