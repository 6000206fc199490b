"""A run reads its inputs as the recipe says."""

from collections.abc import Callable
from pathlib import Path

from student.data.inputs import open_inputs
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
