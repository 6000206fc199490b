"""The plots of the report; each function returns a matplotlib figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from student.evaluation.metrics import BINS, Outcomes, bins_of

Line = Mapping[str, Any]
HEADS = (("class", "-"), ("distill", "--"), ("joint", ":"))
SPEED_FIELDS = (("lr", 1, "learning rate"), ("images_per_second", 1, "images/s"), ("waiting", 100, "data wait, %"))
"""Field of the journal, factor, and title of its plot."""
MAX_CLASSES = 40
"""Most classes in the plot of accuracy by class."""


def new_figure(width: float, height: float, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """Create a figure (size in inches) and its axes: one, or an array of `columns`."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    return figure, figure.subplots(1, columns, **options)


def curves(runs: Mapping[str, Sequence[Line]]) -> Figure:
    """Training loss and validation top-1 by epoch. runs: lines of the journal by run name."""
    figure, (left, right) = new_figure(11, 4, 2)
    for run, lines in runs.items():
        epochs = [line["epoch"] for line in lines]
        (curve,) = left.plot(epochs, [line["loss_class"] for line in lines], label=run)
        for field, alpha in (("accuracy", 1.0), ("accuracy_ema", 0.4)):
            evaluated = [line for line in lines if line.get(field)]
            for head, style in HEADS:
                if not evaluated or head not in evaluated[0][field]:
                    continue
                label = run if len(evaluated[0][field]) == 1 else f"{run}, {head} head"
                right.plot(
                    [line["epoch"] for line in evaluated],
                    [line[field][head] for line in evaluated],
                    style,
                    color=curve.get_color(),
                    alpha=alpha,
                    marker="." if len(evaluated) < 3 else "",
                    label=label + (", EMA" if field == "accuracy_ema" else ""),
                )
    left.set(xlabel="epoch", ylabel="loss on the true label", title="training loss")
    right.set(xlabel="epoch", ylabel="top-1, %", title="validation accuracy")
    return _finish(figure, left, right)


def speed_curves(runs: Mapping[str, Sequence[Line]]) -> Figure:
    """Learning rate, images per second, and percentage of the time spent waiting for data, by epoch."""
    fields = [
        field for field in SPEED_FIELDS if any(field[0] in line for lines in runs.values() for line in lines)
    ]
    figure, axes = new_figure(3.7 * len(fields), 3.4, len(fields), squeeze=False)
    for axis, (field, scale, title) in zip(axes[0], fields, strict=True):
        for name, lines in runs.items():
            logged = [line for line in lines if field in line]
            marker = "." if len(logged) < 3 else ""
            values = [scale * line[field] for line in logged]
            axis.plot([line["epoch"] for line in logged], values, marker=marker, label=name)
        axis.set(xlabel="epoch", title=title)
        axis.set_ylim(bottom=0)
    return _finish(figure, *axes[0])


def heads(top1: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> Figure:
    """Top-1 (value, low, high) by network, then by readout."""
    names = list(next(iter(top1.values())))
    figure, axes = new_figure(7, 3.6)
    width = 0.2
    for position, (network, by_readout) in enumerate(top1.items()):
        present = [number for number, readout in enumerate(names) if readout in by_readout]
        top1_values, low, high = np.array([by_readout[names[number]] for number in present]).T
        x = np.array(present) + (position - (len(top1) - 1) / 2) * width
        axes.errorbar(x, top1_values, (top1_values - low, high - top1_values), fmt="o", capsize=4, label=network)
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="top-1, %", title="accuracy of the heads, with 95 % intervals")
    axes.margins(x=0.15)

    return _finish(figure, axes)


def disagreement(names: Sequence[str], predictions: Tensor) -> Figure:
    """Share of images on which each pair of A classifiers differs (DeiT, table 4).

    predictions: (A, N) int64 classes.
    """
    shares = (predictions[:, None] != predictions[None]).double().mean(dim=2)
    size = 1.6 + 0.75 * len(names)
    figure, axes = new_figure(size + 1, size)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=max(1e-9, float(shares.max()) * 1.2))
    for row in range(len(names)):
        for column in range(len(names)):
            dark = float(shares[row, column]) > 0.7 * float(shares.max())
            text = f"{float(shares[row, column]):.3f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_title("share of images with different predictions")
    return figure


def cosines(runs: Mapping[str, Sequence[float]]) -> Figure:
    """Cosine of class and distillation token after each block; the first value is of the learned input tokens."""
    figure, axes = new_figure(7, 3.6)
    for name, values in runs.items():
        axes.plot(range(len(values)), values, "o-", label=name)
    layers = max(len(values) for values in runs.values())
    axes.set_xticks(range(layers), ["input", *map(str, range(1, layers))])
    axes.axhline(0, color="grey", lw=0.8)
    axes.set(xlabel="after block", ylabel="cosine", title="cosine of class and distillation token")
    axes.set_ylim(top=1.03)

    return _finish(figure, axes)


