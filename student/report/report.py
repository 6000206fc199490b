"""`limbeck report`: one HTML page about one or several finished runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from student.bundle.bundle import Bundle, open_bundle, open_raw_and_ema
from student.evaluation.metrics import EvalMetrics, Metric, metrics_of
from student.evaluation.predict import JOINT, EvalOptions, Predictions, predict_set
from student.evaluation.test_set import LabeledSet, open_test_set
from student.report import plots
from student.report.html_page import PAGE_NAME, Part, isolate, write_page
from student.report.plots import Line
from student.report.tokens import Tokens, token_statistics
from teacher_cache.console import log_line
from teacher_cache.data.shards import Record, spread
from teacher_cache.errors import RunError
from teacher_cache.figure import render_png
from teacher_cache.models.card import load_card
from teacher_cache.models.run_folder import network_folder
from teacher_cache.storage.atomic import write_atomic
from teacher_cache.storage.jsonl import Journal
from teacher_cache.storage.output import check_output_folder, origin_of
from teacher_cache.timing import Stopwatch

SAMPLES = 8
"""Images in the sections about the tokens."""
RESAMPLES = 1000
TIMED_ROUNDS = 7


@dataclass(frozen=True)
class Baselines:
    """Run folders or bundles to compare with: the teacher, and a student trained without distillation."""

    teacher: Path | None = None
    undistilled: Path | None = None


@dataclass(frozen=True)
class _RunResults:
    """A run and its predictions on the test set. pixels: (SAMPLES, S, S, 3) uint8."""

    name: str
    raw: Bundle
    predictions: Predictions
    metrics: dict[str, dict[str, EvalMetrics]]
    pixels: Tensor
    tokens: Tokens | None


def report(
    runs: Sequence[Path],
    source: str,
    baselines: Baselines,
    out: Path,
    options: EvalOptions,
    overwrite: bool = False,
) -> Path:
    """Write the page of one or several finished runs and return its path; the details are about the first run.

    source: the test set; "" means the data.val of the first run. overwrite: also write into a folder
    that has other files. Raises RunError if a run is missing or unfinished, RecipeError or ShardError if the test
    set or the folder cannot be used.
    """
    journals = {run.name: _journal(run) for run in runs}
    if len(journals) < len(runs):
        raise RunError(
            "two runs have the same folder name, which identifies a run on the page; rename one of the folders"
        )
    origin = origin_of("report", list(runs), source, asdict(baselines))
    check_output_folder(out, "--out", PAGE_NAME, origin, overwrite)
    card = load_card(network_folder(runs[0]))
    shards = source or str(card.recipe.get("data", {}).get("val", ""))
    if not shards:
        raise RunError(f"the recipe of run '{runs[0]}' has no data.val; give --data SHARDS")
    test_set = open_test_set(shards, card)

    compared = {
        name: _predictions(open_bundle(path, options.device), test_set, options)
        for name, path in (("teacher", baselines.teacher), ("undistilled", baselines.undistilled))
        if path
    }
    records = spread(test_set.index, SAMPLES)
    results = [_read_run(run, test_set, records, options) for run in runs]
    speeds = _speeds(results, options.batch)
    parts = [_summary(results, speeds, compared, len(card.classes)), *_learning(journals)]
    if len(results[0].predictions.readouts["raw"]) > 1:
        parts.append(_heads(results[0]))
    parts.append(_disagreement(results[0], compared))
    parts += [_classes(results[0], card.classes), _reliability(results[0]), *_tokens(results, test_set, records)]
    if len(runs) > 1:
        points = {
            result.name: (speeds[result.name], _fused(result.metrics["raw"]).top1.value) for result in results
        }
        text = f"Forward passes of {options.batch} images on {options.device}, without decoding."
        parts.append(Part("throughput", "Throughput against accuracy", text, plots.throughput(points)))
    count = len(results[0].predictions.keys)
    subtitle = f"{count:,} images of {isolate(shards)}; {card.network.name}, {len(card.classes)} classes"
    page = write_page(out, f"Report of {', '.join(map(isolate, journals))}", subtitle, parts, origin)
    log_line(f"report of {len(runs)} run{'s' if len(runs) > 1 else ''}: {page}")
    return page


def _journal(run: Path) -> Sequence[Line]:
    if not run.exists():
        raise RunError(f"run '{run}' does not exist; check the path")
    lines = Journal(run / "journal.jsonl").read()
    if not lines:
        raise RunError(f"run '{run}' has no entries in journal.jsonl; train it first")
    return lines


def _read_run(run: Path, test_set: LabeledSet, records: Sequence[Record], options: EvalOptions) -> _RunResults:
    bundles = open_raw_and_ema(run, options.device)
    raw = bundles["raw"]
    open_test_set(test_set.name, raw.card)  # refuses a run with other classes
    predictions = predict_set(bundles, test_set, options.batch, options.workers)
    metrics = {
        name: metrics_of(outcomes, len(raw.card.classes), RESAMPLES, 0)
        for name, outcomes in predictions.readouts.items()
    }
    pixels = raw.prepare_all([record.image for record in records])
    tokens = token_statistics(raw, pixels) if len(raw.card.heads) > 1 else None
    return _RunResults(run.name, raw, predictions, metrics, pixels, tokens)


def _speeds(results: Sequence[_RunResults], batch: int) -> dict[str, float]:
    """Images per second of each run's forward pass: the fastest of several rounds.

    Other processes can only slow a pass down. The rounds alternate between the runs.
    """
    best = {result.name: float("inf") for result in results}
    for repeat in range(1 + TIMED_ROUNDS):  # the first round is a warm-up
        for result in results:
            size = result.raw.card.eval.size
            pixels = torch.zeros(batch, size, size, 3, dtype=torch.uint8)
            with Stopwatch() as watch:
                result.raw.heads(pixels)
            if repeat:
                best[result.name] = min(best[result.name], watch.seconds)
    return {name: batch / seconds for name, seconds in best.items()}


def _fused(by_readout: Mapping[str, EvalMetrics]) -> EvalMetrics:
    return by_readout.get(JOINT, by_readout["class"])


def _predictions(bundle: Bundle, test_set: LabeledSet, options: EvalOptions) -> Predictions:
    """Predictions of a baseline; raises RecipeError if its classes differ."""
    open_test_set(test_set.name, bundle.card)
    return predict_set({"raw": bundle}, test_set, options.batch, options.workers)


def _summary(
    results: Sequence[_RunResults], speeds: Mapping[str, float], compared: Mapping[str, Predictions], classes: int
) -> Part:
    heading = ("run", "weights", "head", "top-1, %", "top-5, %", "NLL, nats", "calibration error, %", "images/s")
    rows = [
        (result.name, weights, readout, *_cells(metrics), f"{speeds[result.name]:,.0f}")
        for result in results
        for weights, by_readout in result.metrics.items()
        for readout, metrics in by_readout.items()
    ]
    rows += [
        (name, "raw", readout, *_cells(metrics), "-")
        for name, predictions in compared.items()
        for readout, metrics in metrics_of(predictions.readouts["raw"], classes, RESAMPLES, 0).items()
    ]
    text = "The 95 % bootstrap intervals are in brackets."
    return Part("summary", "Metrics", text, table=(heading, *rows))


def _cells(metrics: EvalMetrics) -> tuple[str, str, str, str]:
    return _cell(metrics.top1), _cell(metrics.top5), _cell(metrics.nll, 3), _cell(metrics.calibration)


def _cell(metric: Metric | None, digits: int = 2) -> str:
    if metric is None:
        return "-"
    return f"{metric.value:.{digits}f} ({metric.low:.{digits}f} to {metric.high:.{digits}f})"


def _learning(journals: Mapping[str, Sequence[Line]]) -> Iterator[Part]:
    text = "Loss on the true labels, after mixing and smoothing, and accuracy on the validation images."
    yield Part("curves", "Training", text, plots.curves(journals))
    text = "Learning rate, training speed, and share of the time spent waiting for data, by epoch."
    yield Part("pace", "Learning rate and speed", text, plots.speed_curves(journals))


def _heads(result: _RunResults) -> Part:
    top1 = {
        weights: {
            readout: (metrics.top1.value, metrics.top1.low, metrics.top1.high)
            for readout, metrics in by_readout.items()
        }
        for weights, by_readout in result.metrics.items()
    }
    text = (
        f"Run {isolate(result.name)}: each head alone, the sum of their softmax outputs, and the mean of their "
        "logits."
    )
    return Part("heads", "Accuracy of the heads", text, plots.heads(top1))


def _disagreement(result: _RunResults, compared: Mapping[str, Predictions]) -> Part:
    classes = {"truth": result.predictions.truth.int().argmax(dim=1)}
    for name, predictions in compared.items():
        by_readout = predictions.readouts["raw"]
        by_key = dict(
            zip(predictions.keys, by_readout.get(JOINT, by_readout["class"]).predicted.tolist(), strict=True)
        )
        classes[name] = torch.tensor([by_key[key] for key in result.predictions.keys])
    for readout, outcome in result.predictions.readouts["raw"].items():
        if readout != "logit-mean":
            classes["joint" if readout == JOINT else readout] = outcome.predicted
    text = (
        "Share of images for which two classifiers predict different classes. "
        "If an image has several labels, the first one counts as the truth."
    )
    return Part(
        "disagreement", "Disagreement", text, plots.disagreement(list(classes), torch.stack([*classes.values()]))
    )


def _classes(result: _RunResults, classes: Sequence[str]) -> Part:
    outcomes = {
        readout: outcome
        for readout, outcome in result.predictions.readouts["raw"].items()
        if readout != "logit-mean"
    }
    label = result.predictions.truth.int().argmax(dim=1)
    text = f"Run {isolate(result.name)}, sorted by the accuracy of the last readout in the legend, lowest first."
    return Part("classes", "Accuracy by class", text, plots.per_class(classes, label, outcomes))


def _reliability(result: _RunResults) -> Part:
    errors = {readout: metrics.calibration.value for readout, metrics in result.metrics["raw"].items()}
    text = "Accuracy by confidence; on the dashed line both are equal, below it the network is overconfident."
    return Part("reliability", "Reliability", text, plots.reliability(result.predictions.readouts["raw"], errors))


def _tokens(results: Sequence[_RunResults], test_set: LabeledSet, records: Sequence[Record]) -> Iterator[Part]:
    cosine = {result.name: result.tokens.cosine for result in results if result.tokens}
    if cosine:
        text = "Mean over sample images. The DeiT paper reports 0.06 at the input and 0.93 at the last layer."
        yield Part("cosine", "Class and distillation token", text, plots.cosines(cosine))
    first = results[0]
    if first.tokens:
        label = torch.tensor([record.label for record in records])
        classes = first.raw.card.classes
        truth = test_set.truth([record.key for record in records], label, len(classes))
        heads = first.raw.heads(first.pixels)
        captions = [
            f"{' or '.join(classes[int(index)] for index in row.nonzero()[:, 0]) or 'no label'}\n"
            f"class: {classes[int(by_class.argmax())]}\ndistill: {classes[int(by_distill.argmax())]}"
            for row, by_class, by_distill in zip(truth, *heads, strict=True)
        ]
        text = "Attention from each token to the patches in the last block, mean over its heads; bright is high."
        yield Part(
            "attention",
            "Attention of the tokens",
            text,
            plots.attention_sheet(first.pixels, first.tokens.attention, captions),
        )


def draw_curves(runs: Mapping[str, Path], path: Path) -> None:
    """Plot loss and top-1 by epoch of several runs into a PNG file. Raises RunError if a run has no journal."""
    figure = plots.curves({name: _journal(run) for name, run in runs.items()})
    write_atomic(path, render_png(figure))
