"""The runs of a study: a recipe with many seeds, each in its own run folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from student.data.inputs import open_inputs
from student.recipe import TrainRecipe
from student.study.folder import Study, create_study, remove_unstarted
from student.training.loop import train
from student.training.run import experiment
from teacher_cache.console import log_line
from teacher_cache.data.index import load_index
from teacher_cache.distributed.world import World
from teacher_cache.errors import DivergedError, LimbeckError, RecipeError, RunError
from teacher_cache.storage.jsonl import Journal


@dataclass(frozen=True)
class Arm:
    """One recipe of a study. folder: of its runs, relative to the study's folder. label: shown to the user."""

    folder: str
    label: str
    recipe: TrainRecipe

    def task(self, seed: int) -> str:
        return str(Path(self.folder) / f"seed-{seed}")

    def identity(self) -> dict[str, Any]:
        """The experiment without its seed, and the contents of its data and cache."""
        identity = experiment(self.recipe)
        identity["train"] = {name: value for name, value in identity["train"].items() if name != "seed"}
        return identity | {"inputs": open_inputs(self.recipe).identity()}


@dataclass(frozen=True)
class Trials:
    """Results of an arm. final: percent by seed. curves: percent by seed and epoch. failed: diverged seeds."""

    label: str
    final: Mapping[int, float]
    curves: Mapping[int, Mapping[int, float]]
    failed: tuple[int, ...]
    images: int
    """Number of test images of each accuracy."""

    @property
    def values(self) -> list[float]:
        """Final accuracies in percent. Raises RunError if every run diverged."""
        if not self.final:
            raise RunError(f"all runs of '{self.label}' diverged, the study has no result; lower its optim.lr")
        return list(self.final.values())


def run_trials(
    folder: Path, kind: str, arms: Sequence[Arm], seeds: int, head: str, world: World | None
) -> list[Trials] | None:
    """Train the missing runs, seed by seed; None if other jobs still have runs to finish.

    A run that diverges is a result, and the study continues.
    """
    tasks = {arm.task(seed): (arm, seed) for seed in range(seeds) for arm in arms}
    identity = {name: value for arm in arms for name, value in _identity_of(arm).items()}
    for arm in arms:
        check_head(arm.recipe, head)
    is_new = not folder.exists()
    study = create_study(folder, kind, identity, list(tasks))
    try:
        for task in study.claim_tasks(world):
            arm, seed = tasks[task]
            log_line(f"run '{folder / task}', one of {len(tasks)}: {arm.label}, seed {seed}")
            study.finish(task, _train(arm, seed, folder / task))
    except LimbeckError:
        if is_new and world is None:
            remove_unstarted(folder)
        raise
    if unfinished := study.unfinished_tasks():
        log_line(
            f"study '{folder}': {len(unfinished)} of {len(tasks)} runs are not finished: they belong to other "
            f"jobs or were interrupted; see limbeck study status {folder}, then rerun the command"
        )
        return None
    return [_read(study, arm, seeds, head) for arm in arms]


def check_head(recipe: TrainRecipe, head: str) -> None:
    """Raise RecipeError, before any training, if a recipe has no accuracy of this head."""
    heads = recipe.loss.heads if len(recipe.loss.heads) == 1 else (*recipe.loss.heads, "joint")
    names = (*heads, *(f"{name}-ema" for name in heads if recipe.train.ema))
    accuracy_of_head(dict.fromkeys(names, 0.0), head)


def _identity_of(arm: Arm) -> dict[str, Any]:
    identity = arm.identity()
    return {arm.folder: identity} if arm.folder else identity


def _train(arm: Arm, seed: int, run: Path) -> dict[str, Any]:
    spec = arm.recipe.train.model_copy(update={"seed": seed})
    try:
        train(arm.recipe.model_copy(update={"train": spec}), run)
    except DivergedError as error:
        log_line(f"{error}; the study continues without this run")
        return {"failed": str(error)}
    entries = [entry for entry in Journal(run / "journal.jsonl").read() if entry.get("accuracy")]
    epochs = [{"epoch": entry["epoch"], "accuracy": _by_head(entry)} for entry in entries]
    return {"accuracy": epochs[-1]["accuracy"], "epochs": epochs}


def _by_head(entry: Mapping[str, Any]) -> dict[str, float]:
    """Percent by head; accuracies of the EMA weights have the names "class-ema" and so on."""
    raw: dict[str, float] = entry["accuracy"]
    return raw | {f"{head}-ema": percent for head, percent in entry["accuracy_ema"].items()}


def _read(study: Study, arm: Arm, seeds: int, head: str) -> Trials:
    results = {seed: study.result(arm.task(seed)) for seed in range(seeds)}
    failed = tuple(seed for seed, result in results.items() if "failed" in result)
    finished = {seed: result for seed, result in results.items() if seed not in failed}
    final = {seed: accuracy_of_head(result["accuracy"], head) for seed, result in finished.items()}
    curves = {
        seed: {epoch["epoch"]: accuracy_of_head(epoch["accuracy"], head) for epoch in result["epochs"]}
        for seed, result in finished.items()
    }
    return Trials(arm.label, final, curves, failed, load_index(arm.recipe.data.val).rows)


def accuracy_of_head(accuracy: Mapping[str, float], head: str) -> float:
    """Accuracy of a head; "" means joint for two heads and class for one."""
    if head and head not in accuracy:
        raise RecipeError(
            f"--head {head}: the accuracies of this network are {', '.join(accuracy)}; choose one of them"
        )
    return accuracy[head] if head else accuracy.get("joint", accuracy["class"])
