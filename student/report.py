"""What a run looks like: a table for the terminal, training curves as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from rich.table import Table

from teacher_cache.errors import RunError
from teacher_cache.journal import Journal

matplotlib.use("Agg")


def accuracy_table(title: str, rows: Sequence[tuple[str, Mapping[str, float], float]]) -> Table:
    """rows: name, top-1 in percent by head (class, distill, joint), seconds."""
    table = Table(title=title)
    table.add_column("")
    for name in ("class head", "distillation head", "joint"):
        table.add_column(name, justify="right")
    table.add_column("seconds", justify="right")
    for name, accuracy, seconds in rows:
        cells = (f"{accuracy[head]:.2f} %" if head in accuracy else "-" for head in ("class", "distill", "joint"))
        table.add_row(name, *cells, f"{seconds:.0f}")
    return table


def draw_curves(runs: Mapping[str, Path], path: Path) -> None:
    """Plot loss and top-1 by epoch of several runs, by name, into a PNG. Raises RunError for an empty run."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, run in runs.items():
        lines = Journal(run / "journal.jsonl").read()
        if not lines:
            raise RunError(f"run '{run}' has no journal to draw; train it first")
        epochs = [line["epoch"] for line in lines]
        (curve,) = left.plot(epochs, [line["loss_class"] for line in lines], label=name)
        measured = [line for line in lines if line["accuracy"]]
        for head, style in (("class", "-"), ("distill", "--"), ("joint", ":")):
            if measured and head in measured[0]["accuracy"]:
                label = name if len(measured[0]["accuracy"]) == 1 else f"{name}, {head} head"
                right.plot(
                    [line["epoch"] for line in measured],
                    [line["accuracy"][head] for line in measured],
                    style,
                    color=curve.get_color(),
                    label=label,
                )
    left.set(xlabel="epoch", ylabel="cross-entropy on the true label", title="training loss")
    right.set(xlabel="epoch", ylabel="top-1, %", title="validation accuracy")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
