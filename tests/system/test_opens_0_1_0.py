"""Caches, runs, studies and bundles written by version 0.1.0 (tests/data/0.1.0) open with this version.

Views are compared bit for bit. A test fails if a version of a library renders them differently.
"""

import json
import re
import shutil
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import xarray
from numpy.typing import NDArray
from safetensors.numpy import load_file
from shell import Shell

OLD = Path(__file__).parents[1] / "data" / "0.1.0"
HALF_STEP, LAST_STEP = 8, 12
WEIGHTS_ATOL = 1e-3
"""For sums in another order, over four steps of AdamW at up to 2e-2; the steps move weights by about 1e-2."""
ONE_IMAGE = 100 / 24 + 1e-6
"""In percent. For the average weights only: two of their classes are within 1e-4 on some images."""
SETTINGS = {
    "hard": ["cache.path=caches/hard", "cache.encoding=hard", "cache.k=", "cache.values=", "cache.seeds=2"],
    "topk": [],
    "dense": [
        "cache.path=caches/dense",
        "cache.encoding=dense",
        "cache.k=",
        "cache.values=uint8",
        "cache.seeds=2",
    ],
}
SHORT = ["schedule.epochs=1", "schedule.warmup_epochs=0"]
STUDENTS = {
    "hard": ["cache.path=caches/hard", "loss.distillation=hard", "loss.tau=", "loss.balance="],
    "dense": ["cache.path=caches/dense"],
}

Limbeck = Callable[..., str]
Facts = dict[str, Any]


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files of 0.1.0. It is the working directory, because the paths in the files are relative."""
    folder = Path(shutil.copytree(OLD, tmp_path / "old"))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def versions(old: Path, alter_manifest: Callable[..., None]) -> None:
    """The manifests name the installed versions: `cache build` refuses others, even those of the same pixels."""
    for cache in SETTINGS:
        found = json.loads((old / "caches" / cache / "zarr.json").read_text())["attributes"]["limbeck"][
            "libraries"
        ]
        installed = {name: version(name).partition("+")[0] for name in found}
        if installed != found:
            alter_manifest(old / "caches" / cache, libraries=installed)


def changes(keys: list[str]) -> list[str]:
    return [word for key in keys for word in ("--set", key)]


def lines(path: Path) -> list[Facts]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def bytes_of(folder: Path) -> dict[str, bytes]:
    """All files of a folder; not the lock files, which are empty."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("claim"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def arrays(cache: str) -> dict[str, NDArray[Any]]:
    """What a cache stores, read without Limbeck."""
    found = xarray.open_zarr(f"caches/{cache}", consolidated=False, mask_and_scale=False)
    return {str(name): found[name].values for name in found.variables}


def pinned_arrays(cache: str) -> dict[str, NDArray[Any]]:
    pinned = json.loads((OLD / "pinned" / "targets.json").read_text())[cache]
    return {name: np.array(array["values"], array["dtype"]) for name, array in pinned.items()}


def same(mine: dict[str, NDArray[Any]], theirs: dict[str, NDArray[Any]]) -> bool:
    return mine.keys() == theirs.keys() and all(
        mine[name].dtype == theirs[name].dtype and np.array_equal(mine[name], theirs[name], equal_nan=True)
        for name in mine
    )


def losses(journal: list[Facts]) -> list[float]:
    return [line[name] for line in journal for name in ("loss", "loss_class", "loss_distill")]


def assert_same_predictions(found: list[Facts]) -> None:
    pinned = lines(OLD / "pinned" / "predictions.jsonl")
    assert [(row["key"], row["label"]) for row in found] == [(row["key"], row["label"]) for row in pinned]
    for mine, theirs in zip(found, pinned, strict=True):
        for head in ("class", "distill", "joint"):
            assert mine[head]["index"] == theirs[head]["index"]
            assert mine[head]["probability"] == pytest.approx(theirs[head]["probability"], abs=1e-5)


