"""Tests of one training step: equal in micro-batches and whole, from a cache and with a live teacher."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ddp_graphs
import numpy as np
import pytest
import torch
from clean_process import exit_code_of
from device_traffic import DeviceTraffic
from facts import assert_facts
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.backends import cudnn

from student.bundle.export import ExportOptions, export
from student.data.batch import Batch
from student.data.inputs import open_inputs, open_teacher
from student.data.loader import Feed
from student.model.stochastic_depth import StochasticDepth
from student.model.student import create_student
from student.recipe import CacheRef, TrainRecipe
from student.training.learner import Learner
from student.training.loop import train
from student.training.meter import Meter
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.config import parse_recipe, resolved
from teacher_cache.data import view_reader
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.plan import PlanSpec
from teacher_cache.distributed.world import World
from teacher_cache.errors import CacheError, RecipeError, RunError
from teacher_cache.models.run_folder import FINAL, FINAL_EMA
from teacher_cache.models.weights import load_network
from teacher_cache.recipe import CacheRecipe
from teacher_cache.storage.jsonl import Journal

Recipes = Callable[..., TrainRecipe]
CLASSES = 3
CPU = torch.device("cpu")


@pytest.fixture
def batches(cache: TargetCache, shards: ShardIndex) -> list[Batch]:
    spec = PlanSpec(cache.manifest.policy, cache.manifest.seeds, batch=8, streams=4)
    feed = Feed(spec, shards, CacheRef(path=cache.where), 1.0, World())
    return [batch.clone() for batch in feed.batches(range(1), 0, workers=0)]


def learner(recipe: TrainRecipe) -> Learner:
    """A learner with the same initial weights for every recipe of the same network."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Learner(recipe, create_student(recipe.model, CLASSES, True), CLASSES)


def train_steps(recipe: TrainRecipe, batches: list[Batch]) -> tuple[list[float], dict[str, Tensor]]:
    """Return the loss of each step, and the final weights."""
    one = learner(recipe)
    loss_values = [float(one.learn(batch, step)[0]) for step, batch in enumerate(batches)]
    return loss_values, one.student.network.state_dict()


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("parts", [2, 8])
def test_micro_batches_make_the_same_step_as_the_whole_batch(
    student_recipe: Recipes, batches: list[Batch], parts: int
) -> None:
    """Uses clipping and stochastic depth, with SGD, because Adam amplifies rounding errors near zero."""
    sgd = ('optim.name="sgd"', "optim.lr=0.1", "model.args.drop_path_rate=0.5")
    loss_values, unsplit = train_steps(student_recipe(*sgd), batches)
    split_loss_values, by_parts = train_steps(student_recipe(*sgd, f"train.accumulate={parts}"), batches)
    assert loss_values == pytest.approx(split_loss_values, rel=1e-5)
    assert 0 < apart(unsplit, by_parts) < 1e-5
    assert apart(unsplit, learner(student_recipe()).student.network.state_dict()) > 1e-2


def test_a_split_batch_holds_every_image_mixed_as_before(batches: list[Batch]) -> None:
    for batch in batches:
        pixels, truth = batch.on(CPU, CLASSES)
        parts = [part.on(CPU, CLASSES) for part in batch.split(4)]
        assert torch.equal(torch.cat([mixed for mixed, _ in parts]), pixels)
        assert torch.equal(torch.cat([part_truth.label for _, part_truth in parts]), truth.label)
        hard, soft = ([getattr(part_truth, name) for _, part_truth in parts] for name in ("hard", "soft"))
        assert torch.equal(torch.cat(hard), truth.hard) and torch.equal(torch.cat(soft), truth.soft)


def test_a_batch_that_cannot_be_split_evenly_is_refused(student_recipe: Recipes) -> None:
    with pytest.raises(RecipeError) as raised:
        learner(student_recipe("train.accumulate=3"))
    assert_facts(raised.value, "train.batch", 8, "train.accumulate", 3)


