import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_traffic import DeviceTraffic
from facts import assert_facts
from torch import nn

from student.bundle.bundle import Bundle, open_bundle
from student.data.inputs import open_inputs
from student.data.loader import Feed
from student.evaluation.predict import (
    Predictions,
    count_correct,
    eval_batches,
    measure,
    predict_each,
    predict_set,
)
from student.evaluation.test_set import LabeledSet
from student.model.student import Student, create_student
from student.recipe import TrainRecipe
from student.training.learner import Learner
from student.training.loop import create_plan_spec
from teacher_cache.data import eval_images
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.indexing import index_shards
from teacher_cache.data.shards import Record, read_shard
from teacher_cache.distributed.world import World
from teacher_cache.errors import RecipeError, ShardError
from teacher_cache.models.spec import EvalSpec
from teacher_cache.views.decode import decode
from teacher_cache.views.eval_transform import center_crop

CPU = torch.device("cpu")
Recipes = Callable[..., TrainRecipe]


@pytest.fixture
def bundle(student_run: Path) -> Bundle:
    return open_bundle(student_run, CPU)


def records_of(index: ShardIndex) -> list[Record]:
    return [record for shard in range(len(index.shards)) for record in read_shard(index, shard)]


def plain_accuracy(bundle: Bundle, index: ShardIndex) -> dict[str, float]:
    """Top-1 accuracy in percent, from a plain loop over single images."""
    right = {"class": 0, "distill": 0, "joint": 0}
    for record in records_of(index):
        spec = bundle.card.eval
        pixels = torch.from_numpy(center_crop(decode(record.image), spec.size, spec.crop, spec.interpolation))
        with torch.inference_mode():
            heads = bundle.student(pixels[None].permute(0, 3, 1, 2))
        first, second = (np.exp(logits[0].double().numpy()) for logits in heads)
        predictions = {"class": first, "distill": second, "joint": first / first.sum() + second / second.sum()}
        for name, answer in predictions.items():
            right[name] += int(answer.argmax() == record.label)
    return {name: 100 * count / index.rows for name, count in right.items()}


def top1(predictions: Predictions) -> dict[str, float]:
    return {
        readout: 100 * float(outcome.correct.double().mean())
        for readout, outcome in predictions.readouts["raw"].items()
    }


@pytest.mark.parametrize(("batch", "workers"), [(64, 0), (7, 2)])
def test_each_heads_accuracy_equals_that_of_a_plain_loop(
    student_recipe: Recipes, bundle: Bundle, shards: ShardIndex, batch: int, workers: int
) -> None:
    assert bundle.card.accuracy == plain_accuracy(bundle, shards)
    modified = copy.deepcopy(bundle)  # the distillation head always predicts "hopper", so the heads differ
    modified.student.network.get_parameter("head_dist.bias").data[0] += 100
    expected = plain_accuracy(modified, shards)
    assert expected["distill"] == 35 and expected["class"] > 35
    padded = student_recipe("machine.compile=true")  # the networks are not compiled here
    for recipe in (student_recipe(), padded):
        scores = measure({"a": modified.student, "b": bundle.student}, shards, recipe, batch, workers)
        assert scores == {"a": expected, "b": bundle.card.accuracy}
    predictions = predict_set({"raw": modified}, LabeledSet("it", shards, None), batch, workers)
    assert top1(predictions) == {
        "class": expected["class"],
        "distill": expected["distill"],
        "softmax-sum": expected["joint"],
        "logit-mean": top1(predictions)["logit-mean"],
    }


