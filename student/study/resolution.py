"""`limbeck study resolution`: one network over test sizes, crop ratios and test sets (RSB, sections 4 and 5)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from student.bundle.bundle import Bundle, open_bundle
from student.evaluation.predict import JOINT, predict_set
from student.evaluation.test_set import LabelledSet, open_test_set
from student.study.folder import Study, create_study
from student.study.plot import draw_resolution
from student.study.report import PICTURE, write_report
from student.study.stats import sampling_error
from student.study.trials import of_head
from student.training.run import format_accuracy
from teacher_cache.config import digest_of
from teacher_cache.console import log_line
from teacher_cache.distributed.device import pick_device
from teacher_cache.distributed.world import World
from teacher_cache.errors import RecipeError
from teacher_cache.models.card import Card
from teacher_cache.models.teacher import check_size, patch_size

STEPS = range(-3, 4)
"""Sizes around the run's own, a seventh of it apart: 128 to 320 at 224."""
CROPS = (0.875, 0.95, 1.0)
WAYS = {"class": "class", "distill": "distill", "joint": JOINT}
"""Ways of answering, by what a run's journal calls their accuracy."""

Curves = dict[str, dict[float, dict[int, float]]]
"""Top-1 in percent by test set, crop ratio and size in pixels."""


@dataclass(frozen=True)
class Point:
    """One measurement."""

    set: str
    size: int
    crop: float

    @property
    def task(self) -> str:
        return f"{self.set}/{self.size}px-{self.crop:g}"


@dataclass(frozen=True)
class Machine:
    """How the measuring is done; nothing here changes what is found."""

    batch: int = 64
    workers: int = 1
    device: str = "auto"


def study_resolution(
    run: Path,
    places: Mapping[str, str],
    sizes: Sequence[int],
    crops: Sequence[float],
    folder: Path,
    machine: Machine,
    head: str = "",
    world: World | None = None,
) -> tuple[Table, Table] | None:
    """Measure a finished run at every size and crop on every set; None while other jobs are at it.

    places: shards by the set's name, the first being what the others are compared with; {} for the recipe's own.
    sizes, crops: () for the usual ones. The run's own size and crop are always among them.
    """
    bundle = open_bundle(run, pick_device(machine.device))
    card = bundle.card
    named = places or {"val": card.recipe["data"]["val"]}
    sets = {name: open_test_set(place, card) for name, place in named.items()}
    points = [
        Point(name, size, crop)
        for size in sorted({*(sizes or usual_sizes(bundle)), card.eval.size})
        for crop in sorted({*(crops or CROPS), card.eval.crop})
        for name in sets
    ]
    for size in sorted({point.size for point in points}):
        resized(bundle, size)  # a size that cannot be is told before the first is measured
    of_head(card.accuracy, head)
    study = create_study(folder, "resolution", _about(card, sets), [point.task for point in points])
    by_task = {point.task: point for point in points}
    for task in study.locked_tasks(world):
        study.finish(task, _measure(run, bundle, sets, by_task[task], machine))
    if left := study.open_tasks():
        log_line(f"study '{folder}': {len(left)} of {len(points)} measurements are other jobs' or left by them")
        return None
    return _report(study, points, sets, card, head)


def usual_sizes(bundle: Bundle) -> list[int]:
    """Sizes on both sides of the run's own; a transformer's are whole numbers of its patches."""
    size, patch = bundle.card.eval.size, patch_size(bundle.student.network)
    step = max(round(size / 7 / patch), 1) * patch
    return [size + step * count for count in STEPS if size + step * count > 0]


def resized(bundle: Bundle, size: int) -> Bundle:
    """A bundle whose network takes images of another size, in place.

    timm resizes a transformer's position embedding (bicubic, its extra tokens kept); a convnet stays as it is.
    Raises RecipeError where the network cannot.
    """
    network: Any = bundle.student.network
    patch = patch_size(network)
    if size % patch:
        raise RecipeError(f"size {size}: the network's patches are {patch} pixels wide; give multiples of {patch}")
    if hasattr(network, "set_input_size"):
        network.set_input_size(img_size=(size, size))
    check_size(bundle.student, "model", bundle.card.network.name, "a test size", size)
    return bundle


