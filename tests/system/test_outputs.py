"""Commands replace only files that they made themselves from the same inputs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from facts import assert_facts

from student.bundle.bundle import Bundle
from student.evaluation.predict import EvalOptions
from student.report.report import Baselines, report
from student.study.folder import create_study
from student.training.loop import train
from student.training.run import require_run_folder
from teacher_cache.cache.contact_sheet import draw_sheet
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.data.index import ShardIndex
from teacher_cache.errors import LimbeckError, RecipeError, RunError

Limbeck = Callable[..., str]


def test_a_contact_sheet_is_replaced_by_the_same_command_only(cache: TargetCache, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    draw_sheet(cache.where, 0, 0, 1, out, None)
    draw_sheet(cache.where, 0, 0, 1, out, None)
    first = out.read_bytes()
    with pytest.raises(RecipeError) as error:
        draw_sheet(cache.where, 1, 0, 1, out, None)
    assert_facts(error.value, out, "--overwrite")
    assert out.read_bytes() == first
    draw_sheet(cache.where, 1, 0, 1, out, None, overwrite=True)
    assert out.read_bytes() != first


def test_scores_and_predictions_are_replaced_by_the_same_command_only(
    limbeck: Limbeck, student_run: Path, alone_run: Path, shards: ShardIndex, tmp_path: Path
) -> None:
    scores, rows = tmp_path / "scores.json", tmp_path / "rows.jsonl"
    words = (shards.folder, "--json", scores, "--predictions", rows, "--device", "cpu", "--resamples", 10)
    for _ in range(2):
        limbeck("evaluate", student_run, *words)
    first = scores.read_bytes(), rows.read_bytes()
    with pytest.raises(RecipeError) as error:
        limbeck("evaluate", alone_run, *words)
    assert_facts(error.value, rows, "--overwrite")
    assert (scores.read_bytes(), rows.read_bytes()) == first
    limbeck("evaluate", alone_run, *words, "--overwrite")
    assert json.loads(scores.read_bytes())["model"] == str(alone_run)


def test_a_report_does_not_write_into_a_folder_of_others(
    student_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.html").write_text("mine", encoding="utf-8")

    def never(*_: object) -> Bundle:
        raise AssertionError("the work has begun")

    monkeypatch.setattr("student.report.report.open_raw_and_ema", never)
    options = EvalOptions(torch.device("cpu"), 8, 0)
    with pytest.raises(RecipeError) as error:
        report([student_run], "", Baselines(), tmp_path, options)
    assert_facts(error.value, tmp_path, "--overwrite")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("name", ["card.json", "study.json", "zarr.json", "index.json", "journal.jsonl"])
def test_a_run_does_not_write_into_the_folder_of_another_command(tmp_path: Path, name: str) -> None:
    (tmp_path / "train.log").touch()
    require_run_folder(tmp_path)
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(RunError) as error:
        require_run_folder(tmp_path)
    assert_facts(error.value, tmp_path, name, "--out")


def test_a_run_keeps_a_recipe_that_is_not_its_own(student_recipe: Callable[..., object], tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text('{"flour": 500}', encoding="utf-8")
    with pytest.raises(RunError) as error:
        train(student_recipe(), tmp_path)  # type: ignore[arg-type]
    assert_facts(error.value, tmp_path / "recipe.json")
    assert (tmp_path / "recipe.json").read_text(encoding="utf-8") == '{"flour": 500}'


def test_the_demo_does_not_delete_the_files_of_others(limbeck: Limbeck, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine").touch()
    with pytest.raises(LimbeckError) as error:
        limbeck("demo", "--out", tmp_path)
    assert_facts(error.value, tmp_path)
    assert (tmp_path / "bundle" / "mine").exists()


def test_a_study_that_is_refused_leaves_no_folder(limbeck: Limbeck, recipe_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    with pytest.raises(RecipeError) as error:
        limbeck("study", "seeds", recipe_file, "--out", out, "--set", "model.name=resnet99")
    assert "resnet99" in str(error.value) and not out.exists()
    with pytest.raises(RecipeError) as error:
        limbeck("study", "seeds", recipe_file, "--out", out, "--head", "class-ema")
    assert "class-ema" in str(error.value) and not out.exists()
    with pytest.raises(RecipeError) as error:
        limbeck("study", "compare", recipe_file, recipe_file, "--out", out)
    assert "student" in str(error.value) and not out.exists()
    (tmp_path / "file").touch()
    with pytest.raises(RunError):
        create_study(tmp_path / "file", "seeds", {}, [])