@pytest.mark.parametrize(("cache", "units", "targets"), [("hard", 3, 48), ("topk", 6, 96), ("dense", 3, 48)])
def test_a_cache_is_whole_and_its_views_are_rendered_again(
    limbeck: Limbeck, old: Path, cache: str, units: int, targets: int
) -> None:
    before = bytes_of(old / "caches")
    shown = limbeck("cache", "status", f"caches/{cache}")
    assert "resnet10t" in shown
    assert f" {units} of {units} " in shown and f" {targets} of {targets} " in shown
    checked = limbeck("cache", "verify", f"caches/{cache}", "--replay", 2 * targets, "--teacher")
    assert f" {units} of {units} " in checked and f" {2 * targets} views" in checked
    assert same(arrays(cache), pinned_arrays(cache))
    limbeck("cache", "show", f"caches/{cache}", "--seed", 1, "--shard", 2, "--out", "sheet.png")
    assert (old / "sheet.png").read_bytes().startswith(b"\x89PNG")
    assert bytes_of(old / "caches") == before


@pytest.mark.usefixtures("versions")
@pytest.mark.parametrize("cache", list(SETTINGS))
def test_a_complete_cache_stays_and_a_removed_unit_is_built_as_it_was(
    limbeck: Limbeck, old: Path, cache: str
) -> None:
    build = ("cache", "build", "cache.toml", *changes(SETTINGS[cache]))
    folder, block = old / "caches" / cache, 1 if cache == "topk" else 0
    before = bytes_of(folder)
    limbeck(*build)
    assert bytes_of(folder) == before
    removed = [folder / "units" / f"{2 * block}-{2 * block + 2}.2", *folder.glob(f"*/c.{block}.2.*")]
    assert len(removed) == len(arrays(cache)) + 1
    for path in removed:
        path.unlink()
    assert not same(arrays(cache), pinned_arrays(cache))
    limbeck(*build)
    assert bytes_of(folder).keys() == before.keys()
    found, pinned = arrays(cache), pinned_arrays(cache)
    for name, array in pinned.items():
        assert found[name].dtype == array.dtype
        atol = {"value": 2e-3, "logits": 1}.get(name, 1e-5 if array.dtype.kind == "f" else 0)  # another CPU's
        assert np.allclose(found[name].astype(float), array.astype(float), rtol=0, atol=atol, equal_nan=True), name


@pytest.mark.usefixtures("versions")
def test_an_extended_cache_keeps_its_seeds_and_labels_new_ones_as_0_1_0_does(limbeck: Limbeck, old: Path) -> None:
    """0.1.0 built `hard` with two seeds and `topk` with four, of the same views and teacher."""
    units = {name: data for name, data in bytes_of(old / "caches" / "hard").items() if "/c." in name}
    keys = [*SETTINGS["hard"][:-1], "cache.seeds=4"]
    limbeck("cache", "extend", "cache.toml", *changes(keys))
    assert units.items() <= bytes_of(old / "caches" / "hard").items()
    assert " 6 of 6 " in limbeck("cache", "status", "caches/hard")
    found, pinned = arrays("hard"), pinned_arrays("topk")
    assert found["hard"].shape == (4, 3, 10)
    assert same(found, {name: pinned[name] for name in found})
    assert " 50 views" in limbeck("cache", "verify", "caches/hard", "--replay", 50)


@pytest.mark.parametrize("cache", list(STUDENTS))
def test_a_student_learns_from_each_encoding_what_it_learned_in_0_1_0(
    limbeck: Limbeck, old: Path, cache: str
) -> None:
    """The run that is resumed uses the third encoding."""
    limbeck("train", "student.toml", "--out", "runs/new", *changes(SHORT + STUDENTS[cache]))
    found, pinned = lines(old / "runs" / "new" / "journal.jsonl"), lines(OLD / "pinned" / f"{cache}.jsonl")
    assert [line["step"] for line in found] == [line["step"] for line in pinned] == [3]
    assert losses(found) == pytest.approx(losses(pinned), rel=1e-5)


