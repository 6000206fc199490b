"""`limbeck study compare`: whether two recipes differ by more than their seeds do."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from student.recipe import TrainRecipe
from student.study.plot import draw_comparison
from student.study.report import PICTURE, describe_trials, points, write_report
from student.study.stats import CONFIDENCE, POWER, Difference, difference, runs_needed, spread
from student.study.trials import Arm, Trials, run_trials
from teacher_cache.config import digest_of
from teacher_cache.data.index import load_index
from teacher_cache.distributed.world import World
from teacher_cache.errors import RecipeError

DETECT = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Differences, in points, for which the runs needed are told."""


def study_compare(
    recipes: Sequence[tuple[str, TrainRecipe]],
    seeds: int,
    folder: Path,
    detectable: Sequence[float] = DETECT,
    head: str = "",
    world: World | None = None,
) -> tuple[Table, str] | None:
    """Train two recipes under the same number of seeds and compare; None while other jobs are at it.

    recipes: label and recipe, twice. Returns the table and one sentence; writes report.json and report.png.
    """
    if seeds < 2:
        raise RecipeError(f"--seeds {seeds}: one run holds no noise to measure by; give 2 at least, better 5")
    arms = [Arm(name, label, recipe) for name, (label, recipe) in zip("ab", recipes, strict=True)]
    check_measured_alike(arms)
    found = run_trials(folder, "compare", arms, seeds, head, world)
    if found is None:
        return None
    first, second = found
    apart = difference(first.values, second.values)
    needed = {gap: runs_for_gap(first, second, gap) for gap in (abs(apart.mean), *detectable)}
    sentence = conclusion(first, second, apart)
    write_report(
        folder,
        {
            "kind": "compare",
            "a": describe_trials(first),
            "b": describe_trials(second),
            "difference": asdict(apart),
            "runs_needed": [{"points": gap, "runs_of_each": runs} for gap, runs in needed.items()],
            "conclusion": sentence,
        },
    )
    draw_comparison([first, second], folder / PICTURE)
    return comparison_table(first, second, apart, {gap: needed[gap] for gap in detectable}), sentence


def runs_for_gap(first: Trials, second: Trials, gap: float) -> int | None:
    """Runs of each to tell a gap, by the spreads found; None where those are unknown, or beyond a million."""
    a, b = spread(first.values).std, spread(second.values).std
    return None if a is None or b is None else runs_needed(gap, a, b)


def conclusion(first: Trials, second: Trials, apart: Difference) -> str:
    """What may be said, and no more, in one sentence."""
    counts = counted(first, second)
    limits = "for these two recipes as they stand, on these test images"
    if apart.interval is None or apart.bootstrap is None:
        comma = "," if second.failed else ""
        return (
            f"{counts}{comma} hold no noise to measure by (too few, or all alike), so the difference of "
            f"{apart.mean:+.2f} points proves nothing yet."
        )
    low, high = apart.interval
    told = (
        f"{apart.mean:+.2f} points ({CONFIDENCE:.0%} interval {low:+.2f} to {high:+.2f}, Welch's p {_p(apart.p)})"
    )
    if apart.is_significant:
        way = "above" if apart.mean > 0 else "below"
        found = f"{second.label} lies {way} {first.label} by {told}"
        return f"Over {counts}, {found}: more than the seeds explain, {limits}."
    needed = runs_for_gap(first, second, apart.mean)
    more = (
        f"; to tell so small a difference, if it is one, would take about {needed:,} runs of each"
        if needed
        else ""
    )
    return f"Over {counts}, the two cannot be told apart: {told}, which does not show them equal{more}."


def counted(first: Trials, second: Trials) -> str:
    """How many runs the sentence is about, and which are not among them."""
    if not (first.failed or second.failed):
        return f"{len(first.values)} runs of {first.label} and {len(second.values)} of {second.label}"
    parts = []
    for trials, runs in ((first, "runs of"), (second, "of")):
        there, lost = len(trials.values), len(trials.failed)
        told = f", whose other {lost} diverged and {'are' if lost > 1 else 'is'} left out" if lost else ""
        parts.append(f"{there} of {there + lost} {runs} {trials.label}{told}")
    return (", and " if first.failed else " and ").join(parts)


def check_measured_alike(arms: Sequence[Arm]) -> None:
    """Raises RecipeError where the arms' accuracies are not of the same images."""
    first, second = (load_index(arm.recipe.data.val) for arm in arms)
    if digest_of(first.contents()) != digest_of(second.contents()):
        raise RecipeError(
            f"'{arms[0].label}' is measured on data.val = '{arms[0].recipe.data.val}' and '{arms[1].label}' on "
            f"other images, '{arms[1].recipe.data.val}'; give both the same, e.g. by --set data.val=..."
        )


def comparison_table(first: Trials, second: Trials, apart: Difference, needed: dict[float, int | None]) -> Table:
    one, other = (escape(trials.label) for trials in (first, second))
    table = Table(title=f"{other} against {one}, top-1 in %")
    for name in ("", one, other, "difference"):
        table.add_column(name, justify="right" if name else "left")
    spreads = [spread(trials.values) for trials in (first, second)]
    table.add_row("runs", *(str(part.n) for part in spreads), "")
    table.add_row("mean", *(f"{part.mean:.2f}" for part in spreads), f"{apart.mean:+.2f}")
    table.add_row("standard deviation", *(points(part.std) for part in spreads), "")
    table.add_row("worst to best", *(f"{part.min:.2f} to {part.max:.2f}" for part in spreads), "")
    if any(trials.failed for trials in (first, second)):
        table.add_row("diverged", *(str(len(trials.failed)) for trials in (first, second)), "")
    for name, found in (("interval, Welch's t", apart.interval), ("interval, bootstrap", apart.bootstrap)):
        table.add_row(name, "", "", f"{found[0]:+.2f} to {found[1]:+.2f}" if found else "-")
    table.add_row("Welch's p", "", "", _p(apart.p))
    for gap, runs in needed.items():
        told = f"{runs:,} of each" if runs else "-"
        table.add_row(f"runs to tell {gap:g} points ({POWER:.0%})", "", "", told)
    return table


def _p(p: float | None) -> str:
    if p is None:
        return "-"
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"
