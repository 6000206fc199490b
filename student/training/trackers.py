"""A run's journal: JSON lines on disk and, on request, in TensorBoard, Weights & Biases or MLflow."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import xxhash

from teacher_cache.errors import RecipeError
from teacher_cache.storage.jsonl import Journal


class Tracker(Protocol):
    """Receives the numbers of each journal line by name. Each step is logged once."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class RunJournal(Journal):
    """A Journal that also sends its lines to trackers. They are opened at the first line."""

    def __init__(
        self, path: Path, trackers: tuple[str, ...] = (), recipe: Mapping[str, Any] | None = None
    ) -> None:
        """recipe: the resolved recipe, for the trackers. Raises RecipeError if a tracker is not installed."""
        super().__init__(path)
        for name in trackers:
            package, extra, _ = TRACKERS[name]
            if find_spec(package) is None:
                raise RecipeError(
                    f"machine.trackers: {name} is not installed; install it with: pip install 'limbeck[{extra}]'"
                )
        self._names, self._recipe, self._run = trackers, dict(recipe or {}), path.parent
        self._open: list[Tracker] = []

    def write(self, **fields: Any) -> None:
        earlier = self.read() if self._names and not self._open else []
        super().write(**fields)
        if self._names and not self._open:
            first_step = _step(earlier[-1]) + 1 if earlier else 0
            self._open = [TRACKERS[name][2](self._run, first_step, self._recipe) for name in self._names]
        for tracker in self._open:
            tracker.log(_step(fields), flatten_numbers(fields))

    def close(self) -> None:
        """Close the trackers, which waits until they have sent everything."""
        while self._open:
            self._open.pop().close()


def flatten_numbers(fields: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line by name, those of nested tables by "table/name"."""
    numbers: dict[str, float] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            numbers |= {f"{name}/{part}": number for part, number in flatten_numbers(value).items()}
        elif isinstance(value, int | float):
            numbers[name] = float(value)
    return numbers


def _step(line: Mapping[str, Any]) -> int:
    return int(line.get("step", line.get("epoch", 0)))


class TensorBoard:
    """Event files in the run's folder `tensorboard`. Events after the resumed step are purged."""

    def __init__(self, run: Path, first: int, recipe: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=first or None)
        self._writer.add_text("recipe", str(dict(recipe)), first)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """One Weights & Biases run per run folder. A resumed run continues it."""

    def __init__(self, run: Path, first: int, recipe: Mapping[str, Any]) -> None:
        import wandb

        self._run: Any = wandb.init(
            project="limbeck", name=run.name, id=_run_id(run), resume="allow", config=dict(recipe), dir=str(run)
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """One MLflow run per run folder, at MLFLOW_TRACKING_URI. A resumed run continues it."""

    def __init__(self, run: Path, first: int, recipe: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient

        self._client: Any = MlflowClient()
        experiment = self._client.get_experiment_by_name("limbeck")
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment("limbeck")
        runs = self._client.search_runs([experiment_id], f"tags.limbeck_run = '{_run_id(run)}'", max_results=1)
        tracked = (
            runs[0]
            if runs
            else self._client.create_run(experiment_id, tags={"limbeck_run": _run_id(run)}, run_name=run.name)
        )
        self._id = tracked.info.run_id
        if not runs:
            self._client.log_dict(self._id, dict(recipe), "recipe.json")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._client.log_metric(self._id, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _run_id(run: Path) -> str:
    """An id of the run, derived from the absolute path of its folder."""
    return xxhash.xxh3_64_hexdigest(str(run.resolve()).encode())


TRACKERS: dict[str, tuple[str, str, Callable[[Path, int, Mapping[str, Any]], Tracker]]] = {
    "tensorboard": ("tensorboard", "tensorboard", TensorBoard),
    "wandb": ("wandb", "wandb", WeightsAndBiases),
    "mlflow": ("mlflow", "mlflow", MLflow),
}
"""Trackers by name: required package, extra of limbeck, class."""
