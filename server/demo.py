"""`limbeck demo`: the whole pipeline on Fashion-MNIST, with the functions behind the commands."""

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from student.bundle.export import export
from student.recipe import TrainRecipe
from student.report.report import draw_curves
from student.training.loop import train
from teacher_cache.config import Table as RecipeTable
from teacher_cache.config import digest_of, load_recipe, resolved
from teacher_cache.console import log_line
from teacher_cache.data.index import load_index
from teacher_cache.data.shards import read_shard
from teacher_cache.errors import LimbeckError, ShardError
from teacher_cache.labeling.job import build
from teacher_cache.packing.pack import pack
from teacher_cache.recipe import CacheRecipe
from teacher_cache.storage.jsonl import Journal
from teacher_cache.timing import Stopwatch

TRAIN_IMAGES, TEST_IMAGES = 2_000, 4_000
CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
READY_SECONDS = 60
STAGES_NAME = "stages.jsonl"


def run_demo(data: Path | None, out: Path) -> None:
    """Pack, train a teacher, build its cache, train students with and without it, export and serve one.

    data: a folder with Fashion-MNIST's IDX files; None uses DEBIAN_FOLDER or downloads them. Skips the stages that
    an earlier demo finished with the same data and recipes.
    """
    if out.is_dir() and any(out.iterdir()) and not (out / STAGES_NAME).exists():
        raise LimbeckError(f"--out '{out}' has files that are not from limbeck demo; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    train_set, test_set = f'data.train="{out}/shards/train"', f'data.val="{out}/shards/test"'
    cache_path = f'cache.path="{out}/cache.zarr"'
    teacher = load_recipe(_recipe("student", "demo_teacher"), TrainRecipe, (train_set, test_set))
    cache_recipe = load_recipe(
        _recipe("teacher_cache", "demo_cache"),
        CacheRecipe,
        (train_set, cache_path, f'teacher.run="{out}/teacher"'),
    )
    student, baseline = (
        load_recipe(_recipe("student", "demo_student"), TrainRecipe, (train_set, test_set, cache_path, *changes))
        for changes in ((), ("loss.distillation=none",))
    )

    stages = _Stages(Journal(out / STAGES_NAME), [str(data), TRAIN_IMAGES, TEST_IMAGES])
    stages.run("pack", None, lambda: pack_splits(data, out))
    stages.run("teacher", teacher, lambda: train(teacher, out / "teacher"))
    stages.run("cache", cache_recipe, lambda: build_cache(cache_recipe))
    stages.run("student alone", baseline, lambda: train(baseline, out / "alone"))
    stages.run("distilled student", student, lambda: train(student, out / "student"))

    bundle = out / "bundle"
    shutil.rmtree(bundle, ignore_errors=True)
    export(out / "student", bundle)
    with Stopwatch() as watch:
        answer = ask_server(bundle, out)
    stages.rows.append(("first response", {}, watch.seconds))

    runs = {"teacher": "teacher", "student alone": "alone", "distilled student": "student"}
    draw_curves({name: out / folder for name, folder in runs.items()}, out / "curves.png")
    Console().print(accuracy_table(f"Fashion-MNIST, top-1 on {TEST_IMAGES:,} test images", stages.rows))
    print(f"training curves: {out}/curves.png")
    print(f"response of the server to {out}/test_image.png:")
    print(json.dumps(answer, indent=1))
    command = Path(sys.executable).with_name("limbeck")
    program = command.relative_to(Path.cwd()) if command.is_relative_to(Path.cwd()) else command
    print(f"to serve this model: {program} serve {bundle}")


def pack_splits(data: Path | None, out: Path) -> dict[str, float]:
    """Pack TRAIN_IMAGES and TEST_IMAGES images. Returns {}, since this stage has no accuracy."""
    source = find_dataset(data, out)
    for split, count in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES)):
        pack(source, out / "shards" / split, split=split, limit=count, classes=CLASSES)
    return {}


