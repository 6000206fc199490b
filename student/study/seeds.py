"""`limbeck study seeds`: how much of a result is the seed's (RSB, section 5)."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from student.recipe import TrainRecipe
from student.study.plot import draw_seeds
from student.study.stats import Spread, sampling_error, spread
from student.study.trials import Arm, Trials, run_trials
from teacher_cache.disk import write_durably
from teacher_cache.journal import some
from teacher_cache.world import World

REPORT, PICTURE = "report.json", "report.png"
LAST_EPOCHS = 5
"""The epochs over which a run's own trembling is measured."""
FEW = 3
"""Seeds, of which fewer make Student's interval so wide that it says little."""


def study_seeds(
    recipe: TrainRecipe, label: str, seeds: int, folder: Path, head: str = "", world: World | None = None
) -> Table | None:
    """Train a recipe under seeds 0..seeds-1, write report.json and report.png; None while others are at it."""
    found = run_trials(folder, "seeds", [Arm("", label, recipe)], seeds, head, world)
    if found is None:
        return None
    (trials,) = found
    write_report(folder, {"kind": "seeds", **describe_trials(trials)})
    draw_seeds(trials, folder / PICTURE)
    return seeds_table(trials)


def describe_trials(trials: Trials) -> dict[str, Any]:
    """All of an arm's numbers, plain."""
    final = spread(trials.values)
    return {
        "label": trials.label,
        **asdict(final),
        "sampling_error": sampling_error(final.mean, trials.images),
        "images": trials.images,
        "by_seed": dict(trials.final),
        "failed": list(trials.failed),
        "epochs": [{"epoch": epoch, **asdict(part)} for epoch, part in epoch_spreads(trials.curves).items()],
        "epoch_to_epoch": trembling(trials.curves),
        "best_above_last": best_above_last(trials.curves),
    }


def epoch_spreads(curves: Mapping[int, Mapping[int, float]]) -> dict[int, Spread]:
    """The spread over seeds after each epoch that was measured."""
    epochs = sorted({epoch for curve in curves.values() for epoch in curve})
    return {epoch: spread([curve[epoch] for curve in curves.values() if epoch in curve]) for epoch in epochs}


def trembling(curves: Mapping[int, Mapping[int, float]]) -> float | None:
    """How far accuracy moves from one measured epoch to the next, near the end: root mean square, in points."""
    moves = [np.diff(list(curve.values())[-LAST_EPOCHS:]) for curve in curves.values()]
    every = np.concatenate(moves)
    return float(np.sqrt(np.mean(every**2))) if len(every) else None


def best_above_last(curves: Mapping[int, Mapping[int, float]]) -> float:
    """What picking each run's best epoch by its test accuracy would add to the mean, in points."""
    return float(np.mean([max(curve.values()) - list(curve.values())[-1] for curve in curves.values()]))


def seeds_table(trials: Trials) -> Table:
    """The numbers for a person."""
    told = describe_trials(trials)
    table = Table(title=f"{escape(trials.label)}, top-1 over {some(told['n'], 'seed')}", show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("mean", f"{told['mean']:.2f} %")
    if told["interval"]:
        table.add_row("  95 % interval", "{:.2f} to {:.2f}".format(*told["interval"]))
    table.add_row("standard deviation", points(told["std"]))
    table.add_row("worst seed", f"{told['min']:.2f} %")
    table.add_row("best seed", f"{told['max']:.2f} %")
    table.add_row("from one epoch to the next", points(told["epoch_to_epoch"]))
    table.add_row("best epoch above the last", points(told["best_above_last"]))
    table.add_row(f"error of {trials.images:,} test images", points(told["sampling_error"]))
    if trials.failed:
        table.add_row("diverged", ", ".join(f"seed {seed}" for seed in trials.failed))
    if told["n"] < FEW:
        table.caption = f"fewer than {FEW} seeds say little of the spread; give more --seeds"
    return table


def points(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def write_report(folder: Path, told: dict[str, Any]) -> None:
    write_durably(folder / REPORT, (json.dumps({"format": 1, **told}, indent=1) + "\n").encode())