def test_batchnorm_is_synchronized_on_gpus_only(student_recipe: Recipes) -> None:
    recipe, world = student_recipe("train.sync_batchnorm=true"), World(0, 2)
    with pytest.raises(RecipeError) as raised:
        Learner(recipe, create_student(recipe.model, CLASSES, True), CLASSES, world=world)
    assert_facts(raised.value, "train.sync_batchnorm", "cpu")
    Learner(recipe, create_student(recipe.model, CLASSES, True), CLASSES)  # one process needs no synchronization


def test_clipping_bounds_the_gradient_that_the_optimizer_sees(
    student_recipe: Recipes, batches: list[Batch]
) -> None:
    one = learner(student_recipe("optim.clip_grad=0.01", "train.accumulate=2"))
    one.learn(batches[0], 0)
    norms = [float(weight.grad.norm()) for weight in one.student.parameters() if weight.grad is not None]
    assert float(torch.tensor(norms).norm()) == pytest.approx(0.01, rel=1e-3)


def test_the_moving_average_of_the_weights_follows_its_decay(
    student_recipe: Recipes, batches: list[Batch]
) -> None:
    one = learner(student_recipe("train.ema=0.75"))
    assert one.ema is not None
    expected: dict[str, Tensor] = {}
    for step, batch in enumerate(batches):
        one.learn(batch, step)
        now = {name: weight.double().clone() for name, weight in one.student.network.state_dict().items()}
        expected = {name: 0.75 * expected[name] + 0.25 * now[name] for name in now} if expected else now
    assert apart(one.ema.module.network.state_dict(), expected) < 1e-6
    assert apart(expected, now) > 1e-3


def test_bfloat16_losses_are_close_to_float32_and_weights_stay_float32(
    student_recipe: Recipes, batches: list[Batch]
) -> None:
    exact, _ = train_steps(student_recipe(), batches)
    rounded, state = train_steps(student_recipe('machine.dtype="bfloat16"'), batches)
    assert exact != rounded and exact == pytest.approx(rounded, rel=0.02)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_tf32_and_cudnn_benchmark_hold_for_the_whole_step_and_change_no_bit_on_a_cpu(
    student_recipe: Recipes, batches: list[Batch]
) -> None:
    seen = set[tuple[str, bool, bool]]()

    def watch(*_: object) -> None:
        seen.add((torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark))

    one = learner(student_recipe('machine.dtype="tf32"', "machine.cudnn_benchmark=true"))
    one.student.register_forward_hook(watch)
    next(one.student.parameters()).register_hook(watch)
    one.optimizer.register_step_post_hook(watch)
    loss_values = [float(one.learn(batch, step)[0]) for step, batch in enumerate(batches)]
    assert seen == {("high", True, True)}
    assert (torch.get_float32_matmul_precision(), cudnn.benchmark) == ("highest", False)
    exact, weights = train_steps(student_recipe(), batches)
    assert loss_values == exact and apart(one.student.network.state_dict(), weights) == 0


def check_traffic(recipe: TrainRecipe, batch: Batch) -> None:
    """In a process of its own: after a backward pass on the meta device, a process cannot be forked."""
    on_meta = Learner(recipe, create_student(recipe.model, CLASSES, True).to("meta"), CLASSES)
    with DeviceTraffic() as traffic:
        on_meta.learn(batch, 0)
    assert len(batch.tensors()) == 9
    assert (traffic.uploads, traffic.waits) == (9 + 1, 0)


@pytest.mark.parametrize("parts", [1, 4])
def test_a_step_copies_each_field_and_the_depth_factors_once_and_never_waits_for_the_device(
    student_recipe: Recipes, batches: list[Batch], parts: int
) -> None:
    recipe = student_recipe(
        "model.args.drop_path_rate=0.5", f"train.accumulate={parts}", "optim.clip_grad=1.0", 'optim.name="sgd"'
    )
    assert exit_code_of(check_traffic, recipe, batches[0]) == 0


