"""Statistics of few runs: spreads, differences with intervals, and the number of runs that a difference needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy import stats

from teacher_cache.rng import generator

CONFIDENCE = 0.95
POWER = 0.8
"""Probability of detecting a true difference."""
RESAMPLES = 9999
MAX_RUNS = 1_000_000

Interval = tuple[float, float]


@dataclass(frozen=True)
class Spread:
    """Statistics of n values in percent. std: with n - 1. interval: of the mean, Student's t, clipped to 0..100.

    std and interval: None for a single value.
    """

    n: int
    mean: float
    std: float | None
    min: float
    max: float
    interval: Interval | None


@dataclass(frozen=True)
class Difference:
    """mean: second mean minus first mean. p, interval: Welch's t-test. bootstrap: percentile interval.

    p, interval, bootstrap: None without variance (a single value, or only equal values).
    """

    mean: float
    p: float | None
    interval: Interval | None
    bootstrap: Interval | None

    @property
    def is_significant(self) -> bool:
        """Whether both intervals exclude zero."""
        return all(part is not None and part[0] * part[1] > 0 for part in (self.interval, self.bootstrap))


def spread(values: Sequence[float]) -> Spread:
    """Statistics of at least one value in 0..100."""
    n, mean = len(values), float(np.mean(values))
    low, high = float(min(values)), float(max(values))
    if n == 1:
        return Spread(n, mean, None, low, high, None)
    std = float(np.std(values, ddof=1))
    half_width = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * std / sqrt(n)
    return Spread(n, mean, std, low, high, (max(0.0, mean - half_width), min(100.0, mean + half_width)))


def difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Second minus first, at least one value each. The runs are treated as independent."""
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
    """Standard error of a difference of means, and its degrees of freedom (Welch and Satterthwaite)."""
    parts = [variance / n for variance, n in zip(variances, runs, strict=True)]
    degrees = sum(parts) ** 2 / sum(part**2 / (n - 1) for part, n in zip(parts, runs, strict=True))
    return float(sqrt(sum(parts))), float(degrees)


def power(runs: int, gap: float, first_std: float, second_std: float) -> float:
    """Probability that Welch's test with `runs` runs of each detects a difference of `gap` between the means."""
    error, degrees = _welch([first_std**2, second_std**2], [runs, runs])
    critical, noncentrality = stats.t.ppf((1 + CONFIDENCE) / 2, degrees), abs(gap) / error
    # scipy returns NaN far from zero; the probability is 1 in the limit.
    return float(np.nan_to_num(stats.nct.sf(critical, degrees, noncentrality), nan=1.0))


def runs_needed(gap: float, first_std: float, second_std: float) -> int | None:
    """Smallest number of runs of each that detects a gap with POWER; None above MAX_RUNS, or if the gap is 0.

    The result is as rough as the stds, which count as the true ones.
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
    """Adjust p values for multiple tests (Holm's method). None stays None."""
    order = sorted((p, position) for position, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, position) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        adjusted[position] = largest
    return adjusted


def sampling_error(accuracy: float, images: int) -> float:
    """Binomial standard error, in points, of an accuracy in percent on `images` images."""
    return sqrt(accuracy * (100 - accuracy) / images)


def epoch_spreads(curves: Mapping[int, Mapping[int, float]]) -> dict[int, Spread]:
    """Spread over the seeds after each evaluated epoch."""
    epochs = sorted({epoch for curve in curves.values() for epoch in curve})
    return {epoch: spread([curve[epoch] for curve in curves.values() if epoch in curve]) for epoch in epochs}
