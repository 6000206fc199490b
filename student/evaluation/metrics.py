"""Metrics of predictions: top-1, top-5, negative log-likelihood, calibration error, with bootstrap intervals."""

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
"""Confidence bins of the calibration error; torchmetrics' default."""
TOP_K = 5
RESAMPLES_PER_CHUNK = 50
"""Bounds the memory of the bootstrap: row counts of shape (50, N) at a time."""


@dataclass(frozen=True)
class Outcomes:
    """Predictions of one readout for N labeled images, compared with the truth.

    predicted: (N,) int64 class. confidence: (N,) float32, its probability. correct, in_top5: (N,) bool, whether
    the predicted class, or one of the five most probable classes, is a true class. nll: (N,) float64 nats, of the
    summed probability of all true classes.
    """

    predicted: Tensor
    confidence: Tensor
    correct: Tensor
    in_top5: Tensor
    nll: Tensor

    @classmethod
    def join(cls, parts: "list[Outcomes]") -> "Outcomes":
        """Concatenate the outcomes of several batches."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


@dataclass(frozen=True)
class Metric:
    """A value with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class EvalMetrics:
    """top1, top5 and calibration (expected calibration error) in percent, nll in nats.

    top5: None if the model has at most five classes.
    """

    top1: Metric
    top5: Metric | None
    nll: Metric
    calibration: Metric


def score(heads: Heads, readout: str, truth: Tensor) -> Outcomes:
    """Compare the predictions of one readout with the truth.

    heads: two (B, C) float32 logits. readout: a name that `fuse` takes. truth: (B, C) bool, with at least one true
    class in each row.
    """
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
    """Metrics of each readout, by name; all are of the same N images.

    Every readout is measured on the same bootstrap resamples, which `seed` determines.
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
    # Imported late: it imports scipy.signal, which takes as long as all other imports together.
    from torchmetrics.functional.classification import binary_calibration_error

    error = binary_calibration_error(outcome.confidence, outcome.correct.int(), n_bins=BINS)
    correct, in_top5 = (100 * float(flags.double().mean()) for flags in (outcome.correct, outcome.in_top5))
    return correct, in_top5, float(outcome.nll.mean()), 100 * float(error)


def bins_of(confidence: Tensor) -> Tensor:
    """(N,) int64 bin of each confidence, as in torchmetrics: the last bin is for exactly 1."""
    return torch.bucketize(confidence, torch.linspace(0, 1, BINS + 1), right=True) - 1


def _columns(outcome: Outcomes) -> Floats:
    """(N, 3 + bins) values whose means give the metrics; calibration is the sum of the bins' absolute means."""
    gap = (outcome.confidence - outcome.correct.float())[:, None]
    by_bin = torch.nn.functional.one_hot(bins_of(outcome.confidence), BINS + 1) * gap
    flags_and_nll = torch.stack([outcome.correct.double(), outcome.in_top5.double(), outcome.nll], dim=1)
    columns: Floats = torch.cat([flags_and_nll, by_bin.double()], dim=1).numpy()
    return columns


def _summary(means: Floats) -> Floats:
    """Convert (..., 3 + bins) means to (..., 4) metrics."""
    error = np.abs(means[..., 3:]).sum(axis=-1)
    return np.stack([100 * means[..., 0], 100 * means[..., 1], means[..., 2], 100 * error], axis=-1)


def _resampled_means(columns: Floats, resamples: int, seed: int) -> Floats:
    """(resamples, M) means of the columns (N, M), each over N rows drawn with replacement."""
    rows = len(columns)
    means = []
    for first in range(0, resamples, RESAMPLES_PER_CHUNK):
        counts = [
            np.bincount(generator("bootstrap", seed, number).integers(0, rows, rows), minlength=rows)
            for number in range(first, min(first + RESAMPLES_PER_CHUNK, resamples))
        ]
        means.append(np.stack(counts).astype(np.float64) @ columns / rows)
    return np.concatenate(means)
