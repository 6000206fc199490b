"""`limbeck evaluate`: the metrics of each readout on each test set, as a table and as JSON."""

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
from student.evaluation.metrics import EvalMetrics, Metric, metrics_of
from student.evaluation.predict import predict_set
from student.evaluation.test_set import open_test_set
from teacher_cache.storage.atomic import write_json

FULL_WIDTH = 160
"""Width of the table in characters if standard output is not a terminal."""


@dataclass(frozen=True)
class ScoreRow:
    """Metrics of one readout on one set. weights: "raw" or "ema". images: number of labeled images."""

    set: str
    images: int
    weights: str
    head: str
    metrics: EvalMetrics


@dataclass(frozen=True)
class Bootstrap:
    """Settings of the 95 % intervals: number of resamples, and the seed that draws them."""

    resamples: int = 1000
    seed: int = 0


def evaluate(
    model: Path,
    sources: Sequence[str],
    device: torch.device,
    batch: int = 64,
    workers: int = 1,
    bootstrap: Bootstrap = Bootstrap(),
) -> list[ScoreRow]:
    """Evaluate a bundle or a finished run on test sets. All sets are opened before the first is evaluated.

    Raises RunError, RecipeError or ShardError if the model or a set cannot be opened, or their classes differ.
    """
    bundles = open_raw_and_ema(model, device)
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
    """One row per score; each metric has its 95 % interval in brackets."""
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
    """Print the table; at full width if standard output is not a terminal."""
    Console(width=None if sys.stdout.isatty() else FULL_WIDTH).print(score_table(model, scores))


def write_scores(
    path: Path, model: Path, scores: Sequence[ScoreRow], bootstrap: Bootstrap, origin: str = ""
) -> None:
    """Write the scores and the settings of their intervals as one JSON file. origin: by `origin_of`."""
    document: dict[str, Any] = {"made_by": origin, "model": str(model), "bootstrap": asdict(bootstrap)}
    document["scores"] = [asdict(row) for row in scores]
    write_json(path, document)


def _cell(metric: Metric | None, digits: int) -> str:
    if metric is None:
        return "-"
    return f"{metric.value:.{digits}f} [dim]({metric.low:.{digits}f} to {metric.high:.{digits}f})[/dim]"
