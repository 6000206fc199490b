import json
import math
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from facts import assert_facts
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import student.training.trackers
from student.training.trackers import RunJournal, flatten_numbers
from teacher_cache.errors import RecipeError

RECIPE = {"optim": {"lr": 0.1}}


def line(epoch: int, loss: float) -> dict[str, Any]:
    return {"epoch": epoch, "step": 5 * epoch, "loss": loss, "accuracy": {"class": 10.0 * epoch}}


def write(run: Path, tracker: str, *lines: dict[str, Any]) -> None:
    journal = RunJournal(run / "journal.jsonl", (tracker,), RECIPE)
    for one in lines:
        journal.write(**one)
    journal.close()


def test_tensorboard_has_the_numbers_of_each_line_and_each_step_once_after_a_resume(tmp_path: Path) -> None:
    write(tmp_path, "tensorboard", line(1, 3.0), line(2, 2.0), line(3, 9.0))
    resumed = RunJournal(tmp_path / "journal.jsonl", ("tensorboard",), RECIPE)
    resumed.keep([line(1, 3.0), line(2, 2.0)])  # killed after the third line, before its checkpoint
    resumed.write(**line(3, 1.0))
    resumed.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(5, 3.0), (10, 2.0), (15, 1.0)]
    assert [event.value for event in events.Scalars("accuracy/class")] == [10, 20, 30]
    assert [one["loss"] for one in resumed.read()] == [3.0, 2.0, 1.0]


def test_mlflow_has_one_run_for_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    (tmp_path / "run").mkdir()
    write(tmp_path / "run", "mlflow", line(1, 3.0))
    write(tmp_path / "run", "mlflow", line(2, 2.0))
    client = MlflowClient()
    experiment = client.get_experiment_by_name("limbeck")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(5, 3.0), (10, 2.0)]
    assert found.data.metrics["accuracy/class"] == 20 and found.info.status == "FINISHED"
    artifact = Path(client.download_artifacts(found.info.run_id, "recipe.json"))
    assert json.loads(artifact.read_text()) == RECIPE


def test_weights_and_biases_has_one_run_for_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in for its package: that of this project's environment is not installed."""
    calls: list[dict[str, Any]] = []
    logged: list[tuple[int, dict[str, float]]] = []
    ended: list[int] = []

    class Run:
        def log(self, numbers: dict[str, float], step: int) -> None:
            logged.append((step, numbers))

        def finish(self) -> None:
            ended.append(len(logged))

    def init(**arguments: Any) -> Run:
        calls.append(arguments)
        return Run()

    package = ModuleType("wandb")
    package.__spec__ = ModuleSpec("wandb", None)
    vars(package)["init"] = init
    monkeypatch.setitem(sys.modules, "wandb", package)
    for name in ("run", "other"):
        (tmp_path / name).mkdir()
    write(tmp_path / "run", "wandb", line(1, 3.0))
    write(tmp_path / "run", "wandb", line(2, 2.0))
    write(tmp_path / "other", "wandb", line(1, 3.0))
    first, again, other = calls
    assert first == again and first["id"] != other["id"] and other["name"] == "other"
    assert (first["project"], first["name"], first["resume"], first["config"]) == (
        "limbeck",
        "run",
        "allow",
        RECIPE,
    )
    assert first["dir"] == str(tmp_path / "run")
    assert [step for step, _ in logged] == [5, 10, 5] and ended == [1, 2, 3]
    assert logged[1][1] == {"epoch": 2, "step": 10, "loss": 2.0, "accuracy/class": 20.0}


def test_a_tracker_that_is_not_installed_is_reported_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(student.training.trackers, "find_spec", lambda name: None)
    with pytest.raises(RecipeError) as raised:
        RunJournal(tmp_path / "journal.jsonl", ("wandb",))
    assert_facts(raised.value, "machine.trackers", "wandb", "pip install 'limbeck[wandb]'")


def test_a_journal_without_trackers_is_only_a_file(tmp_path: Path) -> None:
    journal = RunJournal(tmp_path / "journal.jsonl")
    journal.write(**line(1, 2.0))
    journal.close()
    assert [path.name for path in tmp_path.iterdir()] == ["journal.jsonl"] and journal.read() == [line(1, 2.0)]


def test_only_numbers_are_tracked_under_their_full_names() -> None:
    fields = {"epoch": 1, "note": "text", "accuracy": {"class": 5, "deep": {"er": math.inf}}, "none": None}
    assert flatten_numbers(fields) == {"epoch": 1.0, "accuracy/class": 5.0, "accuracy/deep/er": math.inf}
