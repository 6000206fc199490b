"""A run reads its inputs as the recipe says."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from facts import assert_facts

from student.data.inputs import log_shared_shards, open_inputs
from student.recipe import TrainRecipe
from student.training.loop import train
from teacher_cache.models.run_folder import FINAL
from teacher_cache.models.weights import load_network, weights_sha256


def sha256(run: Path) -> str:
    _, network = load_network(run / FINAL)
    return weights_sha256(network.state_dict())


def test_a_run_with_a_decoded_cache_equals_one_without(
    student_recipe: Callable[..., TrainRecipe], student_run: Path, tmp_path: Path
) -> None:
    recipe = student_recipe(f'machine.decoded_cache="{tmp_path / "decoded"}"', "machine.workers=2")
    train(recipe, tmp_path / "run")
    assert sha256(tmp_path / "run") == sha256(student_run)
    assert len(list((tmp_path / "decoded").glob("*.pixels"))) == 3
    inputs = open_inputs(recipe)
    assert inputs.train.decoded and inputs.val.decoded is None  # evaluation decodes large images at a lower size


def test_validation_shards_that_are_in_the_training_set_are_reported(
    student_recipe: Callable[..., TrainRecipe], capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = open_inputs(student_recipe())
    capsys.readouterr()
    first, *others = inputs.train.shards
    log_shared_shards(replace(inputs, val=replace(inputs.val, shards=(first, replace(first, md5="another")))))
    assert_facts(capsys.readouterr().err, "1 of 2 shards", "data.val", "data.train")
    log_shared_shards(
        replace(inputs, val=replace(inputs.val, shards=(first,)), train=replace(inputs.train, shards=(*others,)))
    )
    assert capsys.readouterr().err == ""
