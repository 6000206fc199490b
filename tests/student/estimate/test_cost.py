"""Tests that `limbeck estimate` predicts the actual sizes, counts and times."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import pytest
from facts import assert_facts
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from server.cli import app
from student.estimate.caveats import caveats
from student.estimate.cost import Training, estimate, training_of
from student.estimate.machine import Hardware, Setup
from student.estimate.tables import draw_estimate, tables
from student.estimate.teacher_trial import bytes_of, calibrate
from student.estimate.workload import Workload, possible_encodings, workload_of
from student.recipe import TrainRecipe
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.cache.zarr_codec import pack as pack_object
from teacher_cache.config import load_recipe, parse_recipe, resolved
from teacher_cache.data.index import ShardIndex, load_index
from teacher_cache.errors import RecipeError
from teacher_cache.recipe import CacheRecipe
from teacher_cache.rng import generator

ROOT = Path(__file__).parents[3]
V100 = ROOT / "deploy" / "imagenet_v100.toml"


@pytest.mark.parametrize("name", ["hard", "topk-uint8", "topk-float16", "dense-uint8", "dense-float16"])
def test_bytes_per_target_of_a_sample_predict_those_of_a_whole_chunk(cache_recipe: CacheRecipe, name: str) -> None:
    recipe = parse_recipe(
        resolved(cache_recipe) | {"cache": {**resolved(cache_recipe)["cache"], "k": 10}},
        CacheRecipe,
        "the test's recipe",
    )
    logits = (4 * generator("logits").standard_normal((1000, 100))).astype(np.float32)
    encoding = possible_encodings(recipe, 100)[name]
    columns = encoding.encode(logits, np.zeros(1000, dtype=np.uint64))
    whole = sum(len(pack_object([values], 1)) for column, values in columns.items() if column != "digest") / 1000
    assert bytes_of(encoding, logits[:100], logits.argmax(axis=1)) == pytest.approx(whole, rel=0.08)


def test_the_numbers_of_units_and_objects_equal_those_of_the_built_cache(
    cache: TargetCache, cache_recipe: CacheRecipe
) -> None:
    work = workload_of(cache_recipe, tuple(cache.rows), len(cache.manifest.shards["classes"]))
    assert work.units == cache.layout.unit_count and work.views == cache.manifest.seeds * sum(cache.rows)
    there = [path for path in Path(cache.where).rglob("*") if path.is_file()]
    assert work.objects(cache.encoding) == len(there)


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 64])
def test_the_busiest_worker_has_the_views_of_its_units(workers: int) -> None:
    work = Workload(rows=(16, 16, 8), classes=3, seeds=10, seeds_per_unit=4)
    units = [seeds * rows for seeds in (4, 4, 2) for rows in work.rows]
    assert work.largest_share(workers) == max(sum(units[rank::workers]) for rank in range(workers))


def test_imagenet_on_a_v100_costs_what_the_papers_throughput_implies(
    imagenet: CacheRecipe, v100: Hardware
) -> None:
    assert v100.data
    work = workload_of(imagenet, v100.data.rows, v100.data.classes)
    assert sum(v100.data.rows) == 1_281_167 and len(v100.data.rows) == 1282
    student = load_recipe(ROOT / "student" / "recipes" / "deit_s_distilled.toml", TrainRecipe)
    training = training_of(student, work, imagenet, v100.data.validation)
    found = estimate(imagenet, work, training, [v100], 1000, 3)
    (cost,) = found.costs
    assert work.views == 384_350_100 and work.units == 50 * 1282
    assert cost.teacher / 3600 == pytest.approx(384_350_100 / 334.7 / 3600, rel=1e-3)
    assert cost.student and cost.student / 3600 == pytest.approx(300 * 1_281_167 / 312 / 3600, rel=0.06)
    assert cost.break_even == pytest.approx((300, 150, 100), rel=0.01)  # one student of 300 epochs breaks even
    assert cost.shared[-1].workers == 1000
    assert cost.shared[-1].seconds == pytest.approx(60 + 65 * 6000 / 334.7, rel=0.02)  # units
    hard = next(one for one in found.encodings if one.chosen)
    assert hard.name == "hard" and hard.bytes == pytest.approx(384_350_100 * (1.17 + 2), rel=1e-6)


def test_a_trial_out_of_time_measures_no_second_sample(cache_recipe: CacheRecipe, tmp_path: Path) -> None:
    found = calibrate(cache_recipe, load_index(cache_recipe.data.train), 1e-3, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1"]
    assert found.teacher.views_per_second > 0 and found.teacher.teacher_images_per_second > 0


def test_an_estimate_fits_in_80_columns(v100: Hardware, imagenet: CacheRecipe) -> None:
    assert v100.data
    work = workload_of(imagenet, v100.data.rows, v100.data.classes)
    found = estimate(imagenet, work, Training(300, 1_281_167, 50_000), [v100, v100], 1000, 4)
    console = Console(width=80, record=True, file=StringIO())
    for table in tables(found):
        console.print(table)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
    in_hours, in_epochs = (
        [line for line in lines if re.search(rf"\d {unit}[^│]*│ .*\d {unit}[^│]*│$", line)]
        for unit in ("h", "epochs")
    )
    assert len(in_hours) == 3, "the teacher, a student, and an epoch of a live teacher"
    assert len(in_epochs) == 4, "break-even for one to four students"


@pytest.mark.parametrize(
    ("k", "classes", "unknown"),
    [
        (10, 1000, set()),
        (100, 1000, {"topk-uint8", "topk-float16"}),
        (10, 10, {"hard", "topk-uint8", "topk-float16", "dense-uint8", "dense-float16"}),
    ],
)
def test_bytes_measured_with_other_classes_or_another_k_are_not_used(
    imagenet: CacheRecipe, v100: Hardware, k: int, classes: int, unknown: set[str]
) -> None:
    tables = resolved(imagenet)
    recipe = parse_recipe(tables | {"cache": tables["cache"] | {"k": k}}, CacheRecipe, "the test's recipe")
    asked = recipe, workload_of(recipe, (100,), classes), Training(1, 1, 0)
    found = estimate(*asked, [v100], 1, 1)
    assert {one.name for one in found.encodings if one.bytes is None} == unknown
    draw_estimate(found).savefig(BytesIO())
    lines = caveats(recipe, None, classes, v100)
    assert len(lines) == bool(unknown)
    for line in lines:
        assert_facts(line, "V100")
        assert {1000, 10, classes, k} == set(map(int, re.findall(r"\b\d+\b", line)))
    small = Hardware.model_validate(
        {**v100.model_dump(), "measured": {"classes": 10, "k": 10}, "bytes": {"hard": 0.4}}
    )
    (hard,) = (one for one in estimate(*asked, [v100, small], 1, 1).encodings if one.name == "hard")
    assert hard.bytes_per_target == (2.4 if classes == 10 else 3.17)


def test_figures_of_another_teacher_student_or_size_give_a_one_line_warning(
    limbeck_front: Callable[..., str], v100: Hardware, tmp_path: Path
) -> None:
    path, recipes = ROOT / "teacher_cache" / "recipes" / "imagenet_224.toml", ROOT / "student" / "recipes"
    command = ("estimate", path, "--figures", V100, "--student")
    own = recipes / "deit_s_distilled.toml"
    assert "regnety_160.deit_in1k" not in limbeck_front(*command, own)
    other = ("--set", "teacher.model=resnet18", "--set", "views.size=448")
    (line,) = (line for line in limbeck_front(*command, own, *other).splitlines() if "resnet18" in line)
    assert_facts(line, "V100", "regnety_160.deit_in1k", 224, 448, "deit_small_distilled_patch16_224")
    run = ("--set", "teacher.model=", "--set", "teacher.run=runs/nowhere")
    assert_facts(limbeck_front(*command[:-1], *run), "regnety_160.deit_in1k", "runs/nowhere", 224)
    assert "deit_tiny_distilled_patch16_224" in limbeck_front(*command, recipes / "deit_ti_distilled.toml")
    no_setup = tmp_path / "silent.toml"
    no_setup.write_text(re.sub(r"\[measured\](\n.+)+", "", V100.read_text()))
    printed = limbeck_front("estimate", path, "--figures", no_setup, *other)
    assert "resnet18" not in printed and re.search(r"\bhard\b[^│]*│ +\? │", printed)
    assert re.search(r"\b1000\b.*\bk\b.*\b10\b", outside_tables(printed))


def outside_tables(printed: str) -> str:
    return "\n".join(line for line in printed.splitlines() if "│" not in line)


@pytest.fixture
def busy_machine() -> Iterator[None]:
    """Start other processes that use every core."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    yield
    for other in others:
        other.kill()
        other.wait()