def test_a_stopped_run_goes_on_from_its_step_and_ends_as_the_whole_run_of_0_1_0(
    limbeck: Limbeck, old: Path
) -> None:
    half, whole = old / "runs" / "half", OLD / "runs" / "student"
    before = lines(half / "journal.jsonl")
    assert [line["step"] for line in before] == [3, 6] and not (half / "final").exists()
    output = limbeck("train", "student.toml", "--out", "runs/half")
    assert re.search(rf"step {HALF_STEP}\b", output)
    found, pinned = lines(half / "journal.jsonl"), lines(whole / "journal.jsonl")
    assert found[:2] == before  # with their times, which would differ if an epoch was trained again
    assert [line["step"] for line in found] == [line["step"] for line in pinned] == [3, 6, 9, LAST_STEP]
    assert losses(found) == pytest.approx(losses(pinned), rel=1e-5)
    assert [line["lr"] for line in found] == pytest.approx([line["lr"] for line in pinned])
    assert found[-1]["accuracy"] == pytest.approx(pinned[-1]["accuracy"])
    assert found[-1]["accuracy_ema"] == pytest.approx(pinned[-1]["accuracy_ema"], abs=ONE_IMAGE)
    for name in ("final", "final_ema"):
        mine, theirs = (load_file(run / name / "model.safetensors") for run in (half, whole))
        assert mine.keys() == theirs.keys()
        assert all(np.allclose(mine[key], theirs[key], rtol=0, atol=WEIGHTS_ATOL) for key in theirs)


def test_a_finished_run_is_finished(limbeck: Limbeck, old: Path) -> None:
    before = bytes_of(old / "runs")
    limbeck("train", "student.toml", "--out", "runs/student")
    assert bytes_of(old / "runs") == before


def test_evaluation_gives_the_scores_and_predictions_of_0_1_0(limbeck: Limbeck, old: Path) -> None:
    options = ("--predictions", "predictions.jsonl", "--json", "scores.json", "--resamples", 100, "--workers", 0)
    limbeck("evaluate", "runs/student", "shards", *options)
    found, pinned = (
        json.loads(path.read_text()) for path in (old / "scores.json", OLD / "pinned" / "scores.json")
    )
    assert len(found["scores"]) == 8
    for mine, theirs in zip(found["scores"], pinned["scores"], strict=True):
        assert [mine[name] for name in ("set", "images", "weights", "head")] == [
            theirs[name] for name in ("set", "images", "weights", "head")
        ]
        for metric in ("top1", "nll", "calibration"):
            assert mine["metrics"][metric] == pytest.approx(theirs["metrics"][metric], rel=1e-4)
    assert_same_predictions(lines(old / "predictions.jsonl"))

    limbeck("evaluate", "runs/teacher", "shards", "--json", "teacher.json", "--resamples", 1, "--workers", 0)
    (score,) = json.loads((old / "teacher.json").read_text())["scores"]
    accuracy = json.loads((OLD / "runs" / "teacher" / "final" / "card.json").read_text())["accuracy"]
    assert (score["head"], score["metrics"]["top1"]["value"]) == ("class", pytest.approx(accuracy["class"]))


def test_a_report_shows_the_old_runs(limbeck: Limbeck, old: Path) -> None:
    output = limbeck("report", "runs/student", "--teacher", "runs/teacher", "--out", "report", "--workers", 0)
    assert "report/report.html" in output
    page = (old / "report" / "report.html").read_text()
    accuracy = json.loads((OLD / "runs" / "student" / "final" / "card.json").read_text())["accuracy"]
    assert all(f"{accuracy[head]:.2f}" in page for head in ("class", "distill", "joint"))
    pictures = {path.stem for path in (old / "report").glob("*.png")}
    assert pictures >= {"attention", "classes", "cosine", "curves", "disagreement", "heads", "reliability"}