def test_raw_and_average_weights_are_measured_in_one_pass_over_the_images(
    student_recipe: Recipes, bundle: Bundle, shards: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []
    decode_one = eval_images.decode_for_eval
    monkeypatch.setattr(
        eval_images, "decode_for_eval", lambda image, *rest: (decoded.append(image), decode_one(image, *rest))[1]
    )
    networks = {"raw": bundle.student, "ema": copy.deepcopy(bundle.student)}
    scores = measure(networks, shards, student_recipe(), batch=7, workers=0)
    assert scores["raw"] == scores["ema"] == bundle.card.accuracy
    assert len(decoded) == shards.rows


def test_an_evaluation_copies_each_batch_once_and_never_waits_for_the_device(
    student_recipe: Recipes, shards: ShardIndex
) -> None:
    recipe = student_recipe()
    networks = {name: create_student(recipe.model, 3, True).to("meta") for name in ("raw", "ema")}
    images = eval_batches(shards, recipe.eval, 7, 0)
    with DeviceTraffic() as traffic:
        counts = count_correct(networks, images, ("class", "distill", "softmax-sum"), recipe.machine)
    assert counts.shape == (2, 3) and counts.device.type == "meta"
    pixels_and_label, batches = 2, 6
    assert (traffic.uploads, traffic.waits) == (pixels_and_label * batches, 0)


def test_evaluations_compile_a_network_once_and_training_continues_with_its_own_graph(
    student_recipe: Recipes, shards: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of an evaluation are larger than views, and their number is not a multiple of the batch."""
    compiled: list[tuple[int, ...]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> torch.fx.GraphModule:
        compiled.extend(one.shape for one in inputs if one.ndim == 4 and one.shape[-1] >= 32)
        return graph

    monkeypatch.setattr(
        Student, "compile", lambda self, **options: nn.Module.compile(self, backend=backend, **options)
    )
    network = ('model.name="resnet10t"', 'model.args={stem_type="",channels=[8,8,16,16]}')
    changes = ('loss.distillation="none"', "machine.compile=true", "train.ema=0.5", "eval.size=48")
    recipe = student_recipe(*network, *changes)
    learner = Learner(recipe, create_student(recipe.model, 3, False), 3)
    inputs = open_inputs(recipe)
    feed = Feed(create_plan_spec(recipe, inputs), inputs.train, None, None, World())
    for step, batch in zip(range(2), feed.batches(range(1), 0, 0), strict=False):
        learner.learn(batch, step)
        measure(learner.networks(), shards, recipe, batch=7, workers=0)
    assert compiled == [(8, 3, 32, 32), (7, 3, 48, 48)]  # raw and average weights share a graph


def test_an_untrained_second_head_is_not_measured(alone_run: Path, shards: ShardIndex) -> None:
    bundle = open_bundle(alone_run, CPU)
    predictions = predict_set({"raw": bundle}, LabeledSet("it", shards, None), 64, 0)
    assert top1(predictions) == {"class": plain_accuracy(bundle, shards)["class"]}
    with pytest.raises(RecipeError, match=r"\bfusion\b.*\blogit-mean\b"):
        next(predict_each(bundle, shards, 64, 0, "logit-mean"))
    rows = list(predict_each(bundle, shards, 64, 0, ""))
    assert all(row.keys() == {"key", "label", "class"} for row in rows) and len(rows) == 40


@pytest.mark.parametrize(("batch", "workers"), [(1, 0), (5, 1), (5, 2), (100, 2)])
def test_every_image_is_shown_once(shards: ShardIndex, batch: int, workers: int) -> None:
    spec = EvalSpec(size=24, crop=0.8)
    shown = [
        replace(some, pixels=some.pixels.clone(), label=some.label.clone())
        for some in eval_batches(shards, spec, batch, workers)
    ]
    expected = {record.key: record for record in records_of(shards)}
    keys = [key for some in shown for key in some.keys]
    assert sorted(keys) == sorted(expected)
    assert workers > 1 or keys == list(expected)
    assert max(len(some.keys) for some in shown) <= batch
    for some in shown:
        assert some.pixels.shape == (len(some.keys), 24, 24, 3)
        assert some.label.tolist() == [expected[key].label for key in some.keys]
        assert np.array_equal(some.pixels[0], center_crop(decode(expected[some.keys[0]].image), 24, 0.8))


def test_predictions_equal_the_bundles_for_single_images_in_shard_order(
    bundle: Bundle, shards: ShardIndex
) -> None:
    records = records_of(shards)
    rows = list(predict_each(bundle, shards, batch=5, workers=2, fusion="logit-mean"))
    assert [row["key"] for row in rows] == [record.key for record in records]
    for row, record in zip(rows, records, strict=True):
        alone = bundle.predict(torch.from_numpy(bundle.prepare(record.image))[None], "logit-mean")
        assert row["label"] == record.label
        for name, part in (("class", alone.class_), ("distill", alone.distill), ("joint", alone.fused)):
            assert row[name] == {"index": int(part.argmax()), "probability": float(part.max())}


@pytest.mark.parametrize("workers", [0, 1])
def test_an_undecodable_image_is_reported_with_its_shard(
    bundle: Bundle, shards: ShardIndex, tmp_path: Path, workers: int
) -> None:
    shutil.copytree(shards.folder, tmp_path / "shards")
    record = read_shard(shards, 2)[3]
    path = tmp_path / "shards" / shards.shards[2].url
    path.write_bytes(path.read_bytes().replace(record.image, b"?" * len(record.image)))
    urls = [str(tmp_path / "shards" / shard.url) for shard in shards.shards]
    index = index_shards(urls, tmp_path / "shards", shards.classes)
    with pytest.raises(ShardError) as raised:
        predict_set({"raw": bundle}, LabeledSet("it", index, None), 64, workers)
    assert_facts(raised.value, path, record.key)
    assert "\n" not in str(raised.value)
