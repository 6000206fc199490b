"""What `limbeck evaluate` tells: the metrics of every way of answering on every set, as a table and as JSON."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from student.bundle.bundle import open_raw_and_ema
from student.evaluation.metrics import Interval, Metrics, metrics_of
from student.evaluation.predict import predict_set
from student.evaluation.test_set import open_test_set
from teacher_cache.storage.atomic import write_json

WIDE = 160


@dataclass(frozen=True)
class SetScore:
    """One way of answering on one set. weights: "raw" or "ema". images: those that have a truth."""

    set: str
    images: int
    weights: str
    head: str
    metrics: Metrics


@dataclass(frozen=True)
class Bootstrap:
    """How the 95 % intervals are made: resamples of the images, drawn by a seed."""

    resamples: int = 1000
    seed: int = 0


def evaluate(
    model: Path, places: Sequence[str], device: torch.device, batch: int, workers: int, bootstrap: Bootstrap
) -> list[SetScore]:
    """Measure a bundle or a finished run on sets, all of which are opened before the first is measured.

    Raises RunError, RecipeError or ShardError for what cannot be opened or does not fit.
    """
    bundles = open_raw_and_ema(model, device)
    card = bundles["raw"].card
    scores = []
    for images in [open_test_set(place, card) for place in places]:
        answers = predict_set(bundles, images, batch, workers)
        for weights, ways in answers.readouts.items():
            found = metrics_of(ways, len(card.classes), bootstrap.resamples, bootstrap.seed)
            scores += [SetScore(images.name, len(answers.keys), weights, head, one) for head, one in found.items()]
    return scores


def score_table(model: Path, scores: Sequence[SetScore]) -> Table:
    """A line for each score, with its 95 % interval behind each figure."""
    table = Table(title=f"{escape(str(model))}, with 95 % intervals", title_justify="left")
    for name in ("set", "images", "weights", "head"):
        table.add_column(name)
    for name in ("top-1, %", "top-5, %", "NLL, nats", "calibration error, %"):
        table.add_column(name, justify="right")
    for before, one in zip([None, *scores], scores, strict=False):
        told = one.metrics
        new = before is None or (before.set, before.weights) != (one.set, one.weights)
        names = (escape(one.set), f"{one.images:,}", one.weights) if new else ("", "", "")
        if new and before is not None:
            table.add_section()
        table.add_row(
            *names,
            one.head,
            _cell(told.top1, 2),
            _cell(told.top5, 2),
            _cell(told.nll, 3),
            _cell(told.calibration, 2),
        )
    return table


def print_scores(model: Path, scores: Sequence[SetScore]) -> None:
    """Print the table, whole where there is no terminal to be narrow."""
    Console(width=None if sys.stdout.isatty() else WIDE).print(score_table(model, scores))


def write_scores(path: Path, model: Path, scores: Sequence[SetScore], bootstrap: Bootstrap) -> None:
    """Write the scores, and how their intervals were made, as one JSON file."""
    whole: dict[str, Any] = {"model": str(model), "bootstrap": asdict(bootstrap)}
    whole["scores"] = [asdict(one) for one in scores]
    write_json(path, whole)


def _cell(figure: Interval | None, digits: int) -> str:
    if figure is None:
        return "-"
    return f"{figure.value:.{digits}f} [dim]({figure.low:.{digits}f} to {figure.high:.{digits}f})[/dim]"
