"""Tests of several teachers: the mean against its formula, and a student of two real caches."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from facts import assert_facts
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from student.data.inputs import open_inputs
from student.data.loader import Feed
from student.data.replay import average
from student.recipe import CacheRef, TrainRecipe
from student.training.loop import train
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.config import parse_recipe, resolved
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.plan import PlanSpec
from teacher_cache.distributed.world import World
from teacher_cache.errors import CacheError, RecipeError
from teacher_cache.labeling.job import build
from teacher_cache.recipe import CacheRecipe

Recipes = Callable[..., TrainRecipe]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_mean_of_probabilities_or_logits_has_its_argmax_as_hard_label(data: st.DataObject) -> None:
    teachers, images, classes = (
        data.draw(st.integers(2, 4)),
        data.draw(st.integers(1, 4)),
        data.draw(st.integers(2, 6)),
    )
    logits = data.draw(arrays(np.float64, (teachers, images, classes), elements=st.floats(-20, 20, width=32)))
    weights = np.array(data.draw(st.lists(st.floats(0.1, 10), min_size=teachers, max_size=teachers)))
    shares = weights / weights.sum()
    powers = np.exp(logits - logits.max(axis=2, keepdims=True))
    softs = powers / powers.sum(axis=2, keepdims=True)
    summed = np.einsum("t,tbc->bc", shares, logits)
    whole = np.exp(summed - summed.max(axis=1, keepdims=True))
    expected = {
        "probabilities": np.einsum("t,tbc->bc", shares, softs),
        "logits": whole / whole.sum(axis=1, keepdims=True),
    }
    tensors = [torch.from_numpy(soft) for soft in softs]
    for mean_of, mean in expected.items():
        hard, soft = average([one.argmax(dim=1) for one in tensors], tensors, shares.tolist(), mean_of)
        assert np.allclose(soft.numpy(), mean, atol=1e-9)
        assert np.allclose(mean[np.arange(images), hard.numpy()], mean.max(axis=1), rtol=1e-5)


def test_hard_labels_are_votes_and_the_earlier_teacher_wins_ties() -> None:
    hards = [torch.tensor([2, 3, 0, 1]), torch.tensor([0, 1, 0, 2]), torch.tensor([1, 1, 3, 2])]
    votes = [torch.eye(4)[hard] for hard in hards]
    assert average(hards, votes, [1 / 3] * 3, "probabilities")[0].tolist() == [2, 1, 0, 2]
    assert average(hards, votes, [0.6, 0.2, 0.2], "probabilities")[0].tolist() == [2, 3, 0, 1]
    assert average(hards[::-1], votes[::-1], [1 / 3] * 3, "probabilities")[0].tolist() == [1, 1, 0, 2]


@pytest.fixture(scope="session")
def another(cache_recipe: CacheRecipe, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TargetCache]:
    """Build another cache of the same shards, with some keys of its recipe changed, by table."""

    def make(**tables: dict[str, object]) -> TargetCache:
        path = str(tmp_path_factory.mktemp("caches") / "other.zarr")
        whole = resolved(cache_recipe)
        for name, fields in {"cache": {}, **tables}.items():
            whole[name] = {**whole[name], **fields}
        whole["cache"]["path"] = path
        return build(parse_recipe(whole, CacheRecipe, "the other cache's recipe"))

    return make


@pytest.fixture(scope="session")
def dense(another: Callable[..., TargetCache]) -> TargetCache:
    return another(cache={"encoding": "dense", "seeds": 2})


def batches(caches: CacheRef, of: TargetCache, shards: ShardIndex, tau: float | None) -> Feed:
    return Feed(PlanSpec(of.manifest.policy, 2, batch=8, streams=4), shards, caches, tau, World())


@pytest.mark.parametrize("mean_of", ["probabilities", "logits"])
def test_a_batch_holds_the_weighted_mean_of_the_caches_targets(
    cache: TargetCache, dense: TargetCache, shards: ShardIndex, mean_of: str
) -> None:
    both = CacheRef(path=str(cache.where), also=(str(dense.where),), weights=(3.0, 1.0), mean_of=mean_of)
    feeds = [batches(ref, cache, shards, 2.0) for ref in (both, *(CacheRef(path=path) for path in both.paths))]
    seen = 0
    for mixed, first, second in zip(*(feed.batches(range(1), 0, workers=0) for feed in feeds), strict=True):
        assert torch.equal(mixed.pixels, first.pixels)
        hard, soft = average((first.hard, second.hard), (first.soft, second.soft), (0.75, 0.25), mean_of)
        assert torch.equal(mixed.hard, hard) and torch.equal(mixed.soft, soft)
        assert not torch.equal(first.soft, second.soft)
        seen += len(hard)
    assert seen == 40


def test_a_student_of_two_caches_cycles_the_seeds_of_the_smaller_one(
    student_recipe: Recipes, dense: TargetCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = student_recipe(f'cache.also=["{dense.where}"]', "cache.weights=[1, 2]", "schedule.epochs=3")
    assert open_inputs(recipe).seeds == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if str(dense.where) in line)
    assert {"2", "3"} == set(re.findall(r"\b\d+\b", line.replace(str(dense.where), ""))), "seeds and epochs"
    assert set(train(recipe, tmp_path / "run")) == {"class", "distill", "joint"}
    lone = student_recipe("schedule.epochs=3")
    assert open_inputs(recipe).identity()["cache"] != open_inputs(lone).identity()["cache"]


def test_caches_over_other_views_are_refused_with_each_difference(
    student_recipe: Recipes, another: Callable[..., TargetCache], cache: TargetCache
) -> None:
    other = another(views={"hflip": 0.25, "cutmix": 0.5}, cache={"encoding": "hard", "seeds": 2})
    with pytest.raises(CacheError) as raised:
        open_inputs(student_recipe(f'cache.also=["{other.where}"]'))
    message = str(raised.value)
    assert_facts(message, other.where, cache.where, "views.cutmix", 0.5, 1.0, "views.hflip", 0.25)
    assert "shards." not in message and "\n" not in message


def test_caches_over_other_shards_or_classes_are_refused(
    student_recipe: Recipes, dense: TargetCache, alter_manifest: Callable[..., None], tmp_path: Path
) -> None:
    copy = tmp_path / "copy.zarr"
    shutil.copytree(dense.where, copy)
    shards = dense.manifest.shards
    alter_manifest(copy, shards={**shards, "classes": [*shards["classes"][:-1], "another"]})
    with pytest.raises(CacheError) as raised:
        open_inputs(student_recipe(f'cache.also=["{copy}"]'))
    assert_facts(raised.value, copy, "shards.classes", "'another'", "'parcel'")


def test_logits_cannot_be_averaged_if_a_cache_holds_only_hard_labels(
    student_recipe: Recipes, another: Callable[..., TargetCache]
) -> None:
    hard = another(cache={"encoding": "hard", "seeds": 2})
    also = f'cache.also=["{hard.where}"]'
    assert open_inputs(student_recipe(also)).seeds == 2
    with pytest.raises(RecipeError) as raised:
        open_inputs(student_recipe(also, 'cache.mean_of="logits"'))
    assert_facts(raised.value, hard.where, "cache.mean_of", "probabilities")
