import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from facts import assert_facts
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import student.training.trackers
from student.training.trackers import RunJournal, flatten_numbers
from teacher_cache.errors import RecipeError

RECIPE = {"optim": {"lr": 0.1}}
LOG_BLOCK, LOG_HEADER = 2**15, 7
FULL, LAST = 1, 4
"""Kinds of a fragment in LevelDB's log, after which a record is whole."""


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
    resumed.replace([line(1, 3.0), line(2, 2.0)])  # killed after the third line, before its checkpoint
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
    kept = Path(client.download_artifacts(found.info.run_id, "recipe.json"))
    assert json.loads(kept.read_text(encoding="utf-8")) == RECIPE


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder; Weights & Biases writes into the runs' own folders, and uses no network."""
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return tmp_path


def records(file: Path) -> Iterator[Any]:
    """What `wandb sync` would send: Records of its own protocol, framed as in LevelDB's log.

    wandb has a reader only inside its binary.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data = file.read_bytes()
    assert data.startswith(b":W&B")
    place, parts = 7, b""
    while place < len(data):
        if LOG_BLOCK - place % LOG_BLOCK < LOG_HEADER:  # the rest of a block is padding
            place += LOG_BLOCK - place % LOG_BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + LOG_HEADER : place + LOG_HEADER + length]
        place += LOG_HEADER + length
        if kind in (FULL, LAST):
            yield Record.FromString(parts)
            parts = b""


def plain(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_weights_and_biases_has_one_run_for_one_folder(offline: Path) -> None:
    """Each resumed run adds a file to the same W&B run."""
    import wandb

    for name in ("run", "other"):
        (offline / name).mkdir()
    write(offline / "run", "wandb", line(1, 3.0))
    write(offline / "run", "wandb", line(2, 2.0))
    write(offline / "other", "wandb", line(1, 3.0))
    wandb.teardown()  # as at the end of a command: its files are whole
    files = sorted((offline / "run" / "wandb").glob("offline-run-*/*.wandb"))
    files += (offline / "other" / "wandb").glob("offline-run-*/*.wandb")
    first, again, other = ([*records(file)] for file in files)
    runs = [next(record.run for record in found if record.HasField("run")) for found in (first, again, other)]
    assert runs[0].run_id == runs[1].run_id != runs[2].run_id
    assert [run.display_name for run in runs] == ["run", "run", "other"]
    for run in runs:
        assert run.project == "limbeck" and plain(run.config.update).items() >= RECIPE.items()
    logged = [
        (record.history.step.num, {name: n for name, n in plain(record.history.item).items() if name[0] != "_"})
        for found in (first, again, other)
        for record in found
        if record.HasField("history")
    ]
    assert [step for step, _ in logged] == [5, 10, 5]
    assert [numbers for _, numbers in logged] == [
        flatten_numbers(one) for one in (line(1, 3.0), line(2, 2.0), line(1, 3.0))
    ]
    assert logged[1][1] == {"epoch": 2, "step": 10, "loss": 2.0, "accuracy/class": 20.0}
    assert all(any(record.HasField("exit") for record in found) for found in (first, again, other))


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
