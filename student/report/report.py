"""`limbeck report`: what runs have learned, on one page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from student.bundle.bundle import Bundle, open_bundle, open_raw_and_ema
from student.evaluation.metrics import Interval, Metrics, metrics_of
from student.evaluation.predict import JOINT, Predictions, predict_set
from student.evaluation.test_set import LabelledSet, open_test_set
from student.report import plots as figures
from student.report.html_page import Part, write_page
from student.report.plots import Line
from student.report.tokens import Tokens, watch_tokens
from teacher_cache.console import log_line
from teacher_cache.data.shards import Record, spread
from teacher_cache.errors import RunError
from teacher_cache.models.card import load_card
from teacher_cache.models.run_folder import network_folder
from teacher_cache.storage.atomic import atomic_file
from teacher_cache.storage.jsonl import Journal
from teacher_cache.timing import Stopwatch

SAMPLES = 8
RESAMPLES = 1000
TIMED_ROUNDS = 7


@dataclass(frozen=True)
class Baselines:
    """Networks the run is compared with, as run folders or bundles: its teacher, and a student not distilled."""

    teacher: Path | None = None
    undistilled: Path | None = None


@dataclass(frozen=True)
class EvalOptions:
    """How the report is computed. batch: images at a time. workers: processes that decode."""

    device: torch.device
    batch: int = 64
    workers: int = 1


@dataclass(frozen=True)
class _RunResults:
    """A run, and what it said of the test set."""

    name: str
    raw: Bundle
    answers: Predictions
    metrics: dict[str, dict[str, Metrics]]
    pixels: Tensor
    tokens: Tokens | None


def report(runs: Sequence[Path], place: str, beside: Baselines, out: Path, machine: EvalOptions) -> Path:
    """Write the page of one or several finished runs; the first is the one that is looked into.

    place: the test set; "" takes the first run's data.val. Raises RunError where a run is not there or not
    finished, RecipeError or ShardError where the set does not fit.
    """
    journals = {run.name: _journal(run) for run in runs}
    if len(journals) < len(runs):
        raise RunError("two of the runs have the same folder name; rename one, as the page tells them apart by it")
    first = load_card(network_folder(runs[0]))
    where = place or str(first.recipe.get("data", {}).get("val", ""))
    if not where:
        raise RunError(f"run '{runs[0]}' names no validation shards; give --data SHARDS")
    images = open_test_set(where, first)

    others = {
        name: _predictions(open_bundle(path, machine.device), images, machine)
        for name, path in (("teacher", beside.teacher), ("undistilled", beside.undistilled))
        if path
    }
    records = spread(images.index, SAMPLES)
    seen = [_look(run, images, records, machine) for run in runs]
    speeds = _speeds(seen, machine.batch)
    parts = [_summary(seen, speeds, others, len(first.classes)), *_learning(journals)]
    if len(seen[0].answers.readouts["raw"]) > 1:
        parts.append(_heads(seen[0]))

    parts.append(_disagreement(seen[0], others))
    parts += [_classes(seen[0], first.classes), _reliability(seen[0]), *_tokens(seen, images, records)]
    if len(runs) > 1:
        points = {one.name: (speeds[one.name], _joint(one.metrics["raw"]).top1.value) for one in seen}
        text = f"Forward passes of {machine.batch} images on {machine.device}; decoding is left out."
        parts.append(Part("throughput", "Throughput against accuracy", text, figures.throughput(points)))
    subtitle = (
        f"{len(seen[0].answers.keys):,} images of {where}; {first.network.name}, {len(first.classes)} classes"
    )
    page = write_page(out, f"Report of {', '.join(journals)}", subtitle, parts)
    log_line(f"report of {len(runs)} run{'s' if len(runs) > 1 else ''}: {page}")
    return page


def _journal(run: Path) -> Sequence[Line]:
    if not run.exists():
        raise RunError(f"no run at '{run}'; check the path")
    lines = Journal(run / "journal.jsonl").read()
    if not lines:
        raise RunError(f"run '{run}' has no journal to draw; train it first")
    return lines


def _look(run: Path, images: LabelledSet, records: Sequence[Record], machine: EvalOptions) -> _RunResults:
    bundles = open_raw_and_ema(run, machine.device)
    raw = bundles["raw"]
    open_test_set(images.name, raw.card)  # for its check: a run of other classes has no place beside these
    answers = predict_set(bundles, images, machine.batch, machine.workers)
    metrics = {
        name: metrics_of(ways, len(raw.card.classes), RESAMPLES, 0) for name, ways in answers.readouts.items()
    }
    pixels = raw.prepare_all([record.image for record in records])
    tokens = watch_tokens(raw, pixels) if len(raw.card.heads) > 1 else None
    return _RunResults(run.name, raw, answers, metrics, pixels, tokens)


def _speeds(seen: Sequence[_RunResults], batch: int) -> dict[str, float]:
    """Images a second of each run's forward pass: the best of rounds by turns, as other work only slows one."""
    best = {one.name: float("inf") for one in seen}
    for number in range(1 + TIMED_ROUNDS):  # the first warms up
        for one in seen:
            size = one.raw.card.eval.size
            pixels = torch.zeros(batch, size, size, 3, dtype=torch.uint8)
            with Stopwatch() as watch:
                one.raw.heads(pixels)
            if number:
                best[one.name] = min(best[one.name], watch.seconds)
    return {name: batch / seconds for name, seconds in best.items()}


