"""A run's journal: JSON lines on disk, and the same to TensorBoard, Weights & Biases or MLflow where asked for."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import xxhash

from teacher_cache.errors import RecipeError
from teacher_cache.storage.jsonl import Journal


class Tracker(Protocol):
    """Takes a line's numbers by name, at a step that never comes twice."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class RunJournal(Journal):
    """As Journal; each line also goes to the trackers, which are opened at the first."""

    def __init__(
        self, path: Path, trackers: tuple[str, ...] = (), recipe: Mapping[str, Any] | None = None
    ) -> None:
        """trackers: by name. recipe: the resolved one, for them. Raises RecipeError for one not installed."""
        super().__init__(path)
        for name in trackers:
            package, extra, _ = TRACKERS[name]
            if find_spec(package) is None:
                raise RecipeError(
                    f"machine.trackers asks for {name}, which is not installed; pip install 'limbeck[{extra}]'"
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
        """Wait until the trackers have what they were given."""
        while self._open:
            self._open.pop().close()


def flatten_numbers(fields: Mapping[str, Any]) -> dict[str, float]:
    """A line's numbers, those in its tables by "table/name"."""
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
    """Event files in the run's folder `tensorboard`; what came after the resumed step is purged."""

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
    """One run of Weights & Biases for one folder: a run that goes on, goes on there too."""

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
    """One run of MLflow for one folder, where MLFLOW_TRACKING_URI says."""

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
    """The same for the same folder, on this machine."""
    return xxhash.xxh3_64_hexdigest(str(run.resolve()).encode())


TRACKERS: dict[str, tuple[str, str, Callable[[Path, int, Mapping[str, Any]], Tracker]]] = {
    "tensorboard": ("tensorboard", "tensorboard", TensorBoard),
    "wandb": ("wandb", "wandb", WeightsAndBiases),
    "mlflow": ("mlflow", "mlflow", MLflow),
}
"""By name: the package that must be there, the extra that brings it, and how it is opened."""