@pytest.mark.usefixtures("busy_machine")
def test_a_trial_warns_of_a_busy_machine_and_can_be_saved_and_reused(
    limbeck_front: Callable[..., str],
    recipe_file: Path,
    cache_recipe: CacheRecipe,
    recipe_text: Callable[..., str],
    teacher_run: Path,
    shards: ShardIndex,
    tmp_path: Path,
) -> None:
    cache = tmp_path / "cache.toml"
    cache.write_text(recipe_text("cache", shards=shards.folder, teacher=teacher_run, cache=tmp_path / "none.zarr"))
    figures, json_file, student = tmp_path / "here.toml", tmp_path / "estimate.json", tmp_path / "student.toml"
    student.write_text(recipe_file.read_text(encoding="utf-8") + f'decoded_cache = "{tmp_path / "decoded"}"\n')
    command = ("estimate", cache, "--student", student, "--json", json_file, "--overwrite")
    printed = limbeck_front(*command, "--seconds", 1, "--save", figures, "--png", tmp_path / "estimate.png")
    assert_facts(printed, "hard", "dense-uint8")
    (busy,) = re.findall(rf"(\d+\.\d+)\D+\b{os.cpu_count()}\b.*--figures", outside_tables(printed))
    assert float(busy) > 0.1
    first = json.loads(json_file.read_text())
    with Image.open(tmp_path / "estimate.png") as picture:
        assert picture.width > 1000
    assert first["views"] == 80 and first["units"] == 3 and first["bills"][0]["student"] > 0
    assert load_recipe(figures, Hardware).measured == Setup(
        teacher="resnet10t", size=32, student="deit_tiny_distilled_patch16_224", classes=3, k=3
    )
    printed = limbeck_front(*command, "--figures", figures)
    assert "resnet10t" not in printed and "?" not in printed
    limbeck_front(*command, "--figures", figures, "--figures", V100, "--set", "data.train=nowhere")
    again = json.loads(json_file.read_text())
    assert again["bills"][0]["machine"] == first["bills"][0]["machine"] and again["bills"][1]["machine"] == "V100"
    assert again["images"] == 1_281_167  # the figures' own data set
    assert not (tmp_path / "none.zarr").exists()
    assert not (tmp_path / "decoded").exists()  # the trial has its own


