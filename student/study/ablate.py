"""`limbeck study ablate`: each ingredient of a recipe changed alone, and the noise beside each effect."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from student.recipe import TrainRecipe
from student.study.plot import draw_ablation
from student.study.report import PICTURE, describe_trials, points, write_report
from student.study.stats import Difference, difference, holm, spread
from student.study.trials import Arm, Trials, run_trials
from teacher_cache.config import load_recipe
from teacher_cache.console import count_of
from teacher_cache.distributed.world import World
from teacher_cache.errors import RecipeError

BASE = "base"


@dataclass(frozen=True)
class Effect:
    """What a change does to the base. p: Holm's, as many changes are asked about at once."""

    trials: Trials
    apart: Difference
    p: float | None


def study_ablate(
    path: Path, changes: Sequence[str], seeds: int, folder: Path, head: str = "", world: World | None = None
) -> Table | None:
    """Train a recipe and each of its changes under the same seeds; None while other jobs are at it.

    changes: "table.key=value", or several that belong together with "; " between them.
    """
    found = run_trials(folder, "ablate", arms_of(path, changes), seeds, head, world)
    if found is None:
        return None
    base, *others = found
    lost = [other.label for other in others if not other.final]
    effects = sorted_effects(base, [other for other in others if other.final])
    told = [{**describe_trials(one.trials), "difference": asdict(one.apart), "p_holm": one.p} for one in effects]
    write_report(folder, {"kind": "ablate", "base": describe_trials(base), "changes": told, "diverged": lost})
    draw_ablation(base, {one.trials.label: one.apart for one in effects}, folder / PICTURE)
    return ablation_table(base, effects, lost)


def arms_of(path: Path, changes: Sequence[str]) -> list[Arm]:
    """The base and each change. Raises RecipeError for a change that changes nothing, or stands twice."""
    if not changes:
        raise RecipeError("there is nothing to ablate; name each change, e.g. --set views.mixup=0")
    arms = [Arm(BASE, BASE, load_recipe(path, TrainRecipe))]
    for change in changes:
        parts = [part.strip() for part in change.split(";")]
        recipe = load_recipe(path, TrainRecipe, parts)
        if recipe == arms[0].recipe:
            raise RecipeError(f"--set '{change}' changes nothing in '{path}'; leave it out")
        arms.append(Arm(re.sub(r"[^\w.=+-]+", "_", change), change, recipe))
    names = [arm.folder for arm in arms]
    if twice := [arm.label for arm in arms if names.count(arm.folder) > 1]:
        raise RecipeError(f"--set '{twice[0]}' stands twice; give it once")
    return arms


def sorted_effects(base: Trials, others: Sequence[Trials]) -> list[Effect]:
    """The most harmful change first."""
    apart = [difference(base.values, other.values) for other in others]
    chances = holm([one.p for one in apart])
    effects = [Effect(*parts) for parts in zip(others, apart, chances, strict=True)]
    return sorted(effects, key=lambda effect: effect.apart.mean)


def ablation_table(base: Trials, effects: Sequence[Effect], lost: Sequence[str] = ()) -> Table:
    """lost: changes under which every run diverged; they stand first."""
    of_base = spread(base.values)
    table = Table(title=f"each change alone, top-1 in %, {count_of(of_base.n, 'seed')}")
    for name in ("change", "mean", "std", "effect", "95 % interval", "p (Holm)", "beyond noise"):
        table.add_column(name, justify="left" if name == "change" else "right")
    table.add_row(BASE, f"{of_base.mean:.2f}", points(of_base.std), "", "", "", "")
    for label in lost:
        table.add_row(escape(label), "diverged", "", "", "", "", "yes")
    for effect in effects:
        of_change, interval = spread(effect.trials.values), effect.apart.interval
        table.add_row(
            escape(effect.trials.label)
            + (f" ({len(effect.trials.failed)} diverged)" if effect.trials.failed else ""),
            f"{of_change.mean:.2f}",
            points(of_change.std),
            f"{effect.apart.mean:+.2f}",
            f"{interval[0]:+.2f} to {interval[1]:+.2f}" if interval else "-",
            "-" if effect.p is None else f"{effect.p:.3f}",
            "?" if effect.p is None else "yes" if effect.p < 0.05 else "not told",
        )
    if of_base.n == 1:
        table.caption = "one seed of each: no effect can be told from noise; give --seeds 3 or more"
    return table
