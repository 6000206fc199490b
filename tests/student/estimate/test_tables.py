"""Names that a user gave stand in every table as they are, whatever rich's markup would make of them."""

import shutil
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from server.demo import accuracy_table
from student.estimate.cost import Training, estimate
from student.estimate.machine import Hardware
from student.estimate.tables import tables
from student.estimate.workload import workload_of
from student.evaluation.metrics import EvalMetrics, Metric
from student.evaluation.scores import ScoreRow, score_table
from student.study.ablate import Effect, ablation_table
from student.study.compare import comparison_table
from student.study.folder import Study, status_of
from student.study.resolution import _sets_table, _sizes_table
from student.study.seeds import seeds_table
from student.study.stats import Difference
from student.study.trials import Trials
from teacher_cache import console
from teacher_cache.cache.status import status_table
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.console import progress
from teacher_cache.models.card import load_card
from teacher_cache.models.run_folder import FINAL
from teacher_cache.recipe import CacheRecipe

ODD = "[bold]x[/y]"
NONE = Difference(mean=0.0, p=None, interval=None, bootstrap=None)


def printed(*shown: Table) -> str:
    """What the tables print, without white space: a title is broken into the lines that its table is wide."""
    page = StringIO()
    for table in shown:
        Console(file=page, width=300, color_system=None).print(table)
    return "".join(page.getvalue().split())


def test_markup_in_a_machine_name_is_printed_literally(cache_recipe: CacheRecipe) -> None:
    rates = {"views_per_second": 1.0, "teacher_images_per_second": 1.0}
    machine = Hardware.model_validate({"machine": {"name": ODD}, "teacher": rates})
    work = workload_of(cache_recipe, (16, 16), 3)
    assert printed(*tables(estimate(cache_recipe, work, Training(1, 1, 0), [machine], 2, 1))).count(ODD) == 2


def test_markup_in_names_of_models_sets_and_heads_is_printed_literally(teacher_run: Path) -> None:
    some = Metric(1.0, 0.5, 1.5)
    scores = [ScoreRow(f"{ODD}/set", 40, "raw", "class", EvalMetrics(some, None, some, some))]
    assert printed(score_table(Path(ODD), scores)).count(ODD) == 2
    assert printed(accuracy_table(ODD, [(f"{ODD}run", {"class": 1.0}, 1.0)])).count(ODD) == 2
    card = load_card(teacher_run / FINAL)
    odd = card.model_copy(update={"network": card.network.model_copy(update={"name": f"{ODD}net"})})
    assert printed(_sizes_table({ODD: {1.0: {32: 50.0}}}, odd)).count(ODD) == 2
    assert printed(_sets_table({ODD: 50.0}, {ODD: 40}, odd)).count(ODD) == 2


def test_markup_in_labels_and_tasks_of_studies_is_printed_literally(tmp_path: Path) -> None:
    trials = Trials(ODD, {0: 50.0, 1: 51.0}, {0: {1: 50.0, 2: 50.0}, 1: {1: 51.0, 2: 51.0}}, (), 40)
    assert ODD in printed(seeds_table(trials))
    assert printed(comparison_table(trials, trials, NONE, {})).count(ODD) == 4
    assert printed(ablation_table(trials, [Effect(trials, NONE, None)], [f"{ODD}lost"])).count(ODD) == 2
    assert ODD in printed(status_of(Study(tmp_path, "seeds", [ODD]))[0])


def test_markup_in_the_path_of_a_cache_is_printed_literally(cache: TargetCache, tmp_path: Path) -> None:
    shutil.copytree(cache.where, tmp_path / ODD)
    assert ODD in printed(status_table(TargetCache.open(tmp_path / ODD)))


def test_markup_in_a_progress_bar_is_printed_literally_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    page = StringIO()
    monkeypatch.setattr(console, "console", Console(file=page, width=200, force_terminal=True))
    with progress(f"train {ODD}", 2, "steps") as bar:
        bar.advance(1, "of [/z]")
    assert f"train {ODD}" in page.getvalue() and "of [/z]" in page.getvalue()
