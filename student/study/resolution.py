"""`limbeck study resolution`: a network at several test sizes, crops and test sets (RSB, sections 4 and 5)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from student.bundle.bundle import Bundle, open_bundle
from student.evaluation.predict import JOINT, EvalOptions, predict_set
from student.evaluation.test_set import LabeledSet, open_test_set
from student.study.folder import Study, create_study
from student.study.plot import draw_resolution
from student.study.report import PLOT_NAME, write_report
from student.study.stats import sampling_error
from student.study.trials import accuracy_of_head
from student.training.run import format_accuracy
from teacher_cache.config import digest_of
from teacher_cache.console import log_line
from teacher_cache.distributed.world import World
from teacher_cache.errors import RecipeError
from teacher_cache.models.card import Card
from teacher_cache.models.teacher import check_size, patch_size

STEPS = range(-3, 4)
"""Default sizes, in steps of a seventh of the run's own size: 128 to 320 at 224."""
CROPS = (0.875, 0.95, 1.0)
READOUT_OF_HEAD = {"class": "class", "distill": "distill", "joint": JOINT}
"""Readout of each accuracy in a run's journal."""

Curves = dict[str, dict[float, dict[int, float]]]
"""Top-1 in percent by test set, crop ratio and size in pixels."""


@dataclass(frozen=True)
class Point:
    """One measurement: test set, size in pixels, crop ratio."""

    set: str
    size: int
    crop: float

    @property
    def task(self) -> str:
        return f"{self.set}/{self.size}px-{self.crop:g}"


def study_resolution(
    run: Path,
    sources: Mapping[str, str],
    sizes: Sequence[int],
    crops: Sequence[float],
    folder: Path,
    options: EvalOptions,
    head: str = "",
    world: World | None = None,
) -> tuple[Table, Table] | None:
    """Evaluate a finished run at each size and crop on each set; None if other jobs still have some to finish.

    sources: shards by name of the set; the others are compared with the first. {} means the recipe's data.val.
    sizes, crops: () means the defaults. The run's own size and crop are always included.
    """
    bundle = open_bundle(run, options.device)
    card = bundle.card
    source_by_name = sources or {"val": card.recipe["data"]["val"]}
    sets = {name: open_test_set(source, card) for name, source in source_by_name.items()}
    points = [
        Point(name, size, crop)
        for size in sorted({*(sizes or default_sizes(bundle)), card.eval.size})
        for crop in sorted({*(crops or CROPS), card.eval.crop})
        for name in sets
    ]
    for size in sorted({point.size for point in points}):
        resize(bundle, size)  # refuses an invalid size before the first measurement
    accuracy_of_head(card.accuracy, head)
    study = create_study(folder, "resolution", _identity_of(card, sets), [point.task for point in points])
    by_task = {point.task: point for point in points}
    for task in study.claim_tasks(world):
        study.finish(task, _measure(run, bundle, sets, by_task[task], options))
    if unfinished := study.unfinished_tasks():
        log_line(
            f"study '{folder}': {len(unfinished)} of {len(points)} measurements are not finished: they belong to "
            f"other jobs or were interrupted; see limbeck study status {folder}, then rerun the command"
        )
        return None
    return _report(study, points, sets, card, head)


def default_sizes(bundle: Bundle) -> list[int]:
    """Sizes around the run's own; for a transformer, multiples of its patch size."""
    size, patch = bundle.card.eval.size, patch_size(bundle.student.network)
    step = max(round(size / 7 / patch), 1) * patch
    return [size + step * count for count in STEPS if size + step * count > 0]


def resize(bundle: Bundle, size: int) -> Bundle:
    """Set the input size of a bundle's network in place, and return the bundle.

    timm resizes the position embedding of a transformer (bicubic, without the extra tokens); a convnet does not
    change. Raises RecipeError if the network does not support the size.
    """
    network: Any = bundle.student.network
    patch = patch_size(network)
    if size % patch:
        raise RecipeError(f"size {size}: the network's patch size is {patch} pixels; give multiples of {patch}")
    if hasattr(network, "set_input_size"):
        network.set_input_size(img_size=(size, size))
    check_size(bundle.student, "model", bundle.card.network.name, "a test size", size)
    return bundle


