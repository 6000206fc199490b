import json
import os
import re
import shutil
import time
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clean_process import start_process
from facts import assert_facts
from PIL import Image

from student.evaluation.predict import EvalOptions
from student.recipe import TrainRecipe
from student.study.ablate import arms_of
from student.study.compare import conclusion, require_same_images, runs_for_gap
from student.study.folder import STATES
from student.study.plot import draw_ablation, draw_comparison, draw_seeds
from student.study.report import best_above_last, epoch_to_epoch_rms
from student.study.resolution import study_resolution
from student.study.seeds import study_seeds
from student.study.stats import difference, epoch_spreads
from student.study.trials import Arm, Trials
from teacher_cache.config import load_recipe
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.shards import read_shard
from teacher_cache.distributed.world import World
from teacher_cache.errors import RecipeError, RunError
from teacher_cache.packing.pack import pack
from teacher_cache.rng import generator
from teacher_cache.storage.jsonl import Journal

QUICK = '[machine]\nworkers = 0\ndevice = "cpu"\n'
DONE, _, _, _, PENDING = STATES
CPU = EvalOptions(torch.device("cpu"), workers=0)


@pytest.fixture(scope="session")
def teacher_file(
    recipe_text: Callable[..., str], shards: ShardIndex, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "teacher.toml"
    path.write_text(recipe_text("teacher", shards=shards.folder) + QUICK)
    return path


@pytest.fixture(scope="session")
def whole(teacher_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of three seeds that ran without interruption."""
    folder = tmp_path_factory.mktemp("studies") / "whole"
    assert study_seeds(load_recipe(teacher_file, TrainRecipe), "teacher", 3, folder) is not None
    return folder


def report(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return document


def is_picture(path: Path) -> bool:
    with Image.open(path) as image:
        return image.format == "PNG" and image.width > 500 and np.asarray(image.convert("L")).std() > 5


def trials(label: str, mean: float, std: float, seeds: int = 10, epochs: int = 30) -> Trials:
    """Curves like real ones: rising, noisy, leveling off."""
    rng = generator("trials", label)
    curves = {}
    for seed in range(seeds):
        level, steps = rng.normal(mean, std), np.arange(1, epochs + 1)
        noise = rng.normal(0, 3 * std, epochs) * (1 - steps / (epochs + 1))
        curves[seed] = dict(zip(steps.tolist(), (level - 40 * np.exp(-steps / 4) + noise).tolist(), strict=True))
    return Trials(label, {seed: curve[epochs] for seed, curve in curves.items()}, curves, (), 10_000)


def test_a_study_of_seeds_reports_every_seed_and_epoch(whole: Path) -> None:
    written = report(whole)
    values = [
        json.loads((whole / f"seed-{seed}" / "final" / "card.json").read_text())["accuracy"]["class"]
        for seed in range(3)
    ]
    assert list(written["by_seed"].values()) == values
    assert written["mean"] == pytest.approx(np.mean(values)) and written["std"] == pytest.approx(
        np.std(values, ddof=1)
    )
    assert (written["min"], written["max"], written["n"], written["images"]) == (min(values), max(values), 3, 40)
    assert [line["epoch"] for line in written["epochs"]] == [1, 2]
    assert written["epochs"][-1]["mean"] == pytest.approx(written["mean"])
    assert is_picture(whole / "report.png")


def test_runs_of_different_seeds_have_different_losses(whole: Path) -> None:
    lines = [(whole / f"seed-{seed}" / "journal.jsonl").read_text().splitlines()[0] for seed in range(3)]
    assert len({json.loads(line)["loss"] for line in lines}) == 3


def test_jobs_share_a_study_and_a_killed_job_changes_nothing(
    teacher_file: Path, whole: Path, tmp_path: Path
) -> None:
    """Uses two real jobs on one folder; the first is killed in the middle of a run."""
    folder = tmp_path / "study"
    recipe = load_recipe(teacher_file, TrainRecipe)
    jobs = [start_process(study_seeds, recipe, "teacher", 3, folder) for _ in range(2)]
    while not list(folder.glob("seed-*/recipe.json")):
        assert jobs[0].is_alive()
        time.sleep(0.01)
    jobs[0].kill()
    for job in jobs:
        job.join()
    assert jobs[1].exitcode == 0
    study_seeds(recipe, "teacher", 3, folder)  # the rest, if any
    assert report(folder) == report(whole)
    for seed in range(3):
        lines = (folder / f"seed-{seed}" / "journal.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


def test_each_rank_trains_its_share_and_the_last_one_reports(
    limbeck: Callable[..., str], teacher_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    changes = ("--set", "schedule.epochs=1", "--set", "schedule.warmup_epochs=0")
    command = ("study", "seeds", teacher_file, "--seeds", 2, "--out", folder, *changes, "--world", 2, "--rank")
    limbeck(*command, 1)
    assert not (folder / "report.json").exists()
    assert_facts(limbeck("study", "status", folder), f"1 {DONE}", f"1 {PENDING}", 2)
    printed = limbeck(*command, 0)
    assert_facts(printed, "teacher", "2 seeds", "3 seeds", "--seeds")
    assert report(folder)["n"] == 2


def test_a_study_folder_of_another_recipe_is_refused(teacher_file: Path, whole: Path) -> None:
    other = load_recipe(teacher_file, TrainRecipe, ["optim.lr=1e-3", "views.mixup=0.0", "train.seed=7"])
    with pytest.raises(RunError) as raised:
        study_seeds(other, "teacher", 3, whole)
    assert_facts(raised.value, whole, "optim.lr", 0.003, 0.001, "views.mixup", 0.8, 0.0, "--out")
    assert "train.seed" not in str(raised.value), "a study's own seeds take its place"


def test_a_comparison_with_a_worse_recipe_uses_the_moving_averages(
    limbeck: Callable[..., str], teacher_file: Path, tmp_path: Path
) -> None:
    x, y = tmp_path / "x.toml", tmp_path / "y.toml"
    x.write_text(teacher_file.read_text(encoding="utf-8"))
    y.write_text(x.read_text().replace("lr = 3e-3", "lr = 1e-9"))
    options = ("--set", "schedule.epochs=1", "--set", "schedule.warmup_epochs=0", "--set", "train.ema=0.5")
    command = ("study", "compare", x, y, *options, "--head", "class-ema", "--detect", 0.5)
    printed = limbeck(*command, "--seeds", 2, "--out", tmp_path / "study")
    for name, label in (("a", "x"), ("b", "y")):
        path = f"{tmp_path}/study/{name}/seed-1"
        (first, *_) = (line.replace(path, "") for line in printed.splitlines() if path in line)
        assert re.search(rf"\b4\b.*\b{label}\b.*\b1\b", first), "how many runs; which this is"
    written = report(tmp_path / "study")
    assert written["difference"]["mean"] == pytest.approx(written["b"]["mean"] - written["a"]["mean"])
    assert written["conclusion"] in printed
    assert re.search(r"\b2\b.*\bx\b.*\b2\b.*\by\b", written["conclusion"])
    assert 0.5 in [needed["points"] for needed in written["runs_needed"]]
    journals = [Journal(path).read() for path in sorted((tmp_path / "study" / "a").glob("seed-*/journal.jsonl"))]
    averages = [lines[-1]["accuracy_ema"]["class"] for lines in journals]
    assert len(averages) == 2 and written["a"]["mean"] == pytest.approx(np.mean(averages))
    assert is_picture(tmp_path / "study" / "report.png")
    old_name = ("study", "compare", x, y, *options, "--head", "class-ema", "--tell", 0.75)
    assert_facts(limbeck(*old_name, "--seeds", 2, "--out", tmp_path / "study"), "--tell", "--detect")
    assert 0.75 in [needed["points"] for needed in report(tmp_path / "study")["runs_needed"]]
    with pytest.raises(RecipeError) as raised:
        limbeck(*old_name, "--detect", 0.5, "--out", tmp_path / "other")
    assert_facts(raised.value, "--tell", "--detect")
    with pytest.raises(RecipeError, match=r"--seeds 1\b.*\b2\b"):
        limbeck(*command, "--seeds", 1, "--out", tmp_path / "other")


def test_an_ablation_makes_one_change_at_a_time_and_a_diverged_run_is_a_result(
    limbeck: Callable[..., str], teacher_file: Path, tmp_path: Path
) -> None:
    short = teacher_file.read_text(encoding="utf-8").replace(
        "\nepochs = 2\nwarmup_epochs = 1", "\nepochs = 1\nwarmup_epochs = 0"
    )
    path = tmp_path / "short.toml"
    path.write_text(short)
    changes = ["views.mixup=0.0; views.cutmix=0.0", "optim.lr=1e30"]
    arms = arms_of(path, changes)
    base = tomllib.loads(short)
    assert [arm.recipe.views.mixup for arm in arms if arm.recipe.views] == [0.8, 0.0, 0.8]
    assert [arm.recipe.optim.lr for arm in arms] == [base["optim"]["lr"], base["optim"]["lr"], 1e30]
    sets = [word for change in changes for word in ("--set", change)]
    assert_facts(limbeck("study", "ablate", path, *sets, "--seeds", 1, "--out", tmp_path / "study"), changes[1])
    written = report(tmp_path / "study")
    assert written["diverged"] == ["optim.lr=1e30"]
    assert [change["label"] for change in written["changes"]] == [changes[0]]
    assert written["changes"][0]["difference"]["mean"] == written["changes"][0]["mean"] - written["base"]["mean"]
    assert written["changes"][0]["p_holm"] is None  # one seed each has no p-value
    result = json.loads((tmp_path / "study" / "optim.lr=1e30" / "seed-0" / "result.json").read_text())
    assert re.search(r"\bloss\b.*\bstep \d", result["failed"])


def test_bce_is_ablated_to_cross_entropy_by_removing_its_targets(
    limbeck: Callable[..., str], teacher_file: Path, tmp_path: Path
) -> None:
    path, study = tmp_path / "bce.toml", tmp_path / "study"
    short = teacher_file.read_text(encoding="utf-8").replace(
        "\nepochs = 2\nwarmup_epochs = 1", "\nepochs = 1\nwarmup_epochs = 0"
    )
    bce = 'smoothing = 0.1\ncriterion = "bce"\nbce_targets = "multi-label"'
    path.write_text(short.replace("smoothing = 0.1", bce))
    command = ("study", "ablate", path, "--seeds", 1, "--out", study, "--set")
    with pytest.raises(RecipeError, match=r"--set loss\.bce_targets="):
        limbeck(*command, "loss.criterion=cross-entropy")
    change = "loss.criterion=cross-entropy; loss.bce_targets="
    limbeck(*command, change)
    assert [one["label"] for one in report(study)["changes"]] == [change]


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ([], ("--set",)),
        (["views.mixup=0.8"], ("--set 'views.mixup=0.8'", "teacher.toml")),
        (["optim.lr=1e-3", "optim.lr=1e-3"], ("--set 'optim.lr=1e-3'",)),
        (["views.mixupp=0.8"], ("views.mixupp", "'views.mixup'")),
    ],
)
def test_a_change_without_effect_is_refused(
    teacher_file: Path, changes: list[str], facts: tuple[str, ...]
) -> None:
    with pytest.raises(RecipeError) as raised:
        arms_of(teacher_file, changes)
    assert_facts(raised.value, *facts)
    assert "\n" not in str(raised.value)


def test_a_resolution_study_resumes_and_gives_the_runs_accuracy_at_its_own_size(
    student_run: Path, shards: ShardIndex, tmp_path: Path
) -> None:
    shutil.copytree(shards.folder, tmp_path / "shards")
    keys = [record.key for shard in range(3) for record in read_shard(shards, shard)]
    (tmp_path / "shards" / "real.json").write_text(
        json.dumps({key: [0, 1, 2] for key in keys[:30]} | {key: [] for key in keys[30:]})
    )
    places, folder = {"val": shards.folder, "real": f"{tmp_path}/shards@real.json"}, tmp_path / "study"
    assert study_resolution(student_run, places, (24, 32), (1.0,), folder, CPU, world=World(0, 2)) is None
    assert study_resolution(student_run, places, (24, 32), (1.0,), folder, CPU) is not None
    written = report(folder)
    points = {(point["set"], point["size"], point["crop"]): point["top1"] for point in written["points"]}
    assert {key[:2] for key in points} == {(name, size) for name in places for size in (24, 32)}
    card = json.loads((student_run / "final" / "card.json").read_text())
    assert points["val", 32, card["eval"]["crop"]] == written["own"]["val"] == card["accuracy"]["joint"]
    assert written["own"]["real"] == 100 and written["gap_from_val"] == {"real": written["own"]["val"] - 100}
    assert written["images"] == {"val": 40, "real": 30}  # ten images have no label
    assert is_picture(folder / "report.png")
    with pytest.raises(RecipeError, match=r"\bsize 30\b.*\b8\b"):
        study_resolution(student_run, places, (30,), (), tmp_path / "other", CPU)


def test_the_resolution_command_studies_a_convnet(
    limbeck: Callable[..., str], teacher_run: Path, shards: ShardIndex, tmp_path: Path
) -> None:
    options = ("--on", f"val={shards.folder}", "--device", "cpu", "--workers", 0, "--out", tmp_path / "study")
    printed = limbeck("study", "resolution", teacher_run, "--sizes", "23,40", "--crops", "1.0", *options)
    assert [point["size"] for point in report(tmp_path / "study")["points"]] == [23, 32, 40]
    assert_facts(printed, "32 *", "32 px", "crop 1")
    assert_facts(limbeck("study", "status", tmp_path / "study"), f"3 {DONE}")


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (("--on", "shards"), ("--on 'shards'", "NAME=SHARDS")),
        (("--on", "a=b", "--on", "a=c"), ("--on 'a=c'", "'a'")),
        (("--sizes", "big"), ("--sizes 'big'",)),
        (("--crops", "0.9,1.5"), ("--crops 1.5",)),
        (("--head", "distill"), ("--head distill", "class")),
    ],
)
def test_invalid_options_of_a_resolution_study_are_refused_in_one_line(
    limbeck: Callable[..., str],
    teacher_run: Path,
    shards: ShardIndex,
    options: tuple[str, ...],
    facts: tuple[str, ...],
) -> None:
    sets = () if "--on" in options else ("--on", f"val={shards.folder}")
    with pytest.raises(RecipeError) as raised:
        limbeck("study", "resolution", teacher_run, "--device", "cpu", *sets, *options)
    assert_facts(raised.value, *facts)
    assert "\n" not in str(raised.value)


def test_spread_jitter_and_best_minus_last_of_known_curves() -> None:
    curves = {0: {1: 50.0, 2: 60.0, 3: 59.0}, 1: {1: 52.0, 2: 58.0, 3: 61.0}}
    assert {epoch: part.mean for epoch, part in epoch_spreads(curves).items()} == {1: 51.0, 2: 59.0, 3: 60.0}
    assert epoch_to_epoch_rms(curves) == pytest.approx(np.sqrt((100 + 1 + 36 + 9) / 4))
    assert best_above_last(curves) == 0.5
    assert epoch_to_epoch_rms({0: {1: 50.0}}) is None


def test_the_conclusion_states_only_what_the_runs_show() -> None:
    def conclude(first: Trials, second: Trials) -> tuple[str, str, str]:
        """The sentence, the difference in it, and the runs that would be needed for that difference."""
        measured = difference(first.values, second.values)
        runs = runs_for_gap(first, second, measured.mean)
        return conclusion(first, second, measured), f"{measured.mean:+.2f}", f"{runs or 0:,}"

    near, mean, runs = conclude(trials("a", 75, 0.5, 4), trials("b", 75.1, 0.5, 4))
    assert_facts(near, mean, "95%", f" {runs} ")
    far, mean, runs = conclude(trials("a", 75, 0.2, 5), trials("b", 73, 0.2, 5))
    assert_facts(far, mean, "95%", "< 0.001")
    assert mean.startswith("-") and f" {runs} " not in far
    none, mean, _ = conclude(trials("a", 75, 0.2, 1), trials("b", 73, 0.2, 1))
    assert mean in none and "%" not in none, "the difference, without an interval"
    assert all("\n" not in written and written.count(". ") == 0 for written in (near, far, none))


def test_the_conclusion_counts_the_diverged_runs() -> None:
    a, b = trials("a", 75, 0.2, 5), replace(trials("b", 73, 0.2, 2), failed=(1, 3, 4))
    conclusion_text = conclusion(a, b, difference(a.values, b.values))
    assert re.search(r"\b5 of 5\b.*\ba\b.*\b2 of 5\b.*\bb\b.*\b3\b", conclusion_text)
    conclusion_text = conclusion(b, replace(a, failed=(5,)), difference(b.values, a.values))
    assert re.search(r"\b2 of 5\b.*\bb\b.*\b3\b.*\b5 of 6\b.*\ba\b.*\b1\b", conclusion_text)


def test_recipes_measured_on_different_images_are_not_compared(
    limbeck: Callable[..., str], teacher_file: Path, shards: ShardIndex, photos: Path, tmp_path: Path
) -> None:
    pack(photos, tmp_path / "other", shard_rows=16, seed=3)
    shutil.copytree(shards.folder, tmp_path / "copy")
    for name in ("other", "copy"):
        text = teacher_file.read_text(encoding="utf-8").replace(
            f'val = "{shards.folder}"', f'val = "{tmp_path / name}"'
        )
        (tmp_path / f"{name}.toml").write_text(text)
    command = ("study", "compare", teacher_file, "--seeds", 2, "--out", tmp_path / "study")
    with pytest.raises(RecipeError) as raised:
        limbeck(*command, tmp_path / "other.toml")
    assert_facts(
        raised.value, "'teacher'", f"'{shards.folder}'", "'other'", f"'{tmp_path}/other'", "--set data.val="
    )
    assert not (tmp_path / "study").exists()
    same = [load_recipe(path, TrainRecipe) for path in (teacher_file, tmp_path / "copy.toml")]
    require_same_images([Arm(name, name, recipe) for name, recipe in zip("ab", same, strict=True)])


def test_the_pictures_of_many_runs_are_drawn(tmp_path: Path) -> None:
    a, b = trials("rsb_a2", 79.72, 0.1, 40, 300), trials("rsb_a3", 78.1, 0.15, 20, 100)
    folder = Path(os.environ.get("PICTURES", tmp_path))
    draw_seeds(a, folder / "seeds.png")
    draw_comparison([a, b], folder / "compare.png")
    labels = {f"change {number}": trials(str(number), 79.7 - number, 0.3, 3) for number in range(4)}
    effects = {label: difference(a.values, other.values) for label, other in labels.items()}
    draw_ablation(a, effects, folder / "ablate.png")
    assert all(is_picture(folder / f"{name}.png") for name in ("seeds", "compare", "ablate"))
