import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from facts import assert_facts

from student.data.inputs import open_inputs
from student.recipe import TrainRecipe
from student.training.checkpoint import CHECKPOINTS, checkpoint_steps, load_checkpoint, save_checkpoint
from student.training.loop import build_student, train
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.config import digest_of, parse_recipe, resolved
from teacher_cache.data.index import ShardIndex
from teacher_cache.errors import CacheError, DivergedError, LimbeckError, RecipeError, RunError
from teacher_cache.models.run_folder import FINAL
from teacher_cache.models.weights import load_network
from teacher_cache.packing.pack import pack
from teacher_cache.storage.jsonl import Journal

Recipes = Callable[..., TrainRecipe]
WAIT_SECONDS = 60
TIMES = ("seconds", "images_per_second", "waiting")


def refusal(recipe: TrainRecipe, run: Path, kind: type[LimbeckError]) -> str:
    """The one-line error with which training is refused, before anything is written."""
    with pytest.raises(kind) as raised:
        train(recipe, run)
    assert "\n" not in str(raised.value)
    assert not run.exists()
    return str(raised.value)


def facts(run: Path) -> list[dict[str, Any]]:
    """The lines of the run's journal without the times."""
    lines = Journal(run / "journal.jsonl").read()
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def same_weights(first: Path, second: Path) -> bool:
    (_, a), (_, b) = (load_network(run / FINAL) for run in (first, second))
    states = a.state_dict(), b.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def with_views(recipe: TrainRecipe, cache: TargetCache, **changes: Any) -> TrainRecipe:
    tables = {**resolved(recipe), "views": {**cache.manifest.views, **changes}}
    return parse_recipe(tables, TrainRecipe, "it")


def test_views_that_differ_from_the_caches_are_reported_key_by_key(
    student_recipe: Recipes, cache: TargetCache, tmp_path: Path
) -> None:
    recipe = with_views(student_recipe(), cache, hflip=0.25, auto_augment="", scale=[0.1, 1.0])
    message = refusal(recipe, tmp_path / "run", CacheError)
    assert_facts(message, cache.where, "views.hflip", 0.25, "views.auto_augment", "'rand-m9-mstd0.5-inc1'")
    assert re.search(r"views\.hflip\D+0\.(5|25)\D+0\.(5|25)\b", message)
    assert re.search(r"views\.scale\b.*\b0\.(08|1)\D+0\.(08|1)\b", message)
    assert "views.mixup" not in message and "teacher." not in message


def test_views_equal_to_the_caches_are_accepted(student_recipe: Recipes, cache: TargetCache) -> None:
    source = open_inputs(with_views(student_recipe(), cache))
    assert source.policy == cache.manifest.policy and source.seeds == 4


def test_another_teacher_than_the_caches_is_refused(
    student_recipe: Recipes, cache: TargetCache, tmp_path: Path
) -> None:
    message = refusal(student_recipe('cache.teacher="regnety_160"'), tmp_path / "run", CacheError)
    assert_facts(message, "teacher.model", "resnet10t", "regnety_160")
    assert open_inputs(student_recipe('cache.teacher="resnet10t"')).cache.path == cache.where


def test_other_shards_than_the_caches_are_refused(student_recipe: Recipes, photos: Path, tmp_path: Path) -> None:
    other = pack(photos, tmp_path / "other", shard_rows=16, seed=1)
    message = refusal(student_recipe(f'data.train="{other.folder}"'), tmp_path / "run", CacheError)
    assert re.search(r"shards\.md5\D+3\b", message), "how many shards differ"
    fewer = pack(photos, tmp_path / "fewer", shard_rows=16, limit=32)
    message = refusal(student_recipe(f'data.train="{fewer.folder}"'), tmp_path / "run", CacheError)
    assert re.search(r"shards\.rows\D+(2\b\D+3|3\b\D+2)\b", message)


def test_validation_shards_of_other_classes_are_refused(
    student_recipe: Recipes, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "logo").rename(tmp_path / "photos" / "aaa")
    other = pack(tmp_path / "photos", tmp_path / "other")
    message = refusal(student_recipe(f'data.val="{other.folder}"'), tmp_path / "run", RecipeError)
    assert_facts(message, "data.train", "data.val", "'aaa'")