def _joint(ways: Mapping[str, Metrics]) -> Metrics:
    return ways.get(JOINT, ways["class"])


def _predictions(bundle: Bundle, images: LabelledSet, machine: EvalOptions) -> Predictions:
    """Of a network that the runs are held against; raises RecipeError for one of other classes."""
    open_test_set(images.name, bundle.card)
    return predict_set({"raw": bundle}, images, machine.batch, machine.workers)


def _summary(
    seen: Sequence[_RunResults], speeds: Mapping[str, float], others: Mapping[str, Predictions], classes: int
) -> Part:
    heading = ("run", "weights", "head", "top-1, %", "top-5, %", "NLL, nats", "calibration error, %", "images/s")
    rows = [
        (one.name, weights, way, *_cells(told), f"{speeds[one.name]:,.0f}")
        for one in seen
        for weights, ways in one.metrics.items()
        for way, told in ways.items()
    ]
    rows += [
        (name, "raw", way, *_cells(told), "-")
        for name, answers in others.items()
        for way, told in metrics_of(answers.readouts["raw"], classes, RESAMPLES, 0).items()
    ]
    text = "In brackets the interval that holds 95 % of the bootstrap's resamples of the images."
    return Part("summary", "Figures", text, table=(heading, *rows))


def _cells(told: Metrics) -> tuple[str, str, str, str]:
    return _cell(told.top1), _cell(told.top5), _cell(told.nll, 3), _cell(told.calibration)


def _cell(figure: Interval | None, digits: int = 2) -> str:
    if figure is None:
        return "-"
    return f"{figure.value:.{digits}f} ({figure.low:.{digits}f} to {figure.high:.{digits}f})"


def _learning(journals: Mapping[str, Sequence[Line]]) -> Iterator[Part]:
    text = "Loss on the true labels of the training views, mixed and smoothed; accuracy on validation images."
    yield Part("curves", "Training", text, figures.curves(journals))
    text = "What each epoch had: the learning rate, its speed, and the share of its time spent waiting for data."
    yield Part("pace", "Learning rate and speed", text, figures.pace(journals))


def _heads(one: _RunResults) -> Part:
    top1 = {
        weights: {way: (told.top1.value, told.top1.low, told.top1.high) for way, told in ways.items()}
        for weights, ways in one.metrics.items()
    }
    text = f"Run {one.name}: each head alone, the sum of their softmax outputs, and the mean of their logits."
    return Part("heads", "Accuracy of the heads", text, figures.heads(top1))


def _disagreement(one: _RunResults, others: Mapping[str, Predictions]) -> Part:
    answers = {"truth": one.answers.truth.int().argmax(dim=1)}
    for name, told in others.items():
        ways = told.readouts["raw"]
        by_key = dict(zip(told.keys, ways.get(JOINT, ways["class"]).answer.tolist(), strict=True))
        answers[name] = torch.tensor([by_key[key] for key in one.answers.keys])
    for way, verdicts in one.answers.readouts["raw"].items():
        if way != "logit-mean":
            answers["joint" if way == JOINT else way] = verdicts.answer
    text = "How often two of them give different answers; of an image with several labels, the first is the truth."
    return Part(
        "disagreement", "Disagreement", text, figures.disagreement(list(answers), torch.stack([*answers.values()]))
    )


def _classes(one: _RunResults, classes: Sequence[str]) -> Part:
    ways = {way: told for way, told in one.answers.readouts["raw"].items() if way != "logit-mean"}
    label = one.answers.truth.int().argmax(dim=1)
    text = f"Run {one.name}; the hardest class for the last of them comes first."
    return Part("classes", "Accuracy by class", text, figures.per_class(classes, label, ways))


def _reliability(one: _RunResults) -> Part:
    errors = {way: told.calibration.value for way, told in one.metrics["raw"].items()}
    text = "How often an answer is right, by how sure it is; on the dashed line it is as right as it is sure."
    return Part("reliability", "Reliability", text, figures.reliability(one.answers.readouts["raw"], errors))


def _tokens(seen: Sequence[_RunResults], images: LabelledSet, records: Sequence[Record]) -> Iterator[Part]:
    cosine = {one.name: one.tokens.cosine for one in seen if one.tokens}
    if cosine:
        text = "Mean over sample images; DeiT's own rises from 0.06 at the input to 0.93 at the last layer."
        yield Part("cosine", "The two tokens", text, figures.cosines(cosine))
    first = seen[0]
    if first.tokens:
        label = torch.tensor([record.label for record in records])
        classes = first.raw.card.classes
        truth = images.truth([record.key for record in records], label, len(classes))
        said = first.raw.heads(first.pixels)
        words = [
            f"{' or '.join(classes[int(one)] for one in right.nonzero()[:, 0]) or 'no label'}\n"
            f"class: {classes[int(by_class.argmax())]}\ndistill: {classes[int(by_distill.argmax())]}"
            for right, by_class, by_distill in zip(truth, *said, strict=True)
        ]
        text = "The last block's attention from each token to the patches, the mean of its heads; bright is much."
        yield Part(
            "attention",
            "Where the tokens look",
            text,
            figures.attention_sheet(first.pixels, first.tokens.looks, words),
        )


def draw_curves(runs: Mapping[str, Path], path: Path) -> None:
    """Plot loss and top-1 by epoch of several runs, by name, into a PNG. Raises RunError for an empty run."""
    figure = figures.curves({name: _journal(run) for name, run in runs.items()})
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")