def test_stochastic_depth_skips_the_same_blocks_for_a_view_on_any_process() -> None:
    def network() -> nn.Module:
        return nn.Sequential(DropPath(0.5), DropPath(0.2))

    whole_network, views = network(), torch.ones(12, 1)
    depth = StochasticDepth(whole_network, batch=12, seed=3)
    depth.set(depth.draw(7, np.arange(12), CPU))
    parts = [network() for _ in range(3)]
    for number, part in enumerate(parts):
        depth = StochasticDepth(part, batch=12, seed=3)
        depth.set(depth.draw(7, np.arange(number, 12, 3), CPU))
    outputs = torch.stack([part(views[:4]) for part in parts], dim=1).reshape(12, 1)
    assert torch.equal(whole_network(views), outputs)
    assert set(whole_network(views).unique().tolist()) <= {0.0, 1 / (0.5 * np.float32(0.8))}
    assert torch.equal(whole_network.eval()(views), views)


def test_stochastic_depth_keeps_and_scales_blocks_like_timms() -> None:
    network, rows = nn.Sequential(DropPath(0.3)), np.arange(50)
    depth = StochasticDepth(network, batch=50, seed=0)
    seen = []
    for step in range(400):
        depth.set(depth.draw(step, rows, CPU))
        seen.append(network(torch.ones(50)))
    factors = torch.stack(seen)
    assert float((factors > 0).float().mean()) == pytest.approx(0.7, abs=0.01)
    assert float(factors.max()) == pytest.approx(1 / 0.7) and len(factors.unique()) == 2


