"""A student learns from shards and a cache in a bucket just what it learns from folders."""

from collections.abc import Callable
from pathlib import Path

from student.recipe import TrainRecipe
from student.train import train
from teacher_cache.build import build
from teacher_cache.network import load_card
from teacher_cache.recipe import CacheRecipe, parse_recipe, resolved
from teacher_cache.teacher import FINAL

EPOCH = ("schedule.epochs=1", "schedule.warmup_epochs=0")


def test_a_student_of_a_bucket_equals_a_student_of_folders(
    student_recipe: Callable[..., TrainRecipe],
    cache_recipe: CacheRecipe,
    shards_in_bucket: str,
    new_bucket: Callable[[], str],
    tmp_path: Path,
) -> None:
    """With a worker, which is spawned there and forked here."""
    plain, url = resolved(cache_recipe), f"{new_bucket()}/cache.zarr"
    plain["cache"]["path"], plain["data"]["train"] = url, shards_in_bucket
    build(parse_recipe(plain, CacheRecipe, "in a bucket"))
    remote = f'cache.path="{url}"', f'data.train="{shards_in_bucket}"'
    train(student_recipe(*EPOCH, *remote, "machine.workers=1"), tmp_path / "remote")
    train(student_recipe(*EPOCH), tmp_path / "local")
    theirs, ours = load_card(tmp_path / "remote" / FINAL), load_card(tmp_path / "local" / FINAL)
    assert theirs.sha256 == ours.sha256 and theirs.accuracy == ours.accuracy
