"""A distilled student is fine-tuned at a larger size, from a second cache at that size (DeiT, section 5)."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from student.data.inputs import open_inputs
from student.recipe import TrainRecipe
from student.training.loop import build_student, train
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.config import parse_recipe, resolved
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.shards import read_shard
from teacher_cache.errors import RecipeError, ReplayError
from teacher_cache.labeling.job import build
from teacher_cache.models.card import Card, load_card
from teacher_cache.models.network import normalize
from teacher_cache.models.run_folder import FINAL
from teacher_cache.recipe import CacheRecipe
from teacher_cache.views.eval_transform import decode_for_eval

Recipes = Callable[..., TrainRecipe]
State = dict[str, Tensor]

CPU = torch.device("cpu")
NAME, ARGS = "deit_tiny_distilled_patch16_224", {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
SMALL, LARGE, PATCH = 32, 48, 8
HEADS = ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")
EPOCH = ("schedule.epochs=1", "schedule.warmup_epochs=0")
STILL = ("optim.lr=1e-12", "schedule.min_lr=1e-12", "schedule.warmup_lr=1e-12", "optim.weight_decay=0")
"""The steps change the weights by less than float32 precision."""


@pytest.fixture(scope="module")
def large_cache(cache_recipe: CacheRecipe, tmp_path_factory: pytest.TempPathFactory) -> TargetCache:
    """The second cache: the same shards, teacher and policy, but for the size of the views."""
    tables = resolved(cache_recipe)
    tables["cache"]["path"] = str(tmp_path_factory.mktemp("caches") / "large.zarr")
    tables["views"]["size"] = LARGE
    return build(parse_recipe(tables, CacheRecipe, "the second cache"))


@pytest.fixture(scope="module")
def larger(student_recipe: Recipes, student_run: Path, large_cache: TargetCache) -> Recipes:
    """The recipe that fine-tunes the small student, with overrides."""
    places = f'model.init_from="{student_run}"', f'cache.path="{large_cache.where}"'
    sizes = f"model.args.img_size={LARGE}", f"eval.size={LARGE}"
    return lambda *changes: student_recipe(*places, *sizes, *EPOCH, *changes)


@pytest.fixture(scope="module")
def resized(student_run: Path) -> State:
    """The small student's weights, its position embedding resized by hand: bicubic, the two tokens kept."""
    state = weights_of(student_run)
    tokens, grid = state["pos_embed"][:, :2], state["pos_embed"][:, 2:]
    planes = grid.unflatten(1, (SMALL // PATCH, SMALL // PATCH)).permute(0, 3, 1, 2)
    planes = F.interpolate(planes, size=(LARGE // PATCH, LARGE // PATCH), mode="bicubic", align_corners=False)
    return state | {"pos_embed": torch.cat((tokens, planes.flatten(2).transpose(1, 2)), dim=1)}


def weights_of(run: Path) -> State:
    (file,) = (run / FINAL).glob("*.safetensors")
    return load_file(file)


def journal_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]


def test_the_second_cache_has_other_targets_of_larger_views(cache: TargetCache, large_cache: TargetCache) -> None:
    assert (cache.manifest.policy.size, large_cache.manifest.policy.size) == (SMALL, LARGE)
    (small, large) = (one.read(0, 0) for one in (cache, large_cache))
    assert (small.columns["digest"] != large.columns["digest"]).all()
    assert (small.columns["value"] != large.columns["value"]).any()


def test_training_begins_at_the_resized_student_with_both_heads(
    larger: Recipes, student_run: Path, resized: State
) -> None:
    recipe = larger()
    student = build_student(recipe, open_inputs(recipe), CPU)
    state, before = student.network.state_dict(), weights_of(student_run)
    assert before["pos_embed"].shape == (1, 2 + 16, 24) and state["pos_embed"].shape == (1, 2 + 36, 24)
    assert all(torch.equal(state[name], before[name]) for name in HEADS)
    assert state.keys() == resized.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in resized.items())


def test_it_answers_as_timms_own_model_with_the_resized_weights(larger: Recipes, resized: State) -> None:
    recipe = larger()
    inputs = open_inputs(recipe)
    student, plain = build_student(recipe, inputs, CPU).eval(), timm_model(resized)
    pixels = torch.arange(4 * LARGE * LARGE * 3).reshape(4, 3, LARGE, LARGE).remainder(251).to(torch.uint8)
    with torch.inference_mode():
        heads, (by_class, by_distill) = (
            student(pixels),
            plain(normalize(pixels.float(), student.mean, student.std)),
        )
    assert not torch.allclose(by_class, by_distill, atol=1e-3), "otherwise the test proves little"
    assert torch.allclose(heads.class_logits, by_class, atol=1e-6)
    assert torch.allclose(heads.distill_logits, by_distill, atol=1e-6)


def timm_model(weights: State) -> torch.nn.Module:
    """timm's own network at the larger size, which answers with both heads' logits and drops nothing."""
    network = timm.create_model(NAME, img_size=LARGE, num_classes=3, **ARGS)
    network.load_state_dict(weights)
    network.set_distilled_training(True)
    return network.train()


def accuracy_of(network: torch.nn.Module, shards: ShardIndex, card: Card) -> dict[str, float]:
    """Top-1 in percent of each head and of the sum of their softmax outputs, on the middles of all images."""
    records = [record for number in range(len(shards.shards)) for record in read_shard(shards, number)]
    spec = card.eval
    crops = [decode_for_eval(record.image, spec.size, spec.crop, spec.interpolation) for record in records]
    planes = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        by_class, by_distill = network(normalize(planes, card.network.mean, card.network.std))
    joint = by_class.softmax(dim=1) + by_distill.softmax(dim=1)
    label = torch.tensor([record.label for record in records])
    by_head = {"class": by_class, "distill": by_distill, "joint": joint}
    return {name: 100 * float((logits.argmax(dim=1) == label).double().mean()) for name, logits in by_head.items()}


def test_steps_that_move_nothing_end_with_the_resized_student(
    larger: Recipes, resized: State, shards: ShardIndex, tmp_path: Path
) -> None:
    """Training starts at the resized student, and all views that it replays are those of the second cache."""
    accuracy = train(larger(*STILL), tmp_path / "run")
    ended = weights_of(tmp_path / "run")
    assert ended.keys() == resized.keys()
    assert all(torch.allclose(ended[name], tensor, rtol=0, atol=1e-8) for name, tensor in resized.items())
    card = load_card(tmp_path / "run" / FINAL)
    assert card.eval.size == LARGE
    assert accuracy == pytest.approx(accuracy_of(timm_model(resized), shards, card)) == card.accuracy


def test_fine_tuning_goes_on_from_what_the_student_has_learned(
    larger: Recipes, resized: State, tmp_path: Path
) -> None:
    train(larger("optim.lr=1e-4"), tmp_path / "run")
    train(larger(*STILL), tmp_path / "still")
    train(larger(*STILL, 'model.init_from=""'), tmp_path / "fresh")
    (tuned,), (still,), (fresh,) = (journal_of(tmp_path / name) for name in ("run", "still", "fresh"))
    assert tuned["step"] == 5 and all(math.isfinite(line["loss"]) for line in (tuned, still, fresh))
    assert tuned["loss"] < still["loss"] < fresh["loss"]
    ended = weights_of(tmp_path / "run")
    assert all(not torch.equal(ended[name], resized[name]) for name in (*HEADS, "pos_embed"))


@pytest.mark.parametrize("field", [{"hflip": 0.0}, {"mixup": 0.4}])
def test_views_that_the_second_caches_teacher_did_not_see_stop_it_at_the_first_step(
    larger: Recipes,
    large_cache: TargetCache,
    alter_manifest: Callable[..., None],
    tmp_path: Path,
    field: dict[str, float],
) -> None:
    shutil.copytree(large_cache.where, tmp_path / "altered.zarr")
    alter_manifest(tmp_path / "altered.zarr", views=large_cache.manifest.views | field)
    with pytest.raises(ReplayError, match=str(tmp_path / "altered.zarr")):
        train(larger(f'cache.path="{tmp_path / "altered.zarr"}"'), tmp_path / "run")
    assert not (tmp_path / "run" / FINAL).exists() and journal_of(tmp_path / "run") == []


def test_the_first_cache_is_refused_at_the_larger_size(
    larger: Recipes, cache: TargetCache, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=rf"{SMALL}\D+{LARGE}|{LARGE}\D+{SMALL}"):
        train(larger(f'cache.path="{cache.where}"'), tmp_path / "run")
    assert not (tmp_path / "run").exists()
