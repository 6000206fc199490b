"""What `limbeck evaluate` tells: the metrics of every way of answering on every set, as a table and as JSON."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from student.bundle.bundle import open_weights
from student.evaluation.metrics import EvalMetrics, Metric, metrics_of
from student.evaluation.predict import predict_set
from student.evaluation.test_set import open_test_set
from teacher_cache.storage.atomic import write_atomic

FULL_WIDTH = 160


@dataclass(frozen=True)
class ScoreRow:
    """One way of answering on one set. weights: "raw" or "ema". images: those that have a truth."""

    set: str
    images: int
    weights: str
    head: str
    metrics: EvalMetrics


@dataclass(frozen=True)
class Bootstrap:
    """How the 95 % intervals are made: resamples of the images, drawn by a seed."""

    resamples: int = 1000
    seed: int = 0


def evaluate(
    model: Path, sources: Sequence[str], device: torch.device, batch: int, workers: int, bootstrap: Bootstrap
) -> list[ScoreRow]:
    """Measure a bundle or a finished run on sets, all of which are opened before the first is measured.

    Raises RunError, RecipeError or ShardError for what cannot be opened or does not fit.
    """
    bundles = open_weights(model, device)
    card = bundles["raw"].card
    scores = []
    for test_set in [open_test_set(source, card) for source in sources]:
        predictions = predict_set(bundles, test_set, batch, workers)
        for weights, outcomes in predictions.readouts.items():
            metrics = metrics_of(outcomes, len(card.classes), bootstrap.resamples, bootstrap.seed)
            scores += [
                ScoreRow(test_set.name, len(predictions.keys), weights, readout, metric)
                for readout, metric in metrics.items()
            ]
    return scores


def score_table(model: Path, scores: Sequence[ScoreRow]) -> Table:
    """A line for each score, with its 95 % interval behind each figure."""
    table = Table(title=f"{escape(str(model))}, with 95 % intervals", title_justify="left")
    for name in ("set", "images", "weights", "head"):
        table.add_column(name)
    for name in ("top-1, %", "top-5, %", "NLL, nats", "calibration error, %"):
        table.add_column(name, justify="right")
    for previous, row in zip([None, *scores], scores, strict=False):
        metrics = row.metrics
        is_new_block = previous is None or (previous.set, previous.weights) != (row.set, row.weights)
        labels = (escape(row.set), f"{row.images:,}", row.weights) if is_new_block else ("", "", "")
        if is_new_block and previous is not None:
            table.add_section()
        table.add_row(
            *labels,
            row.head,
            _cell(metrics.top1, 2),
            _cell(metrics.top5, 2),
            _cell(metrics.nll, 3),
            _cell(metrics.calibration, 2),
        )
    return table


def print_scores(model: Path, scores: Sequence[ScoreRow]) -> None:
    """Print the table, whole where there is no terminal to be narrow."""
    Console(width=None if sys.stdout.isatty() else FULL_WIDTH).print(score_table(model, scores))


def write_scores(path: Path, model: Path, scores: Sequence[ScoreRow], bootstrap: Bootstrap) -> None:
    """Write the scores, and how their intervals were made, as one JSON file."""
    document: dict[str, Any] = {"model": str(model), "bootstrap": asdict(bootstrap)}
    document["scores"] = [asdict(row) for row in scores]
    write_atomic(path, (json.dumps(document, indent=1) + "\n").encode())


def _cell(metric: Metric | None, digits: int) -> str:
    if metric is None:
        return "-"
    return f"{metric.value:.{digits}f} [dim]({metric.low:.{digits}f} to {metric.high:.{digits}f})[/dim]"