def _identity_of(card: Card, sets: Mapping[str, LabeledSet]) -> dict[str, Any]:
    digests = {
        f"set {name}": digest_of({"shards": test_set.index.contents(), "labels": test_set.labels})
        for name, test_set in sets.items()
    }
    return {"weights": card.sha256, "interpolation": card.eval.interpolation, **digests}


def _measure(
    run: Path, bundle: Bundle, sets: Mapping[str, LabeledSet], point: Point, options: EvalOptions
) -> dict[str, Any]:
    # Loaded again for each point, so that a position embedding is resized only once.
    resized = resize(open_bundle(run, bundle.device), point.size)
    spec = bundle.card.eval.model_copy(update={"size": point.size, "crop": point.crop})
    model = replace(resized, card=bundle.card.model_copy(update={"eval": spec}))
    predictions = predict_set(
        {"": model}, replace(sets[point.set], name=point.task), options.batch, options.workers
    )
    readouts = {"class": "class"} if len(bundle.card.heads) == 1 else READOUT_OF_HEAD
    accuracy = {
        name: 100 * float(predictions.readouts[""][readout].correct.double().mean())
        for name, readout in readouts.items()
    }
    log_line(f"{point.task}: {format_accuracy(accuracy)}")
    return {"accuracy": accuracy, "images": len(predictions.keys)}


def _report(
    study: Study, points: Sequence[Point], sets: Mapping[str, LabeledSet], card: Card, head: str
) -> tuple[Table, Table]:
    top1 = {point: accuracy_of_head(study.result(point.task)["accuracy"], head) for point in points}
    curves: Curves = {name: {} for name in sets}
    for point, value in top1.items():
        curves[point.set].setdefault(point.crop, {})[point.size] = value
    own = {name: curves[name][card.eval.crop][card.eval.size] for name in sets}
    images = {point.set: study.result(point.task)["images"] for point in points}
    reference = next(iter(own))
    points_json = [{"set": p.set, "size": p.size, "crop": p.crop, "top1": value} for p, value in top1.items()]
    gaps = {name: own[reference] - value for name, value in own.items() if name != reference}
    facts = {"size": card.eval.size, "crop": card.eval.crop, "images": images}
    write_report(
        study.folder,
        {"kind": "resolution", **facts, "own": own, f"gap_from_{reference}": gaps, "points": points_json},
    )
    draw_resolution(curves, card.eval.size, study.folder / PLOT_NAME)
    return _sizes_table(curves, card), _sets_table(own, images, card)


def _sizes_table(curves: Curves, card: Card) -> Table:
    """One row per size, one column per set and crop; the best value of each column is bold."""
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
            f"{size}{own}",
            *(f"[bold]{cell}[/]" if is_best else cell for cell, is_best in zip(cells, best, strict=True)),
        )
    table.caption = f"* the run's own size; its crop is {card.eval.crop:g}"
    return table


def _sets_table(own: Mapping[str, float], images: Mapping[str, int], card: Card) -> Table:
    """Accuracy on each set at the run's own size and crop, and the gap to the first set."""
    reference = next(iter(own))
    table = Table(title=f"test sets at {card.eval.size} px, crop {card.eval.crop:g}")
    for name in ("set", "images", "top-1", f"below {escape(reference)}", "std. error of gap"):
        table.add_column(name, justify="left" if name == "set" else "right")
    errors = {name: sampling_error(value, images[name]) for name, value in own.items()}
    for name, value in own.items():
        error = (errors[name] ** 2 + errors[reference] ** 2) ** 0.5
        gap = ("", "") if name == reference else (f"{own[reference] - value:+.2f}", f"{error:.2f}")
        table.add_row(escape(name), f"{images[name]:,}", f"{value:.2f} %", *gap)
    return table