@pytest.fixture
def limbeck_front() -> Callable[..., str]:
    """Run a command of the whole command line; its error is raised."""

    def run(*words: object) -> str:
        result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
        if result.exception:
            raise result.exception
        return result.output

    return run


def test_what_cannot_be_estimated_is_refused_before_any_trial(
    limbeck_front: Callable[..., str], recipe_file: Path, imagenet: CacheRecipe, tmp_path: Path
) -> None:
    path = ROOT / "teacher_cache" / "recipes" / "imagenet_224.toml"
    with pytest.raises(RecipeError, match=r"--png\b.*none/a\.png.*'none'"):
        limbeck_front("estimate", path, "--figures", V100, "--png", "none/a.png")
    with pytest.raises(RecipeError) as raised:
        limbeck_front("estimate", path, "--figures", V100, "--save", tmp_path / "a.toml")
    assert_facts(raised.value, "--save", "--figures")
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(V100.read_text().replace("views_per_second", "view_per_second"))
    with pytest.raises(RecipeError) as raised:
        limbeck_front("estimate", path, "--figures", wrong)
    assert_facts(raised.value, wrong, "teacher.view_per_second", "'teacher.views_per_second'")
    student = load_recipe(recipe_file, TrainRecipe, ("loss.distillation=soft", "loss.tau=2.0", "loss.balance=0.5"))
    work = Workload((100,), 3, 2, 2)
    with pytest.raises(RecipeError) as raised:
        training_of(student, work, imagenet, 0)
    assert_facts(raised.value, "cache.encoding", "hard", "topk")
    with pytest.raises(RecipeError, match=r"\[cache\]"):
        training_of(load_recipe(ROOT / "student" / "recipes" / "deit_s.toml", TrainRecipe), work, imagenet, 0)
