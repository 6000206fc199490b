"""`limbeck study seeds`: how much of a result is the seed's (RSB, section 5)."""

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from student.recipe import TrainRecipe
from student.study.plot import draw_seeds
from student.study.report import PLOT_NAME, describe_trials, points, write_report
from student.study.trials import Arm, Trials, run_trials
from teacher_cache.console import count_of
from teacher_cache.distributed.world import World

MIN_SEEDS = 3
"""Seeds, of which fewer make Student's interval so wide that it says little."""


def study_seeds(
    recipe: TrainRecipe, label: str, seeds: int, folder: Path, head: str = "", world: World | None = None
) -> Table | None:
    """Train a recipe under seeds 0..seeds-1, write report.json and report.png; None while others are at it."""
    results = run_trials(folder, "seeds", [Arm("", label, recipe)], seeds, head, world)
    if results is None:
        return None
    (trials,) = results
    write_report(folder, {"kind": "seeds", **describe_trials(trials)})
    draw_seeds(trials, folder / PLOT_NAME)
    return seeds_table(trials)


def seeds_table(trials: Trials) -> Table:
    """The numbers for a person."""
    summary = describe_trials(trials)
    table = Table(title=f"{escape(trials.label)}, top-1 over {count_of(summary['n'], 'seed')}", show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("mean", f"{summary['mean']:.2f} %")
    if summary["interval"]:
        table.add_row("  95 % interval", "{:.2f} to {:.2f}".format(*summary["interval"]))
    table.add_row("standard deviation", points(summary["std"]))
    table.add_row("worst seed", f"{summary['min']:.2f} %")
    table.add_row("best seed", f"{summary['max']:.2f} %")
    table.add_row("from one epoch to the next", points(summary["epoch_to_epoch"]))
    table.add_row("best epoch above the last", points(summary["best_above_last"]))
    table.add_row(f"error of {trials.images:,} test images", points(summary["sampling_error"]))
    if trials.failed:
        table.add_row("diverged", ", ".join(f"seed {seed}" for seed in trials.failed))
    if summary["n"] < MIN_SEEDS:
        table.caption = f"fewer than {MIN_SEEDS} seeds say little of the spread; give more --seeds"
    return table
