"""The teacher of live targets is that of the cache, with the mean and std of its recipe."""

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file

from student.data.inputs import open_inputs, open_teacher
from student.recipe import CacheRef, TrainRecipe
from teacher_cache.data.index import ShardIndex
from teacher_cache.labeling.job import build
from teacher_cache.models.network import create_network
from teacher_cache.models.spec import NetworkSpec
from teacher_cache.recipe import CacheRecipe


def test_live_targets_use_the_mean_of_the_caches_recipe(
    student_recipe: Callable[..., TrainRecipe],
    cache_recipe: CacheRecipe,
    changed: Callable[..., CacheRecipe],
    shards: ShardIndex,
    tmp_path: Path,
) -> None:
    weights = tmp_path / "w.safetensors"
    save_file(create_network(NetworkSpec(name="resnet10t"), len(shards.classes)).state_dict(), weights)
    teacher = {"run": "", "model": "resnet10t", "weights": str(weights), "mean": [0.1, 0.2, 0.3]}
    small = {"seeds": 1, "seeds_per_unit": 1}
    cache = build(changed(cache_recipe, tmp_path / "cache.zarr", teacher=teacher, cache=small))
    recipe = student_recipe('train.targets="live"').model_copy(update={"cache": CacheRef(path=cache.where)})
    loaded = open_teacher(recipe, open_inputs(recipe))
    assert loaded is not None and loaded.mean == (0.1, 0.2, 0.3)
    assert list(loaded.std) == cache.manifest.teacher["std"]
