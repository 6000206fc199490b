"""Tests of the inputs of a run that need no training."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from facts import assert_facts

from student.data.inputs import log_shared_shards, open_inputs
from student.recipe import TrainRecipe


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
