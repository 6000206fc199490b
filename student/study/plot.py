"""Plots of studies."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from student.study.stats import Difference, spread
from teacher_cache.console import count_of
from teacher_cache.figure import render_png
from teacher_cache.storage.atomic import write_atomic

if TYPE_CHECKING:
    from student.study.trials import Trials

DPI = 110
SHOWN_FROM = 0.2
"""Share of the epochs after which accuracies set the range of the y axis."""
COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:cyan")


def draw_seeds(trials: "Trials", path: Path) -> None:
    """Histogram of the final accuracies of all seeds, and their range by epoch."""
    figure, (left, right) = _figure(2)
    values, summary = trials.values, spread(trials.values)
    bins = np.histogram_bin_edges(values, "auto") if np.ptp(values) else np.array([-0.5, 0.5]) + values[0]
    left.hist(values, bins=list(bins), color=COLORS[0], alpha=0.35, edgecolor="white")
    rug: Any = left.get_xaxis_transform()
    left.plot(values, [0.02] * len(values), "|", color=COLORS[0], markersize=9, transform=rug, label="one seed")
    left.axvline(summary.mean, color="black", linewidth=1, label=f"mean {summary.mean:.2f}")
    if summary.std:
        left.axvspan(
            summary.mean - summary.std,
            summary.mean + summary.std,
            color="black",
            alpha=0.08,
            linewidth=0,
            zorder=0,
            label=f"± std {summary.std:.2f}",
        )
    left.set(
        xlabel="top-1 after the last epoch, %",
        ylabel="seeds",
        title=f"{trials.label}, {count_of(summary.n, 'seed')}",
    )
    left.yaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_ylim(bottom=0, top=left.get_ylim()[1] * 1.3)  # space for the legend
    left.legend(fontsize="small", ncols=3, loc="upper center")
    _draw_band(right, trials, COLORS[0])
    _finish_epochs(right, [trials])
    _save(figure, path)


def draw_comparison(arms: "Sequence[Trials]", path: Path) -> None:
    """Final accuracies of both recipes with the intervals of their means, and their ranges by epoch."""
    figure, (left, right) = _figure(2)
    for position, (trials, color) in enumerate(zip(arms, COLORS, strict=False)):
        summary = spread(trials.values)
        left.plot(
            _side_by_side(trials.values, position), trials.values, "o", color=color, alpha=0.45, markeredgewidth=0
        )
        low, high = summary.interval or (summary.mean, summary.mean)
        error = [[summary.mean - low], [high - summary.mean]]
        left.errorbar(position + 0.25, summary.mean, error, fmt="s", color=color, capsize=4)
        _draw_band(right, trials, color)
    left.set_xticks(range(len(arms)), [f"{trials.label}\n{len(trials.values)} seeds" for trials in arms])
    left.set(xlim=(-0.5, len(arms) - 0.5), ylabel="top-1 after the last epoch, %")
    left.set_title("seeds (dots), mean with 95 % interval (squares)", fontsize="medium")
    _finish_epochs(right, arms)
    _save(figure, path)


def draw_ablation(base: "Trials", effects: Mapping[str, Difference], path: Path) -> None:
    """Effect of each change with its interval, and the standard deviation of the base's seeds."""
    figure = Figure(figsize=(8, 1.6 + 0.45 * max(len(effects), 2)), dpi=DPI, layout="constrained")
    axes: Any = figure.subplots()
    noise = spread(base.values).std
    if noise:
        axes.axvspan(
            -noise, noise, color="black", alpha=0.08, linewidth=0, label=f"± std of the base's seeds: {noise:.2f}"
        )
    axes.axvline(0, color="black", linewidth=1)
    for position, effect in enumerate(effects.values()):
        if effect.interval:
            axes.plot(effect.interval, (position, position), color=COLORS[0], linewidth=2, solid_capstyle="butt")
        axes.plot(effect.mean, position, "o", color=COLORS[0])
    axes.set_yticks(range(len(effects)), list(effects))
    axes.set(ylim=(len(effects) - 0.4, -0.6), xlabel="effect on top-1 in points, with 95 % interval")
    axes.set_title(f"one change at a time; base: {spread(base.values).mean:.2f} %", fontsize="medium")
    axes.grid(alpha=0.3, axis="x")
    if noise:
        figure.legend(fontsize="small", loc="outside lower right")
    _save(figure, path)


def draw_resolution(curves: Mapping[str, Mapping[float, Mapping[int, float]]], size: int, path: Path) -> None:
    """Top-1 by test size, one panel per test set and one line per crop ratio.

    curves: percent by test set, crop ratio and size in pixels. size: the run's own.
    """
    figure, panels = _figure(len(curves))
    for axes, (name, crops) in zip(panels, curves.items(), strict=True):
        for (crop, points), color in zip(crops.items(), COLORS, strict=False):
            axes.plot(list(points), list(points.values()), "o-", color=color, markersize=4, label=f"crop {crop:g}")
        axes.axvline(size, color="black", linewidth=1, linestyle=":", zorder=0)
        sizes = sorted({tick for points in crops.values() for tick in points})
        axes.set_xticks(sizes, [str(tick) for tick in sizes], fontsize="small")
        axes.set(xlabel="test size, pixels (dotted: the run's own)", title=name)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    panels[0].set_ylabel("top-1, %")
    for axes in panels[1:]:
        axes.sharey(panels[0])
        axes.autoscale()
    _save(figure, path)


def _figure(panels: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(max(5.2 * panels, 6), 4), dpi=DPI, layout="constrained")
    axes: Any = figure.subplots(1, panels, squeeze=False)
    return figure, list(axes[0])


def _draw_band(axes: Axes, trials: "Trials", color: str) -> None:
    from student.study.stats import epoch_spreads

    spreads = epoch_spreads(trials.curves)
    epochs = list(spreads)
    mean = np.array([epoch_spread.mean for epoch_spread in spreads.values()])
    std = np.array([epoch_spread.std or 0.0 for epoch_spread in spreads.values()])
    low, high = ([getattr(epoch_spread, name) for epoch_spread in spreads.values()] for name in ("min", "max"))
    axes.fill_between(epochs, low, high, color=color, alpha=0.15, linewidth=0)
    one_std = np.maximum(mean - std, low), np.minimum(mean + std, high)
    axes.fill_between(epochs, *one_std, color=color, alpha=0.3, linewidth=0)
    axes.plot(epochs, mean, color=color, marker="o" if len(epochs) < 15 else "", markersize=4, label=trials.label)


def _finish_epochs(axes: Axes, arms: "Sequence[Trials]") -> None:
    """Set labels and limits. The first epochs are cut off, because they would hide the spread of the seeds."""
    axes.set(xlabel="epoch", ylabel="top-1, %")
    axes.set_title("by epoch: mean, ± std, minimum to maximum", fontsize="medium")
    shown = [
        value
        for trials in arms
        for curve in trials.curves.values()
        for epoch, value in curve.items()
        if epoch >= SHOWN_FROM * max(curve)
    ]
    margin = 0.1 * (max(shown) - min(shown)) or 0.5
    axes.set_ylim(min(shown) - margin, max(shown) + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="lower right")


def _side_by_side(values: Sequence[float], position: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """x positions next to each other, so that the dots do not overlap."""
    return position - 0.12 + 0.24 * np.arange(len(values)) / max(len(values) - 1, 1)


def _save(figure: Figure, path: Path) -> None:
    write_atomic(path, render_png(figure))