@pytest.fixture
def copied(cache: TargetCache, alter_manifest: Callable[..., None], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that copies the cache and changes some fields of its manifest."""

    def copy(**fields: Any) -> Path:
        path = Path(shutil.copytree(cache.where, tmp_path / "copy.zarr"))
        alter_manifest(path, **fields)
        return path

    return copy


def test_a_cache_of_another_version_of_views_is_refused_before_the_first_step(
    student_recipe: Recipes, copied: Callable[..., Path], cache: TargetCache, tmp_path: Path
) -> None:
    version = cache.manifest.view_version
    path = copied(view_version=version + 1)
    message = refusal(student_recipe(f'cache.path="{path}"'), tmp_path / "run", CacheError)
    assert re.search(rf"view_version\D+({version + 1}\D+{version}|{version}\D+{version + 1})\b", message)


def test_an_incomplete_cache_is_refused_with_the_number_of_missing_units(
    student_recipe: Recipes, copied: Callable[..., Path], cache: TargetCache, tmp_path: Path
) -> None:
    path = copied()
    markers = sorted((path / "units").glob("*-*"))
    for marker in markers[1:3]:
        marker.unlink()
    message = refusal(student_recipe(f'cache.path="{path}"'), tmp_path / "run", CacheError)
    assert_facts(message, path, "limbeck cache build")
    assert re.search(rf"\b2\D+{len(markers)}\b", message.replace(str(path), "")), "how many units it lacks"


def test_soft_distillation_from_hard_labels_is_refused(
    student_recipe: Recipes, copied: Callable[..., Path], cache: TargetCache, tmp_path: Path
) -> None:
    path = copied(encoding={"kind": "hard", "k": 1, "values": "float16", "digest_bits": 16})
    soft = student_recipe(f'cache.path="{path}"', 'loss.distillation="soft"', "loss.tau=3.0", "loss.balance=0.1")
    message = refusal(soft, tmp_path / "run", RecipeError)
    assert_facts(message, path, "hard", "soft", "topk", "dense")


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        (["train.batch=48"], (40, 48)),
        (["train.batch=10"], ("batch", 10, "streams", "views.aug_repeats", 4, 1)),
        (['optim.name="adamq"'], ("optim.name", "adamq")),
        (["schedule.warmup_epochs=2"], ("schedule.warmup_epochs", "schedule.epochs", 2)),
        (["model.args={img_size=40,patch_size=8}"], ("views.size", 32)),
        (["eval.size=40"], ("eval.size", 40)),
        (["model.args={img_size=32,patch_size=8,in_chans=1}"], ("views.size", 32)),
        (['machine.device="quantum"'], ("device", "quantum", "cpu", "cuda")),
    ],
)
def test_invalid_settings_are_refused_before_the_run_folder_is_created(
    student_recipe: Recipes, tmp_path: Path, changes: list[str], facts: tuple[object, ...]
) -> None:
    assert_facts(refusal(student_recipe(*changes), tmp_path / "run", RecipeError), *facts)


def test_a_run_folder_belongs_to_one_recipe_and_each_differing_key_is_reported(
    student_recipe: Recipes, student_run: Path
) -> None:
    before = {path: path.read_bytes() for path in student_run.rglob("*") if path.is_file()}
    with pytest.raises(RunError) as raised:
        train(student_recipe("optim.lr=1e-3", "model.args.depth=3", "train.seed=77"), student_run)
    assert_facts(raised.value, student_run, "model.args.depth", 3, "optim.lr", 0.003, 0.001, "train.seed", 77)
    assert_facts(raised.value, "--out")
    assert {path: path.read_bytes() for path in student_run.rglob("*") if path.is_file()} == before


def test_a_finished_run_is_left_unchanged_on_any_machine(student_recipe: Recipes, student_run: Path) -> None:
    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in student_run.rglob("*") if path.is_file()}

    before = contents()
    accuracy = train(student_recipe("machine.workers=2"), student_run)
    assert accuracy == Journal(student_run / "journal.jsonl").read()[-1]["accuracy"]
    assert contents() == before


def test_a_run_restored_from_only_its_checkpoint_ends_the_same(
    student_recipe: Recipes, student_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(student_run, run)
    shutil.rmtree(run / FINAL)
    (run / "journal.jsonl").write_text('{"epoch": 1}\n{"epoch": 2, "los')
    train(student_recipe(), run)
    assert same_weights(run, student_run)
    assert facts(run) == facts(student_run)


def test_a_run_of_0_1_0_with_the_old_key_start_continues(
    student_recipe: Recipes, student_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(student_run, run)
    shutil.rmtree(run / FINAL)
    stored = json.loads((run / "recipe.json").read_text())
    digest = digest_of(stored)
    stored["model"]["start"] = stored["model"].pop("init_from")
    (run / "recipe.json").write_text(json.dumps(stored))
    checkpoint = load_checkpoint(run, digest)
    assert checkpoint is not None
    save_checkpoint(run, replace(checkpoint, recipe=digest_of(stored)), keep=1)
    train(student_recipe(), run)
    assert same_weights(run, student_run)


def test_checkpoints_without_their_recipe_are_refused(
    student_run: Path, student_recipe: Recipes, tmp_path: Path
) -> None:
    shutil.copytree(student_run / CHECKPOINTS, tmp_path / CHECKPOINTS)
    with pytest.raises(RunError) as raised:
        train(student_recipe(), tmp_path)
    assert_facts(raised.value, tmp_path, "recipe.json", "--out")


def test_a_killed_run_resumes_to_exactly_the_weights_of_a_whole_one(
    student_recipe: Recipes, recipe_file: Path, tmp_path: Path
) -> None:
    """Runs on the CPU with dropout and stochastic depth. Only the first half has a worker process."""
    epochs = 8
    changes = (
        f"schedule.epochs={epochs}",
        "train.evaluate_every=2",
        "model.args.drop_rate=0.1",
    )
    killed, uninterrupted = tmp_path / "killed", tmp_path / "uninterrupted"
    command = [sys.executable, "-m", "server.cli", "train", str(recipe_file), "--out", str(killed)]
    command += [word for change in (*changes, "machine.workers=1") for word in ("--set", change)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # like this process, so that sums have the same order
    with subprocess.Popen(command, env=one_thread, stderr=subprocess.PIPE, encoding="utf-8") as process:
        until = time.monotonic() + WAIT_SECONDS
        while not checkpoint_steps(killed) and time.monotonic() < until and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.stderr.read() if process.stderr else ""

    recipe = student_recipe(*changes)
    stopped = load_checkpoint(killed, digest_of(json.loads((killed / "recipe.json").read_text())))
    assert stopped is not None and 5 <= stopped.step < 5 * epochs
    assert not (killed / FINAL).exists()

    train(recipe, killed)
    train(recipe, uninterrupted)
    assert same_weights(killed, uninterrupted)
    assert facts(killed) == facts(uninterrupted)
    assert [line["epoch"] for line in facts(killed)] == list(range(1, epochs + 1))
    assert [bool(line["accuracy"]) for line in facts(killed)] == [False, True] * (epochs // 2)


def test_another_seed_is_another_run(student_recipe: Recipes, student_run: Path, tmp_path: Path) -> None:
    train(student_recipe("train.seed=2"), tmp_path / "run")
    assert not same_weights(tmp_path / "run", student_run)


def test_a_distilled_student_overfits_a_small_set(student_recipe: Recipes, tmp_path: Path) -> None:
    recipe = student_recipe("schedule.epochs=18", "train.evaluate_every=18", "optim.lr=5e-3")
    accuracy = train(recipe, tmp_path / "run")
    losses = [line["loss"] for line in facts(tmp_path / "run")]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert accuracy.keys() == {"class", "distill", "joint"}
    assert min(accuracy.values()) > 50  # chance is 35 with three classes


def test_a_teacher_learns_from_its_own_views_with_one_head(
    student_recipe: Recipes, shards: ShardIndex, tmp_path: Path
) -> None:
    plain = {"size": 32, "hflip": 0.5, "auto_augment": "", "re_prob": 0.0, "mixup": 0.0, "cutmix": 0.0}
    tables = resolved(student_recipe('loss.distillation="none"', "schedule.epochs=6", "optim.lr=1e-2"))
    model = {"name": "resnet10t", "args": {"stem_type": "", "channels": [8, 8, 16, 16]}, "small_stem": True}
    recipe = parse_recipe({**tables, "cache": None, "views": plain, "model": model}, TrainRecipe, "it")
    accuracy = train(recipe, tmp_path / "run")
    lines = facts(tmp_path / "run")
    assert accuracy.keys() == {"class"}
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert all(line["loss_distill"] == 0 for line in lines)


def test_a_nan_loss_stops_the_run_before_a_checkpoint(student_recipe: Recipes, tmp_path: Path) -> None:
    recipe = student_recipe("optim.lr=1e36", "optim.clip_grad=0.0", "schedule.warmup_epochs=0")
    with pytest.raises(DivergedError) as raised:
        train(recipe, tmp_path / "run")
    assert_facts(raised.value, tmp_path / "run", "loss", "step 2", "optim.lr")
    assert not checkpoint_steps(tmp_path / "run")
    assert not (tmp_path / "run" / FINAL).exists()


def test_nan_weights_are_neither_saved_nor_evaluated(student_recipe: Recipes, tmp_path: Path) -> None:
    """The loss of the step that makes the weights NaN is finite, as it is computed first."""
    run, spoiling = tmp_path / "run", ("optim.lr=3e37", "optim.weight_decay=30.0", "optim.clip_grad=0.0")
    start = ("schedule.warmup_epochs=0", "machine.checkpoint_every=1")
    with pytest.raises(DivergedError, match=r"\bstep 1\b"):
        train(student_recipe(*spoiling, *start), run)
    assert not checkpoint_steps(run) and not facts(run)

    train(student_recipe(*start), run)  # nothing was saved, so the recipe can change
    digest = digest_of(json.loads((run / "recipe.json").read_text()))
    last = load_checkpoint(run, digest)
    assert last and all(weight.isfinite().all() for weight in last.learner["network"].values())
    shutil.rmtree(run / FINAL)
    last.learner["network"]["head.bias"][0] = torch.nan  # as an older version could have saved it
    save_checkpoint(run, last, keep=2)
    with pytest.raises(DivergedError) as raised:
        train(student_recipe(*start), run)
    assert_facts(raised.value, "head.bias", "step 10")
    assert not (run / FINAL).exists()


def test_a_run_does_not_resume_with_a_rebuilt_cache(
    student_recipe: Recipes, student_run: Path, cache: TargetCache, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(student_run, tmp_path / "run"))
    stored = json.loads((run / "recipe.json").read_text())
    stored["inputs"]["cache"] = "of another teacher"
    (run / "recipe.json").write_text(json.dumps(stored))
    with pytest.raises(RunError, match=r"inputs\.cache\b.*'of another teacher'"):
        train(student_recipe(), run)


def test_a_finished_run_without_its_checkpoint_refuses_another_recipe(
    student_recipe: Recipes, student_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(student_run, tmp_path / "run"))
    shutil.rmtree(run / CHECKPOINTS)
    with pytest.raises(RunError) as raised:
        train(student_recipe("optim.lr=0.5"), run)
    assert_facts(raised.value, run, "--out")


def test_the_convolutions_of_a_convnet_are_channels_last_as_its_input(student_recipe: Recipes) -> None:
    convnet = ('model.name="resnet10t"', 'loss.distillation="none"', "model.args={}")
    for changes, expected in ((convnet, True), ((), False)):
        recipe = student_recipe(*changes)
        student = build_student(recipe, open_inputs(recipe), torch.device("cpu"))
        kernels = [weight for weight in student.network.parameters() if weight.ndim == 4 and weight.shape[-1] > 1]
        found = {weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels}
        assert found == {expected}


def test_the_accuracy_is_that_of_the_dtype_which_the_journal_states(
    student_recipe: Recipes, student_run: Path, tmp_path: Path
) -> None:
    assert {line["dtype"] for line in Journal(student_run / "journal.jsonl").read()} == {"float32"}
    dtypes: dict[bool, set[torch.dtype]] = {True: set(), False: set()}

    def watch(module: torch.nn.Module, _: object, output: Any) -> None:
        if isinstance(module, torch.nn.Linear) and len(output) > 1:  # not the check of the size
            dtypes[module.training].add(output.dtype)

    with torch.nn.modules.module.register_module_forward_hook(watch):
        train(student_recipe('machine.dtype="bfloat16"'), tmp_path)
    assert {line["dtype"] for line in Journal(tmp_path / "journal.jsonl").read()} == {"bfloat16"}
    assert dtypes == {True: {torch.bfloat16}, False: {torch.bfloat16}}