def test_the_moving_average_is_evaluated_and_exported_if_requested(
    student_recipe: Recipes, student_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(student_recipe("train.ema=0.9"), run)
    (_, raw), (card, average), (_, plain) = (
        load_network(folder) for folder in (run / FINAL, run / FINAL_EMA, student_run / FINAL)
    )
    assert apart(raw.state_dict(), plain.state_dict()) == 0  # the moving average does not change the run itself
    assert apart(raw.state_dict(), average.state_dict()) > 0
    line = Journal(run / "journal.jsonl").read()[-1]
    assert line["accuracy_ema"] == card.accuracy and line["accuracy_ema"].keys() == line["accuracy"].keys()
    assert export(run, tmp_path / "bundle", ExportOptions(ema=True)).card.sha256 == card.sha256
    assert export(run, tmp_path / "raw").card.sha256 != card.sha256
    with pytest.raises(RunError) as raised:
        export(student_run, tmp_path / "none", ExportOptions(ema=True))
    assert_facts(raised.value, student_run, "train.ema")


@pytest.mark.parametrize("own", [False, True])
def test_a_run_with_a_live_teacher_equals_the_cached_run_bit_for_bit(
    student_recipe: Recipes,
    student_run: Path,
    cache: TargetCache,
    cache_recipe: CacheRecipe,
    tmp_path: Path,
    own: bool,
) -> None:
    """Uses the cache's teacher, or no cache but a teacher in the recipe and the cache's views."""
    recipe, reference = student_recipe('train.targets="live"'), student_run
    if own:
        recipe, reference = student_recipe('train.targets="live"', "train.seed=0"), tmp_path / "cached"
        train(
            student_recipe("train.seed=0"), reference
        )  # under seed 0 a run without a cache sees the views of one
        teacher_table = cache_recipe.teacher.model_dump(mode="json", exclude={"min_accuracy"})
        teacher = {"teacher": teacher_table, "views": cache.manifest.views, "cache": None}
        recipe = parse_recipe(resolved(recipe) | teacher, TrainRecipe, "it")
    train(recipe, tmp_path / "live")
    (_, live), (_, cached) = (load_network(run / FINAL) for run in (tmp_path / "live", reference))
    assert apart(live.state_dict(), cached.state_dict()) == 0
    of_live, of_cached = (Journal(run / "journal.jsonl").read() for run in (tmp_path / "live", reference))
    assert [line["loss"] for line in of_live] == [line["loss"] for line in of_cached]
    assert [line["accuracy"] for line in of_live] == [line["accuracy"] for line in of_cached]


def test_a_live_teacher_gives_the_same_hard_labels_as_the_cache(
    student_recipe: Recipes, batches: list[Batch]
) -> None:
    recipe = student_recipe('train.targets="live"')
    teacher = open_teacher(recipe, open_inputs(recipe))
    assert teacher is not None and open_teacher(student_recipe(), open_inputs(student_recipe())) is None
    for batch in batches:
        pixels, truth = batch.on(CPU, CLASSES)
        assert torch.equal(teacher(pixels).argmax(dim=1), truth.hard)


def test_soft_targets_of_a_live_teacher_need_no_logits_in_the_cache(
    student_recipe: Recipes, tmp_path: Path
) -> None:
    recipe = student_recipe(
        'train.targets="live"', 'loss.distillation="soft"', "loss.tau=3.0", "loss.balance=0.5", "schedule.epochs=2"
    )
    train(recipe, tmp_path)
    line = Journal(tmp_path / "journal.jsonl").read()[-1]
    assert line["loss_distill"] > 0 and line["loss"] == pytest.approx(
        0.5 * line["loss_class"] + 0.5 * line["loss_distill"], rel=1e-5
    )


def test_a_teacher_that_differs_from_the_caches_is_refused(
    student_recipe: Recipes, cache: TargetCache, alter_manifest: Callable[..., None], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(cache.where, tmp_path / "cache.zarr"))
    alter_manifest(path, teacher=cache.manifest.teacher | {"sha256": "0" * 64})
    recipe = student_recipe(f'cache.path="{path}"', 'train.targets="live"')
    with pytest.raises(CacheError) as raised:
        train(recipe, tmp_path / "run")
    assert_facts(raised.value, path, "teacher.sha256", "0" * 12)


def test_the_meter_reports_the_step_whose_loss_is_nan(batches: list[Batch]) -> None:
    meter = Meter()
    assert meter.summary(8) == ""
    for step, _ in meter.over(iter(batches), range(5, 8)):
        if step < 7:
            meter.add(step, torch.tensor([2.0, 1.0, 3.0]))
    assert meter.state()["losses"] == (4.0, 2.0, 6.0) and meter.finish().steps == 2
    assert_facts(meter.summary(8), "loss 2.000", "class 1.000", "distill 3.000")
    assert 0 <= meter.epoch.waited <= meter.epoch.seconds
    with pytest.raises(FloatingPointError, match=r"\bstep\D*8\b"):
        meter.add(7, torch.tensor([torch.nan, 1.0, 3.0]))


def test_an_image_is_decoded_once_for_all_its_views_in_a_batch(
    batches: list[Batch], cache: TargetCache, shards: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repeated augmentation puts three views of an image in one batch, for one process or two."""
    policy = cache.manifest.policy.model_copy(update={"aug_repeats": 3})
    feed = Feed(PlanSpec(policy, 3, batch=24, streams=4), shards, None, None, World())
    decoded: list[bytes] = []
    decode = view_reader.decode
    monkeypatch.setattr(view_reader, "decode", lambda image: (decoded.append(image), decode(image))[1])
    whole_batch = next(iter(feed.batches(range(1), 0, workers=0)))
    assert len(whole_batch.label) == 24 and len(decoded) == len(set(decoded)) == 8
    shares = [next(iter(replace(feed, world=World(rank, 2)).batches(range(1), 0, 0))) for rank in range(2)]
    assert len(decoded) == 16 and len(set(decoded)) == 8
    assert sorted(torch.cat([share.label for share in shares]).tolist()) == sorted(whole_batch.label.tolist())


def test_a_compiled_student_learns_the_same_as_an_uncompiled_one(
    student_recipe: Recipes, batches: list[Batch]
) -> None:
    """Uses one block, because compiling is slow; compiled sums are in another order."""
    small = "model.args={img_size=32,patch_size=8,embed_dim=24,depth=1,num_heads=2}"
    plain, weights = train_steps(student_recipe(small), batches[:2])
    compiled, others = train_steps(student_recipe(small, "machine.compile=true"), batches[:2])
    assert compiled == pytest.approx(plain, rel=1e-5)
    assert 0 < apart(others, weights) < 2e-4


def test_a_compiled_student_is_cut_at_the_buckets_of_two_processes(
    torchrun: Callable[..., str], tmp_path: Path
) -> None:
    """So that the gradients of the last layers are averaged while those of the first are still computed."""
    torchrun(Path(ddp_graphs.__file__), tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert len(found["graphs"]) > 1 and found["breaks"] == 0