def build_cache(recipe: CacheRecipe) -> dict[str, float]:
    """Build the cache. Returns {}, since this stage has no accuracy."""
    build(recipe)
    return {}


def find_dataset(data: Path | None, out: Path) -> Path:
    """The folder with Fashion-MNIST's IDX files. Raises ShardError, with a way to get them, if it is missing."""
    if data is not None:
        if not data.is_dir():
            raise ShardError(f"DATA '{data}' is not a folder; give the one with Fashion-MNIST's IDX files")
        return data
    if DEBIAN_FOLDER.is_dir():
        return DEBIAN_FOLDER
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(out / "download"), download=True)
    except (OSError, RuntimeError) as error:
        raise ShardError(
            f"Fashion-MNIST is not installed and cannot be downloaded ({str(error).splitlines()[0]}); install "
            "Debian's dataset-fashion-mnist, or name a folder with the four IDX files: make demo DATA=FOLDER"
        ) from None
    return out / "download" / "FashionMNIST" / "raw"


def ask_server(bundle: Path, out: Path) -> Any:
    """Start a server on a free port, send it the first test image and return its JSON response."""
    record = read_shard(load_index(out / "shards" / "test"), 0)[0]
    (out / "test_image.png").write_bytes(record.image)
    with running_server(bundle) as url:
        request = urllib.request.Request(f"{url}/v1/classify?top_k=3", data=record.image, method="POST")
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)


@contextmanager
def running_server(bundle: Path) -> Iterator[str]:
    """Run `limbeck serve` and yield its URL once it is ready; terminate it on exit."""
    command = (sys.executable, "-P", "-m", "server.cli", "serve", str(bundle), "--port", "0")
    with subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8", errors="replace") as process:
        try:
            yield _wait_for_url(process)
        finally:
            process.terminate()


def _wait_for_url(process: "subprocess.Popen[str]") -> str:
    assert process.stderr is not None
    output = ""
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until and (line := process.stderr.readline()):
        output += line
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            return found[0]
    raise LimbeckError(
        f"the server did not start within {READY_SECONDS} s; its output: {output.strip() or 'none'}"
    )


def _recipe(package: str, name: str) -> Path:
    return Path(str(files(f"{package}.recipes"))) / f"{name}.toml"


class _Stages:
    """Runs each stage once and records its accuracy and seconds in a journal, so that a rerun can skip it.

    A stage is rerun if its recipe, or the recipe of an earlier stage, has changed.
    """

    def __init__(self, journal: Journal, inputs: list[object]) -> None:
        self._journal, self._inputs = journal, inputs
        self._done = {line["of"]: line for line in journal.read()}
        self.rows: list[tuple[str, dict[str, float], float]] = []

    def run(self, name: str, recipe: RecipeTable | None, work: Callable[[], dict[str, float]]) -> None:
        self._inputs = [*self._inputs, name, resolved(recipe) if recipe else None]
        stage_digest = digest_of({"asked": self._inputs})
        if stage_digest not in self._done:
            log_line(f"demo: {name}")
            with Stopwatch() as watch:
                accuracy = work()
            self._done[stage_digest] = {
                "of": stage_digest,
                "stage": name,
                "accuracy": accuracy,
                "seconds": watch.seconds,
            }
            self._journal.write(**self._done[stage_digest])
        line = self._done[stage_digest]
        self.rows.append((name, line["accuracy"], line["seconds"]))


def accuracy_table(title: str, rows: Sequence[tuple[str, Mapping[str, float], float]]) -> Table:
    """A table of the stages. rows: name, top-1 in percent by head (class, distill, joint), seconds."""
    table = Table(title=escape(title))
    table.add_column("")
    for name in ("class head", "distillation head", "joint"):
        table.add_column(name, justify="right")
    table.add_column("seconds", justify="right")
    for name, accuracy, seconds in rows:
        cells = (f"{accuracy[head]:.2f} %" if head in accuracy else "-" for head in ("class", "distill", "joint"))
        table.add_row(escape(name), *cells, f"{seconds:.0f}")
    return table
