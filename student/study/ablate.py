"""`limbeck study ablate`: change one ingredient of a recipe at a time, and compare the effects with the noise."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from student.recipe import TrainRecipe
from student.study.plot import draw_ablation
from student.study.report import PLOT_NAME, describe_trials, points, write_report
from student.study.stats import Difference, difference, holm, spread
from student.study.trials import Arm, Trials, run_trials
from teacher_cache.config import load_recipe
from teacher_cache.console import count_of
from teacher_cache.distributed.world import World
from teacher_cache.errors import RecipeError

BASE = "base"


@dataclass(frozen=True)
class Effect:
    """The effect of one change. p: adjusted by Holm's method for the number of changes."""

    trials: Trials
    difference: Difference
    p: float | None


def study_ablate(
    path: Path, changes: Sequence[str], seeds: int, folder: Path, head: str = "", world: World | None = None
) -> Table | None:
    """Train a recipe and each change of it with the same seeds; None if other jobs still have runs to finish.

    changes: "table.key=value" each; keys that belong together are joined with "; ".
    """
    results = run_trials(folder, "ablate", arms_of(path, changes), seeds, head, world)
    if results is None:
        return None
    base, *changed = results
    diverged = [trials.label for trials in changed if not trials.final]
    effects = sorted_effects(base, [trials for trials in changed if trials.final])
    changes_json = [
        {**describe_trials(effect.trials), "difference": asdict(effect.difference), "p_holm": effect.p}
        for effect in effects
    ]
    write_report(
        folder, {"kind": "ablate", "base": describe_trials(base), "changes": changes_json, "diverged": diverged}
    )
    draw_ablation(base, {effect.trials.label: effect.difference for effect in effects}, folder / PLOT_NAME)
    return ablation_table(base, effects, diverged)


def arms_of(path: Path, changes: Sequence[str]) -> list[Arm]:
    """The base and each change. Raises RecipeError if a change has no effect or is given twice."""
    if not changes:
        raise RecipeError("no change to test; give each change, e.g. --set views.mixup=0")
    arms = [Arm(BASE, BASE, load_recipe(path, TrainRecipe))]
    for change in changes:
        parts = [part.strip() for part in change.split(";")]
        recipe = load_recipe(path, TrainRecipe, parts)
        if recipe == arms[0].recipe:
            raise RecipeError(f"--set '{change}' has no effect on '{path}'; remove it")
        arms.append(Arm(re.sub(r"[^\w.=+-]+", "_", change), change, recipe))
    names = [arm.folder for arm in arms]
    if repeated := [arm.label for arm in arms if names.count(arm.folder) > 1]:
        raise RecipeError(f"--set '{repeated[0]}' is given twice; give it once")
    return arms


def sorted_effects(base: Trials, changed: Sequence[Trials]) -> list[Effect]:
    """The effect of each change, the most harmful first."""
    differences = [difference(base.values, trials.values) for trials in changed]
    p_values = holm([item.p for item in differences])
    effects = [Effect(*parts) for parts in zip(changed, differences, p_values, strict=True)]
    return sorted(effects, key=lambda effect: effect.difference.mean)


def ablation_table(base: Trials, effects: Sequence[Effect], diverged: Sequence[str] = ()) -> Table:
    """diverged: labels of the changes whose runs all diverged; they come first."""
    base_spread = spread(base.values)
    table = Table(title=f"one change at a time, top-1 in %, {count_of(base_spread.n, 'seed')}")
    for name in ("change", "mean", "std", "effect", "95 % interval", "p (Holm)", "significant"):
        table.add_column(name, justify="left" if name == "change" else "right")
    table.add_row(BASE, f"{base_spread.mean:.2f}", points(base_spread.std), "", "", "", "")
    for label in diverged:
        table.add_row(escape(label), "diverged", "", "", "", "", "yes")
    for effect in effects:
        change_spread, interval = spread(effect.trials.values), effect.difference.interval
        table.add_row(
            escape(effect.trials.label)
            + (f" ({len(effect.trials.failed)} diverged)" if effect.trials.failed else ""),
            f"{change_spread.mean:.2f}",
            points(change_spread.std),
            f"{effect.difference.mean:+.2f}",
            f"{interval[0]:+.2f} to {interval[1]:+.2f}" if interval else "-",
            "-" if effect.p is None else f"{effect.p:.3f}",
            "?" if effect.p is None else "yes" if effect.p < 0.05 else "no",
        )
    if base_spread.n == 1:
        table.caption = "with one seed, effects cannot be distinguished from noise; use --seeds 3 or more"
    return table
