"""DeiT's table of supervisions in small, on CIFAR-10: who teaches the student, and which token hears it.

    python benchmarks/supervision.py cifar10.tar.gz                             # 2 CPU cores, minutes
    python benchmarks/supervision.py cifar10.tar.gz --form long                 # a GPU

One teacher (student/recipes/rsb_small.toml) judges once (teacher_cache/recipes/cifar10_cache.toml). From its cache
learn, seed by seed, four students (student/recipes/cifar10_student.toml): one without a teacher, two that hear it
on their one head, softly and hard, and one with the distillation token. All see the same views in the same order,
seed by seed; a seed is that of the initial weights, of stochastic depth and of the order of images. Every part is
a folder under --out: what is finished is not done again, and what was stopped goes on. --teacher, --cache and
--student override keys of their recipes.

The short form (2,000 images, a few epochs, small networks) proves that every part runs, not who wins.
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

PLAIN = ('model.name="deit_tiny_patch16_224"', 'loss.head="class"')
STUDENTS: dict[str, tuple[str, ...]] = {
    "none": (*PLAIN, 'loss.distillation="none"'),
    "soft": (*PLAIN, 'loss.distillation="soft"', "loss.tau=3.0", "loss.balance=0.1"),
    "hard": PLAIN,
    "token": (),
}
ROWS = (  # what the table calls it, the student, the head, the paper's Ti on ImageNet
    ("none", "none", "class", 72.2),
    ("soft, class token only", "soft", "class", 72.2),
    ("hard, class token only", "hard", "class", 74.3),
    ("distillation token: class head", "token", "class", 73.9),
    ("distillation token: distillation head", "token", "distill", 74.6),
    ("distillation token: joint", "token", "joint", 74.5),
)
Form = dict[str, tuple[str, ...]]
QUICK = (
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
            *QUICK,
            'model.name="resnet10t"',
            'model.args={stem_type = "", channels = [16, 32, 64, 128]}',
            "schedule.epochs=4",
        ),
        "cache": ("cache.seeds=4", "job.workers=1"),
        "student": (
            *QUICK,
            "model.args={img_size = 32, patch_size = 8, embed_dim = 64, depth = 4, num_heads = 2}",
            "schedule.epochs=4",
        ),
    },
}
LIMITS = {"long": (0, 0), "short": (2_000, 1_000)}
"""Images to train on and to test on; 0 for all."""


def prepare(archive: Path, out: Path, form: str) -> tuple[str, ...]:
    """Pack CIFAR-10; returns the overrides that say where the test images lie."""
    for split, limit in zip(("train", "test"), LIMITS[form], strict=True):
        pack(archive, out / "shards" / split, split=split, limit=limit)
    return (f'data.train="{out}/shards/train"', f'data.val="{out}/shards/test"')


def teach(out: Path, data: Sequence[str], form: Form) -> float:
    """Train the teacher and let it judge; returns its top-1 in percent."""
    path = Path(str(files("student.recipes"))) / "rsb_small.toml"
    top1 = train(load_recipe(path, TrainRecipe, (*data, *form["teacher"])), out / "teacher")["class"]
    path = Path(str(files("teacher_cache.recipes"))) / "cifar10_cache.toml"
    places = (data[0], f'teacher.run="{out}/teacher"', f'cache.path="{out}/cache.zarr"')
    build(load_recipe(path, CacheRecipe, (*places, *form["cache"])))
    return top1


def learn(out: Path, data: Sequence[str], form: Form, student: str, seed: int) -> dict[str, float]:
    """Train one student; returns its top-1 in percent by head."""
    path = Path(str(files("student.recipes"))) / "cifar10_student.toml"
    own = (*form["student"], *STUDENTS[student], f"train.seed={seed}")
    recipe = load_recipe(path, TrainRecipe, (*data, f'cache.path="{out}/cache.zarr"', *own))
    return train(recipe, out / f"{student}-{seed}")


def table(teacher: float, gave: dict[str, list[dict[str, float]]]) -> Table:
    """gave: by student, top-1 in percent by head, a dict for each seed."""
    seeds = len(gave["none"])
    shown = Table(title=f"CIFAR-10, top-1 in percent, {seeds} seed{'s' * (seeds > 1)}")
    for name in ("supervision", "mean", "standard deviation", "DeiT-Ti on ImageNet (paper)"):
        shown.add_column(name, justify="left" if name == "supervision" else "right")
    shown.add_row("(the teacher itself)", f"{teacher:.2f}", "-", "82.9")
    for name, student, head, papers in ROWS:
        values = [accuracy[head] for accuracy in gave[student]]
        spread = f"{statistics.stdev(values):.2f}" if seeds > 1 else "-"
        shown.add_row(name, f"{statistics.fmean(values):.2f}", spread, f"{papers:.1f}")
    return shown


def verdict(teacher: float, gave: dict[str, list[dict[str, float]]]) -> str:
    """The two differences that count, whichever way they point."""
    joint = statistics.fmean(accuracy["joint"] for accuracy in gave["token"])
    alone = statistics.fmean(accuracy["class"] for accuracy in gave["none"])
    return (
        f"the joint head less the undistilled student: {joint - alone:+.2f} points (wanted: +2 or more); "
        f"less its teacher: {joint - teacher:+.2f} (wanted: -1 or more)"
    )


def main() -> None:
    """Run what is still to run, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--out", type=Path, default=Path("supervision"))
    parser.add_argument("--form", choices=sorted(FORMS), default="short")
    parser.add_argument("--seeds", type=int, default=3)
    for name in ("teacher", "cache", "student"):
        parser.add_argument(f"--{name}", action="append", default=[], metavar="TABLE.KEY=VALUE")
    chosen = parser.parse_args()
    form = {name: (*keys, *getattr(chosen, name)) for name, keys in FORMS[chosen.form].items()}
    gave: dict[str, list[dict[str, float]]] = {student: [] for student in STUDENTS}
    with Stopwatch() as watch:
        data = prepare(chosen.archive, chosen.out, chosen.form)
        teacher = teach(chosen.out, data, form)
        for seed in range(chosen.seeds):
            for student, accuracies in gave.items():
                log_line(f"-- {student}, seed {seed}")
                accuracies.append(learn(chosen.out, data, form, student, seed))
    figures = {"form": chosen.form, "teacher": teacher, "students": gave, "seconds": round(watch.seconds)}
    write_json(chosen.out / "supervision.json", figures)
    Console().print(table(teacher, gave))
    print(verdict(teacher, gave))
    print(f"{watch.seconds:.0f} s in this go; figures in {chosen.out}/supervision.json")


if __name__ == "__main__":
    main()