def _about(card: Card, sets: Mapping[str, LabelledSet]) -> dict[str, Any]:
    parts = {name: {"shards": part.index.contents(), "labels": part.labels} for name, part in sets.items()}
    contents = {f"set {name}": digest_of(part) for name, part in parts.items()}
    return {"weights": card.sha256, "interpolation": card.eval.interpolation, **contents}


def _measure(
    run: Path, bundle: Bundle, sets: Mapping[str, LabelledSet], point: Point, machine: Machine
) -> dict[str, Any]:
    fresh = resized(open_bundle(run, bundle.device), point.size)  # never an embedding that was resized before
    spec = bundle.card.eval.model_copy(update={"size": point.size, "crop": point.crop})
    shown = replace(fresh, card=bundle.card.model_copy(update={"eval": spec}))
    answers = predict_set({"": shown}, replace(sets[point.set], name=point.task), machine.batch, machine.workers)
    names = {"class": "class"} if len(bundle.card.heads) == 1 else WAYS
    found = {name: 100 * float(answers.readouts[""][way].right.double().mean()) for name, way in names.items()}
    log_line(f"{point.task}: {format_accuracy(found)}")
    return {"accuracy": found, "images": len(answers.keys)}


def _report(
    study: Study, points: Sequence[Point], sets: Mapping[str, LabelledSet], card: Card, head: str
) -> tuple[Table, Table]:
    found = {point: of_head(study.result(point.task)["accuracy"], head) for point in points}
    curves: Curves = {name: {} for name in sets}
    for point, value in found.items():
        curves[point.set].setdefault(point.crop, {})[point.size] = value
    own = {name: curves[name][card.eval.crop][card.eval.size] for name in sets}
    images = {point.set: study.result(point.task)["images"] for point in points}
    first = next(iter(own))
    told = [{"set": p.set, "size": p.size, "crop": p.crop, "top1": value} for p, value in found.items()]
    gaps = {name: own[first] - value for name, value in own.items() if name != first}
    facts = {"size": card.eval.size, "crop": card.eval.crop, "images": images}
    write_report(
        study.folder, {"kind": "resolution", **facts, "own": own, f"gap_from_{first}": gaps, "points": told}
    )
    draw_resolution(curves, card.eval.size, study.folder / PICTURE)
    return _sizes_table(curves, card), _sets_table(own, images, card)


def _sizes_table(curves: Curves, card: Card) -> Table:
    """A row for each size, a column for each set and crop; the best of each column is bold."""
    table = Table(title=f"{escape(card.network.name)}, top-1 in % by test size")
    table.add_column("size", justify="right")
    columns = [(name, crop, points) for name, crops in curves.items() for crop, points in crops.items()]
    for name, crop, _ in columns:
        table.add_column(f"{escape(name)}\ncrop {crop:g}", justify="right")
    for size in columns[0][2]:
        cells = [f"{points[size]:.2f}" for _, _, points in columns]
        best = [points[size] == max(points.values()) for _, _, points in columns]
        own = " *" if size == card.eval.size else ""
        table.add_row(
            f"{size}{own}", *(f"[bold]{cell}[/]" if top else cell for cell, top in zip(cells, best, strict=True))
        )
    table.caption = f"* the run's own size; its crop is {card.eval.crop:g}"
    return table


def _sets_table(own: Mapping[str, float], images: Mapping[str, int], card: Card) -> Table:
    """The sets side by side, as the run itself is measured, and how far the others lie below the first."""
    first = next(iter(own))
    table = Table(title=f"test sets at {card.eval.size} px, crop {card.eval.crop:g}")
    for name in ("set", "images", "top-1", f"below {escape(first)}", "error of the gap"):
        table.add_column(name, justify="left" if name == "set" else "right")
    errors = {name: sampling_error(value, images[name]) for name, value in own.items()}
    for name, value in own.items():
        error = (errors[name] ** 2 + errors[first] ** 2) ** 0.5
        gap = ("", "") if name == first else (f"{own[first] - value:+.2f}", f"{error:.2f}")
        table.add_row(escape(name), f"{images[name]:,}", f"{value:.2f} %", *gap)
    return table