def per_class(classes: Sequence[str], label: Tensor, outcomes: Mapping[str, Outcomes]) -> Figure:
    """Top-1 of each class, lowest first, for at most MAX_CLASSES classes. label: (N,) int64 true classes."""
    counts = torch.bincount(label, minlength=len(classes))
    present = counts.nonzero()[:, 0]
    accuracies = {
        readout: 100
        * torch.bincount(label, outcome.correct.double(), minlength=len(classes))[present]
        / counts[present]
        for readout, outcome in outcomes.items()
    }
    order = next(reversed(accuracies.values())).argsort(stable=True)[:MAX_CLASSES]
    figure, axes = new_figure(8, 1.2 + 0.28 * len(order))
    rows = torch.arange(len(order))
    for (readout, values), marker in zip(accuracies.items(), "o^sD", strict=False):
        axes.plot(values[order].numpy(), rows.numpy(), marker, label=readout, alpha=0.75)
    axes.set_yticks(rows.numpy(), [classes[int(present[position])] for position in order])
    axes.invert_yaxis()
    suffix = f" (lowest {MAX_CLASSES} of {len(present)})" if len(present) > MAX_CLASSES else ""
    axes.set(xlabel="top-1, %", title=f"accuracy by class{suffix}", xlim=(-2, 102))
    return _finish(figure, axes)


def reliability(outcomes: Mapping[str, Outcomes], errors: Mapping[str, float]) -> Figure:
    """Accuracy by confidence, one panel per readout. errors: calibration errors in percent, by readout."""
    figure, axes = new_figure(3.1 * len(outcomes), 3.4, len(outcomes), sharey=True, squeeze=False)
    centers = (np.arange(BINS) + 0.5) / BINS
    for axis, (readout, outcome) in zip(axes[0], outcomes.items(), strict=True):
        bins = bins_of(outcome.confidence).clamp(max=BINS - 1)
        counts = torch.bincount(bins, minlength=BINS)
        accuracy = torch.bincount(bins, outcome.correct.double(), minlength=BINS) / counts.clamp(min=1)
        axis.bar(centers, accuracy.numpy(), 0.95 / BINS, label="accuracy")
        axis.bar(centers, (counts / counts.sum()).numpy(), 0.3 / BINS, color="tab:orange", label="share of images")
        axis.plot((0, 1), (0, 1), color="black", lw=0.8, ls="--")
        axis.set(title=f"{readout}: ECE {errors[readout]:.1f} %", xlabel="confidence", xlim=(0, 1), ylim=(0, 1))
    axes[0, 0].legend(fontsize="small", loc="upper left")
    return figure


def attention_sheet(pixels: Tensor, attention: Tensor, captions: Sequence[str]) -> Figure:
    """N images, each above the attention maps of its class and distillation token.

    pixels: (N, S, S, 3) uint8. attention: (N, 2, h, w). captions: N titles.
    """
    figure = Figure(figsize=(1.9 * len(pixels), 6.2), dpi=110, layout="constrained")
    axes: Any = figure.subplots(3, len(pixels), squeeze=False)
    size = tuple(pixels.shape[1:3])
    upsampled = torch.nn.functional.interpolate(attention, size, mode="bilinear", align_corners=False)
    for column, (image, maps, caption) in enumerate(zip(pixels, upsampled, captions, strict=True)):
        axes[0, column].imshow(image.numpy())
        axes[0, column].set_title(caption, fontsize=8)
        for row, token_map in zip((1, 2), maps, strict=True):
            axes[row, column].imshow(image.float().mean(dim=2).numpy(), cmap="gray")
            axes[row, column].imshow(token_map.numpy(), cmap="inferno", alpha=0.6)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    for row, name in enumerate(("image", "class token", "distillation token")):
        axes[row, 0].set_ylabel(name)
    return figure


def throughput(points: Mapping[str, tuple[float, float]]) -> Figure:
    """Top-1 against images per second, one point per run. points: (images per second, percent) by run name."""
    figure, axes = new_figure(7, 4)
    for name, (speed, top1) in points.items():
        axes.plot(speed, top1, "o")
        axes.annotate(name, (speed, top1), xytext=(6, 4), textcoords="offset points", fontsize=9)
    axes.set(xlabel="images/s (forward pass)", ylabel="top-1, %", title="throughput against accuracy")
    axes.margins(0.25)
    axes.grid(alpha=0.3)
    return figure


def _finish(figure: Figure, *axes: Any) -> Figure:
    for axis in axes:
        axis.grid(alpha=0.3)
        if axis.get_xlabel() == "epoch":
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize="small")
    return figure