def test_a_run_is_exported_as_0_1_0_exported_it(limbeck: Limbeck, old: Path) -> None:
    limbeck("export", "runs/student", "again")
    for name in ("model.safetensors", "labels.txt", "config.json"):
        assert (old / "again" / name).read_bytes() == (OLD / "bundle" / name).read_bytes()
    cards = [json.loads((folder / "card.json").read_text()) for folder in (old / "again", OLD / "bundle")]
    assert cards[0] == cards[1]
    mine, theirs = (load_file(folder / "check.safetensors") for folder in (old / "again", OLD / "bundle"))
    assert np.array_equal(mine["pixels"], theirs["pixels"])
    for name in ("class_logits", "distill_logits"):
        assert np.allclose(mine[name], theirs[name], rtol=0, atol=1e-5)

    limbeck("export", "runs/student", "mean", "--ema")
    mean = OLD / "runs" / "student" / "final_ema" / "model.safetensors"
    assert (old / "mean" / "model.safetensors").read_bytes() == mean.read_bytes()


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_a_bundle_is_served_and_answers_its_check_images(old: Path, runtime: str) -> None:
    check = load_file(OLD / "bundle" / "check.safetensors")
    pixels = check["pixels"]
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": pixels.shape, "data": pixels.ravel().tolist()}
    options = ("--runtime", runtime, "--workers", 1)
    with Shell(old).served("old=bundle", *options) as url, httpx.Client(base_url=url, timeout=60) as client:
        answer = client.post("/v2/models/old/infer", json={"inputs": [tensor]}).raise_for_status().json()
    outputs = {output["name"]: np.reshape(output["data"], output["shape"]) for output in answer["outputs"]}
    for head in ("class", "distill"):
        logits = check[f"{head}_logits"].astype(np.float64)
        expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        found = np.log(outputs[f"{head}_probabilities"])
        assert np.allclose(found, expected, rtol=0, atol=1e-4)


def test_a_bundle_is_evaluated_like_its_run(limbeck: Limbeck, old: Path) -> None:
    limbeck("evaluate", "bundle", "shards", "--predictions", "predictions.jsonl", "--resamples", 1, "--workers", 0)
    assert_same_predictions(lines(old / "predictions.jsonl"))


def test_a_study_grows_by_a_seed(limbeck: Limbeck, old: Path) -> None:
    assert re.search(r"\b2 done\b", limbeck("study", "status", "studies/seeds"))
    folder = old / "studies" / "seeds"
    before = {name: data for name, data in bytes_of(folder).items() if name.startswith("seed-")}
    keys = [*SHORT, "train.ema=0.0"]
    limbeck("study", "seeds", "student.toml", "--seeds", 3, "--out", "studies/seeds", *changes(keys))
    assert before.items() <= bytes_of(folder).items()
    pinned = json.loads((OLD / "studies" / "seeds" / "report.json").read_text())["by_seed"]
    found = json.loads((folder / "report.json").read_text())["by_seed"]
    assert found.keys() == {"0", "1", "2"} and pinned.items() <= found.items()


def test_figures_are_read(limbeck: Limbeck, old: Path) -> None:
    options = ("--student", "student.toml", "--figures", "figures.toml", "--json", "costs.json")
    limbeck("estimate", "cache.toml", *options)
    found = json.loads((old / "costs.json").read_text())
    figures = tomllib.loads((OLD / "figures.toml").read_text())
    assert (found["images"], found["views"], found["units"]) == (24, 96, 6)
    (machine,) = found["bills"]
    assert machine["machine"] == figures["machine"]["name"]
    teacher, student = figures["teacher"], figures["student"]
    assert machine["teacher"] == pytest.approx(96 / teacher["views_per_second"] + teacher["start_seconds"])
    steps = 96 / student["images_per_second"] + 96 / student["evaluated_per_second"]
    assert machine["student"] == pytest.approx(steps + student["start_seconds"])
