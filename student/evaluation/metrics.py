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
TOP = 5
RESAMPLES_AT_ONCE = 50


@dataclass(frozen=True)
class Outcomes:
    """What one way of answering said of N images that have a truth.

    answer: (N,) int64, its class. confidence: (N,) float32, that class's probability. right, near: (N,) bool,
    whether the answer, or one of the first five, is true. nll: (N,) float64 nats, of all true classes together.
    """

    answer: Tensor
    confidence: Tensor
    right: Tensor
    near: Tensor
    nll: Tensor

    @classmethod
    def join(cls, parts: "list[Outcomes]") -> "Outcomes":
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


@dataclass(frozen=True)
class Interval:
    """A figure and the bounds that hold 95 % of its bootstrap resamples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Metrics:
    """top1, top5 and calibration (the expected calibration error) in percent, nll in nats.

    top5 is None where there are no more than five classes.
    """

    top1: Interval
    top5: Interval | None
    nll: Interval
    calibration: Interval


def score(heads: Heads, how: str, truth: Tensor) -> Outcomes:
    """heads: two (B, C) float32 logits. how: a fusion. truth: (B, C) bool, a true class in each row."""
    likely = fuse(heads, how)
    answer = likely.argmax(dim=1)
    first = likely.topk(min(TOP, likely.shape[1]), dim=1).indices
    exact = fuse(Heads(*(logits.double() for logits in heads)), how)
    of_truth = (exact * truth).sum(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    return Outcomes(
        answer,
        likely.gather(1, answer[:, None])[:, 0],
        truth.gather(1, answer[:, None])[:, 0],
        truth.gather(1, first).any(dim=1),
        -of_truth.log(),
    )


def metrics_of(ways: Mapping[str, Outcomes], classes: int, resamples: int, seed: int) -> dict[str, Metrics]:
    """The metrics of each way of answering the same N images.

    All ways are judged on the same resamples of the images, which the seed names.
    """
    columns = np.concatenate([_columns(verdicts) for verdicts in ways.values()], axis=1)
    drawn = _summary(_resampled_means(columns, resamples, seed).reshape(resamples, len(ways), -1))
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    found = {}
    for place, (name, verdicts) in enumerate(ways.items()):
        top1, top5, nll, error = (
            Interval(value, float(low[place, metric]), float(high[place, metric]))
            for metric, value in enumerate(_values(verdicts))
        )
        found[name] = Metrics(top1, top5 if classes > TOP else None, nll, error)
    return found


def _values(verdicts: Outcomes) -> tuple[float, float, float, float]:
    # It brings scipy.signal, which takes as long to import as all else together.
    from torchmetrics.functional.classification import binary_calibration_error

    error = binary_calibration_error(verdicts.confidence, verdicts.right.int(), n_bins=BINS)
    right, near = (100 * float(flags.double().mean()) for flags in (verdicts.right, verdicts.near))
    return right, near, float(verdicts.nll.mean()), 100 * float(error)


def bins_of(confidence: Tensor) -> Tensor:
    """(N,) int64: the bin of each confidence, as torchmetrics has them: the last is for exactly one."""
    return torch.bucketize(confidence, torch.linspace(0, 1, BINS + 1), right=True) - 1


def _columns(verdicts: Outcomes) -> Floats:
    """(N, 3 + bins) whose means hold the metrics: the calibration error is the sum of the last ones' sizes."""
    gap = (verdicts.confidence - verdicts.right.float())[:, None]
    by_bin = torch.nn.functional.one_hot(bins_of(verdicts.confidence), BINS + 1) * gap
    plain = torch.stack([verdicts.right.double(), verdicts.near.double(), verdicts.nll], dim=1)
    whole: Floats = torch.cat([plain, by_bin.double()], dim=1).numpy()
    return whole


def _summary(means: Floats) -> Floats:
    """(..., 3 + bins) means to (..., 4) metrics."""
    error = np.abs(means[..., 3:]).sum(axis=-1)
    return np.stack([100 * means[..., 0], 100 * means[..., 1], means[..., 2], 100 * error], axis=-1)


def _resampled_means(columns: Floats, resamples: int, seed: int) -> Floats:
    """(resamples, M): means of the columns (N, M) over N rows drawn with replacement."""
    rows = len(columns)
    means = []
    for first in range(0, resamples, RESAMPLES_AT_ONCE):
        counts = [
            np.bincount(generator("bootstrap", seed, number).integers(0, rows, rows), minlength=rows)
            for number in range(first, min(first + RESAMPLES_AT_ONCE, resamples))
        ]
        means.append(np.stack(counts).astype(np.float64) @ columns / rows)
    return np.concatenate(means)
