"""What few runs can tell: spreads, differences with their intervals, and how many runs a difference needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy import stats

from teacher_cache.rng import generator

CONFIDENCE = 0.95
POWER = 0.8
"""The chance that a difference which is there is told."""
RESAMPLES = 9999
MAX_RUNS = 1_000_000

Interval = tuple[float, float]


@dataclass(frozen=True)
class Spread:
    """Of n values in percent. std: with n - 1. interval: of the mean, by Student's t, cut to 0..100.

    std and interval are None of a single value.
    """

    n: int
    mean: float
    std: float | None
    min: float
    max: float
    interval: Interval | None


@dataclass(frozen=True)
class Difference:
    """mean: of the second's mean less the first's. p and interval: Welch's t. bootstrap: percentile interval.

    Those three are None where the values hold no noise to measure by: a single one, or all of them equal.
    """

    mean: float
    p: float | None
    interval: Interval | None
    bootstrap: Interval | None

    @property
    def is_significant(self) -> bool:
        """Whether both intervals leave zero out."""
        return all(part is not None and part[0] * part[1] > 0 for part in (self.interval, self.bootstrap))


def spread(values: Sequence[float]) -> Spread:
    """values: at least one, each in 0 to 100."""
    n, mean = len(values), float(np.mean(values))
    low, high = float(min(values)), float(max(values))
    if n == 1:
        return Spread(n, mean, None, low, high, None)
    std = float(np.std(values, ddof=1))
    half_width = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * std / sqrt(n)
    return Spread(n, mean, std, low, high, (max(0.0, mean - half_width), min(100.0, mean + half_width)))


def difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """The second less the first, each at least one value; the runs are taken as independent."""
    mean = float(np.mean(second) - np.mean(first))
    if min(len(first), len(second)) < 2 or (np.ptp(first) == 0 and np.ptp(second) == 0):
        return Difference(mean, None, None, None)
    variances = [float(np.var(values, ddof=1)) for values in (first, second)]
    error, degrees = _welch(variances, [len(first), len(second)])
    half_width = float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, degrees))
    resampled = stats.bootstrap(
        (second, first),
        lambda b, a, axis: b.mean(axis=axis) - a.mean(axis=axis),
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=generator("bootstrap"),
    ).confidence_interval
    return Difference(
        mean, p, (mean - half_width, mean + half_width), (float(resampled.low), float(resampled.high))
    )


def _welch(variances: Sequence[float], runs: Sequence[int]) -> tuple[float, float]:
    """The standard error of a difference of means, and its degrees of freedom (Welch and Satterthwaite)."""
    parts = [variance / n for variance, n in zip(variances, runs, strict=True)]
    degrees = sum(parts) ** 2 / sum(part**2 / (n - 1) for part, n in zip(parts, runs, strict=True))
    return float(sqrt(sum(parts))), float(degrees)


def power(runs: int, gap: float, first_std: float, second_std: float) -> float:
    """The chance that Welch's test over `runs` of each tells apart means that lie `gap` apart."""
    error, degrees = _welch([first_std**2, second_std**2], [runs, runs])
    critical, noncentrality = stats.t.ppf((1 + CONFIDENCE) / 2, degrees), abs(gap) / error
    return float(
        np.nan_to_num(stats.nct.sf(critical, degrees, noncentrality), nan=1.0)
    )  # scipy's own limit, far out


def runs_needed(gap: float, first_std: float, second_std: float) -> int | None:
    """The least number of runs of each with which a gap is told with POWER; None beyond MOST_RUNS, or of no gap.

    The stds are taken for the true ones; from few runs they are rough, and so is this.
    """
    if gap == 0:
        return None
    if first_std == second_std == 0:
        return 2
    low, high = 1, 2
    while power(high, gap, first_std, second_std) < POWER:
        low, high = high, 2 * high
        if high > MAX_RUNS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, gap, first_std, second_std) >= POWER else (middle, high)
    return high


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjustment: p values as they count when so many questions are asked at once. None stays None."""
    order = sorted((p, position) for position, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, position) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        adjusted[position] = largest
    return adjusted


def sampling_error(accuracy: float, images: int) -> float:
    """Standard error, in points, of an accuracy in percent that was counted on so many images (binomial)."""
    return sqrt(accuracy * (100 - accuracy) / images)


def epoch_spreads(curves: Mapping[int, Mapping[int, float]]) -> dict[int, Spread]:
    """The spread over seeds after each epoch that was measured."""
    epochs = sorted({epoch for curve in curves.values() for epoch in curve})
    return {epoch: spread([curve[epoch] for curve in curves.values() if epoch in curve]) for epoch in epochs}
