"""`limbeck study seeds`: how much a result depends on the seed (RSB, section 5)."""

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
"""Fewer seeds give an interval that is too wide to be useful; the table then has a caption."""


def study_seeds(
    recipe: TrainRecipe, label: str, seeds: int, folder: Path, head: str = "", world: World | None = None
) -> Table | None:
    """Train a recipe with seeds 0 to seeds - 1; None if other jobs still have runs to finish.

    Writes report.json and report.png.
    """
    results = run_trials(folder, "seeds", [Arm("", label, recipe)], seeds, head, world)
    if results is None:
        return None
    (trials,) = results
    write_report(folder, {"kind": "seeds", **describe_trials(trials)})
    draw_seeds(trials, folder / PLOT_NAME)
    return seeds_table(trials)


def seeds_table(trials: Trials) -> Table:
    """The results as a table."""
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
    table.add_row("RMS change between epochs", points(summary["epoch_to_epoch"]))
    table.add_row("best epoch minus last epoch", points(summary["best_above_last"]))
    table.add_row(f"standard error, {trials.images:,} test images", points(summary["sampling_error"]))
    if trials.failed:
        table.add_row("diverged", ", ".join(f"seed {seed}" for seed in trials.failed))
    if summary["n"] < MIN_SEEDS:
        table.caption = f"fewer than {MIN_SEEDS} seeds say little about the spread; use more --seeds"
    return table
