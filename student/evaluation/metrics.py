"""What many answers are worth: top-1, top-5, negative log-likelihood, calibration error, and how sure that is."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from student.model.student import Heads, fuse
from teacher_cache.rng import generator

Floats = NDArray[np.float64]

BINS = 15
"""Of confidence, for the calibration error; torchmetrics' default."""
TOP_K = 5
RESAMPLES_PER_CHUNK = 50


@dataclass(frozen=True)
class Outcomes:
    """What one way of answering said of N images that have a truth.

    answer: (N,) int64, its class. confidence: (N,) float32, that class's probability. right, near: (N,) bool,
    whether the answer, or one of the first five, is true. nll: (N,) float64 nats, of all true classes together.
    """

    predicted: Tensor
    confidence: Tensor
    correct: Tensor
    in_top5: Tensor
    nll: Tensor

    @classmethod
    def join(cls, parts: "list[Outcomes]") -> "Outcomes":
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


@dataclass(frozen=True)
class Metric:
    """A figure and the bounds that hold 95 % of its bootstrap resamples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class EvalMetrics:
    """top1, top5 and calibration (the expected calibration error) in percent, nll in nats.

    top5 is None where there are no more than five classes.
    """

    top1: Metric
    top5: Metric | None
    nll: Metric
    calibration: Metric


def score(heads: Heads, readout: str, truth: Tensor) -> Outcomes:
    """heads: two (B, C) float32 logits. how: a fusion. truth: (B, C) bool, a true class in each row."""
    probabilities = fuse(heads, readout)
    predicted = probabilities.argmax(dim=1)
    top5 = probabilities.topk(min(TOP_K, probabilities.shape[1]), dim=1).indices
    precise = fuse(Heads(*(logits.double() for logits in heads)), readout)
    true_probability = (precise * truth).sum(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    return Outcomes(
        predicted,
        probabilities.gather(1, predicted[:, None])[:, 0],
        truth.gather(1, predicted[:, None])[:, 0],
        truth.gather(1, top5).any(dim=1),
        -true_probability.log(),
    )


def metrics_of(
    outcomes: Mapping[str, Outcomes], classes: int, resamples: int, seed: int
) -> dict[str, EvalMetrics]:
    """The metrics of each way of answering the same N images.

    All ways are judged on the same resamples of the images, which the seed names.
    """
    columns = np.concatenate([_columns(outcome) for outcome in outcomes.values()], axis=1)
    resampled = _summary(_resampled_means(columns, resamples, seed).reshape(resamples, len(outcomes), -1))
    low, high = np.quantile(resampled, (0.025, 0.975), axis=0)
    metrics = {}
    for row, (name, outcome) in enumerate(outcomes.items()):
        top1, top5, nll, error = (
            Metric(value, float(low[row, column]), float(high[row, column]))
            for column, value in enumerate(_values(outcome))
        )
        metrics[name] = EvalMetrics(top1, top5 if classes > TOP_K else None, nll, error)
    return metrics


def _values(outcome: Outcomes) -> tuple[float, float, float, float]:
    # It brings scipy.signal, which takes as long to import as all else together.
    from torchmetrics.functional.classification import binary_calibration_error

    error = binary_calibration_error(outcome.confidence, outcome.correct.int(), n_bins=BINS)
    correct, in_top5 = (100 * float(flags.double().mean()) for flags in (outcome.correct, outcome.in_top5))
    return correct, in_top5, float(outcome.nll.mean()), 100 * float(error)


def bins_of(confidence: Tensor) -> Tensor:
    """(N,) int64: the bin of each confidence, as torchmetrics has them: the last is for exactly one."""
    return torch.bucketize(confidence, torch.linspace(0, 1, BINS + 1), right=True) - 1


def _columns(outcome: Outcomes) -> Floats:
    """(N, 3 + bins) whose means hold the metrics: the calibration error is the sum of the last ones' sizes."""
    gap = (outcome.confidence - outcome.correct.float())[:, None]
    by_bin = torch.nn.functional.one_hot(bins_of(outcome.confidence), BINS + 1) * gap
    flags_and_nll = torch.stack([outcome.correct.double(), outcome.in_top5.double(), outcome.nll], dim=1)
    columns: Floats = torch.cat([flags_and_nll, by_bin.double()], dim=1).numpy()
    return columns


def _summary(means: Floats) -> Floats:
    """(..., 3 + bins) means to (..., 4) metrics."""
    error = np.abs(means[..., 3:]).sum(axis=-1)
    return np.stack([100 * means[..., 0], 100 * means[..., 1], means[..., 2], 100 * error], axis=-1)


def _resampled_means(columns: Floats, resamples: int, seed: int) -> Floats:
    """(resamples, M): means of the columns (N, M) over N rows drawn with replacement."""
    rows = len(columns)
    means = []
    for first in range(0, resamples, RESAMPLES_PER_CHUNK):
        counts = [
            np.bincount(generator("bootstrap", seed, number).integers(0, rows, rows), minlength=rows)
            for number in range(first, min(first + RESAMPLES_PER_CHUNK, resamples))
        ]
        means.append(np.stack(counts).astype(np.float64) @ columns / rows)
    return np.concatenate(means)
