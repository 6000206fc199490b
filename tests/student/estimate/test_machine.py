"""Tests that figures files can be written and read, also those of 0.1.0."""

from pathlib import Path

import pytest
from facts import assert_facts

from student.estimate.machine import Hardware, is_edited, save_hardware
from teacher_cache.config import load_recipe
from teacher_cache.errors import RecipeError

BY_0_1_0 = r"""
[machine]
name = "a \"fast\" machine \\ 2"
price_per_hour = 0.5

[teacher]
views_per_second = 334.7
judged_per_second = 400.0
start_seconds = 0.0

[measured]
teacher = "resnet10t"
size = 32
classes = 3
k = 3

[bytes]
hard = 1.17
topk-uint8 = 1e-05
"""


def test_a_figures_file_holds_what_was_saved(v100: Hardware, tmp_path: Path) -> None:
    path, old = tmp_path / "figures.toml", tmp_path / "old.toml"
    named = v100.machine.model_copy(update={"name": 'tab\t, line\n, "quotes", \\ and \u00e9'})
    for hardware in (v100, v100.model_copy(update={"machine": named, "data": None, "bytes": {}})):
        save_hardware(hardware, path)
        assert load_recipe(path, Hardware) == hardware
    old.write_text(BY_0_1_0)
    save_hardware(load_recipe(old, Hardware), path)
    assert "judged_per_second" in old.read_text() and "judged_per_second" not in path.read_text()
    kept = load_recipe(path, Hardware)
    assert kept.teacher.teacher_images_per_second == 400.0
    assert kept == load_recipe(old, Hardware) and kept.machine.name == 'a "fast" machine \\ 2'
    assert kept.bytes == {"hard": 1.17, "topk-uint8": 1e-05}


def test_a_figures_file_with_the_old_and_the_new_name_of_a_rate_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "both.toml"
    path.write_text(BY_0_1_0.replace("judged_per_second", "teacher_images_per_second = 400.0\njudged_per_second"))
    with pytest.raises(RecipeError) as raised:
        load_recipe(path, Hardware)
    assert_facts(raised.value, path, "teacher.judged_per_second")


def test_a_figures_file_that_was_edited_is_not_the_saved_one(v100: Hardware, tmp_path: Path) -> None:
    path = tmp_path / "here.toml"
    save_hardware(v100, path, "limbeck estimate 0123")
    assert load_recipe(path, Hardware) == v100
    assert not is_edited(path)
    text = path.read_text(encoding="utf-8").replace("[machine]", "[machine] # prices")
    path.write_text(text, encoding="utf-8")
    assert is_edited(path)


def test_errors_in_a_figures_file_do_not_call_it_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(tmp_path / "none.toml", Hardware)
    assert "recipe" not in str(error.value)
    assert_facts(error.value, tmp_path / "none.toml", "limbeck estimate --save")
