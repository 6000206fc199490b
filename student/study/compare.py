"""`limbeck study compare`: test whether two recipes differ by more than their seeds explain."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from student.recipe import TrainRecipe
from student.study.plot import draw_comparison
from student.study.report import PLOT_NAME, describe_trials, points, write_report
from student.study.stats import CONFIDENCE, POWER, Difference, difference, runs_needed, spread
from student.study.trials import Arm, Trials, run_trials
from teacher_cache.config import digest_of
from teacher_cache.data.index import load_index
from teacher_cache.distributed.world import World
from teacher_cache.errors import RecipeError

DETECT = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Default differences, in percentage points, for which the table has the number of runs needed."""


def study_compare(
    recipes: Sequence[tuple[str, TrainRecipe]],
    seeds: int,
    folder: Path,
    detectable: Sequence[float] = DETECT,
    head: str = "",
    world: World | None = None,
) -> tuple[Table, str] | None:
    """Train two recipes with the same seeds and compare them; None if other jobs still have runs to finish.

    recipes: two pairs of label and recipe. Returns table and conclusion; writes report.json and report.png.
    """
    if seeds < 2:
        raise RecipeError(f"--seeds {seeds}: the noise cannot be measured with fewer than 2 seeds; use 5 or more")
    if recipes[0][1] == recipes[1][1]:
        raise RecipeError(
            f"'{recipes[0][0]}' and '{recipes[1][0]}' are the same recipe; change a key, or measure the noise of "
            "one recipe with: limbeck study seeds"
        )
    arms = [Arm(name, label, recipe) for name, (label, recipe) in zip("ab", recipes, strict=True)]
    require_same_images(arms)
    results = run_trials(folder, "compare", arms, seeds, head, world)
    if results is None:
        return None
    first, second = results
    measured = difference(first.values, second.values)
    runs_by_gap = {gap: runs_for_gap(first, second, gap) for gap in (abs(measured.mean), *detectable)}
    sentence = conclusion(first, second, measured)
    write_report(
        folder,
        {
            "kind": "compare",
            "a": describe_trials(first),
            "b": describe_trials(second),
            "difference": asdict(measured),
            "runs_needed": [{"points": gap, "runs_of_each": runs} for gap, runs in runs_by_gap.items()],
            "conclusion": sentence,
        },
    )
    draw_comparison([first, second], folder / PLOT_NAME)
    return comparison_table(first, second, measured, {gap: runs_by_gap[gap] for gap in detectable}), sentence


def runs_for_gap(first: Trials, second: Trials, gap: float) -> int | None:
    """Runs of each that detect a gap, from the measured spreads; None if they are unknown, or above MAX_RUNS."""
    a, b = spread(first.values).std, spread(second.values).std
    return None if a is None or b is None else runs_needed(gap, a, b)


def conclusion(first: Trials, second: Trials, measured: Difference) -> str:
    """One sentence that states only what the runs show."""
    runs = describe_runs(first, second)
    if measured.interval is None or measured.bootstrap is None:
        return (
            f"{runs} have no measurable noise (too few runs, or all equal), so the difference of "
            f"{measured.mean:+.2f} points proves nothing yet."
        )
    low, high = measured.interval
    interval = f"{CONFIDENCE:.0%} interval {low:+.2f} to {high:+.2f}"
    numbers = f"{measured.mean:+.2f} points ({interval}, Welch's p {_p(measured.p)})"
    if measured.is_significant:
        side = "above" if measured.mean > 0 else "below"
        return (
            f"In {runs}, {second.label} is {side} {first.label} by {numbers}: more than the seeds explain, "
            "for these two recipes and these test images."
        )
    runs_for_power = runs_for_gap(first, second, measured.mean)
    advice = (
        f", and detecting a true difference of this size would take about {runs_for_power:,} runs of each"
        if runs_for_power
        else ""
    )
    return (
        f"In {runs}, the difference is not significant: {numbers}; "
        f"this does not show that the two are equal{advice}."
    )


def describe_runs(first: Trials, second: Trials) -> str:
    """Number of runs of each recipe, and how many of them diverged."""
    if not (first.failed or second.failed):
        return f"{len(first.values)} runs of {first.label} and {len(second.values)} of {second.label}"
    parts = []
    for trials, words in ((first, "runs of"), (second, "of")):
        finished, diverged = len(trials.values), len(trials.failed)
        suffix = f" ({diverged} diverged)" if diverged else ""
        parts.append(f"{finished} of {finished + diverged} {words} {trials.label}{suffix}")
    return " and ".join(parts)


def require_same_images(arms: Sequence[Arm]) -> None:
    """Raise RecipeError if the arms are evaluated on different images."""
    first, second = (load_index(arm.recipe.data.val) for arm in arms)
    if digest_of(first.contents()) != digest_of(second.contents()):
        raise RecipeError(
            f"'{arms[0].label}' is evaluated on data.val = '{arms[0].recipe.data.val}' and '{arms[1].label}' on "
            f"other images, '{arms[1].recipe.data.val}'; use the same shards, e.g. with --set data.val=..."
        )


def comparison_table(
    first: Trials, second: Trials, measured: Difference, runs_by_gap: dict[float, int | None]
) -> Table:
    first_label, second_label = (escape(trials.label) for trials in (first, second))
    table = Table(title=f"{second_label} compared with {first_label}, top-1 in %")
    for name in ("", first_label, second_label, "difference"):
        table.add_column(name, justify="right" if name else "left")
    spreads = [spread(trials.values) for trials in (first, second)]
    table.add_row("runs", *(str(part.n) for part in spreads), "")
    table.add_row("mean", *(f"{part.mean:.2f}" for part in spreads), f"{measured.mean:+.2f}")
    table.add_row("standard deviation", *(points(part.std) for part in spreads), "")
    table.add_row("minimum to maximum", *(f"{part.min:.2f} to {part.max:.2f}" for part in spreads), "")
    if any(trials.failed for trials in (first, second)):
        table.add_row("diverged", *(str(len(trials.failed)) for trials in (first, second)), "")
    for name, interval in (
        ("95 % interval, Welch's t", measured.interval),
        ("95 % interval, bootstrap", measured.bootstrap),
    ):
        table.add_row(name, "", "", f"{interval[0]:+.2f} to {interval[1]:+.2f}" if interval else "-")
    table.add_row("Welch's p", "", "", _p(measured.p))
    for gap, runs in runs_by_gap.items():
        cell = f"{runs:,} of each" if runs else "-"
        table.add_row(f"runs to detect {gap:g} points (power {POWER:.0%})", "", "", cell)
    return table


def _p(p: float | None) -> str:
    if p is None:
        return "-"
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"
