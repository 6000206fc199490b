"""Tests that a student trained from a bucket equals one trained from folders."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fault_proxy import FAULTS, FaultProxy

from student.bundle.transfer import send_bundle
from student.data.inputs import open_inputs
from student.data.loader import Feed
from student.recipe import TrainRecipe
from student.training.loop import create_plan_spec, train
from teacher_cache.config import parse_recipe, resolved
from teacher_cache.distributed.world import World
from teacher_cache.errors import RecipeError, RunError
from teacher_cache.labeling.job import build
from teacher_cache.models.card import CARD_NAME, load_card
from teacher_cache.models.run_folder import FINAL
from teacher_cache.packing.pack import pack
from teacher_cache.recipe import CacheRecipe
from teacher_cache.storage.store import open_store

EPOCH = ("schedule.epochs=1", "schedule.warmup_epochs=0")
Recipes = Callable[..., TrainRecipe]


@pytest.fixture(scope="module")
def remote(cache_recipe: CacheRecipe, shards_in_bucket: str, new_bucket: Callable[[], str]) -> tuple[str, ...]:
    """Overrides that point a recipe at shards and a cache in the S3 server."""
    plain, url = resolved(cache_recipe), f"{new_bucket()}/cache.zarr"
    plain["cache"]["path"], plain["data"]["train"] = url, shards_in_bucket
    build(parse_recipe(plain, CacheRecipe, "in a bucket"))
    return f'cache.path="{url}"', f'data.train="{shards_in_bucket}"', f'data.val="{shards_in_bucket}"'


def test_a_student_trained_from_a_bucket_equals_one_from_folders(
    student_recipe: Recipes, remote: tuple[str, ...], tmp_path: Path
) -> None:
    """Uses one worker for the bucket and none for the folders."""
    keep = f'machine.shard_cache="{tmp_path / "kept"}"'
    train(student_recipe(*EPOCH, *remote[:2], keep, "machine.workers=1"), tmp_path / "remote")
    train(student_recipe(*EPOCH), tmp_path / "local")
    theirs, ours = load_card(tmp_path / "remote" / FINAL), load_card(tmp_path / "local" / FINAL)
    assert theirs.sha256 == ours.sha256 and theirs.accuracy == ours.accuracy
    assert len(list((tmp_path / "kept").glob("*.tar"))) == 3


def test_a_failing_network_changes_nothing_and_each_shard_is_read_once(
    proxy: FaultProxy, student_recipe: Recipes, remote: tuple[str, ...], student_run: Path, tmp_path: Path
) -> None:
    """In two epochs and their evaluations every third request fails, with each fault in turn."""
    with proxy.breaking(*FAULTS, every=3):
        train(student_recipe(*remote, f'machine.shard_cache="{tmp_path / "kept"}"'), tmp_path / "run")
    assert load_card(tmp_path / "run" / FINAL).sha256 == load_card(student_run / FINAL).sha256
    asked = [(path, fault) for _, path, fault in proxy.seen if path.endswith(".tar")]
    assert sorted(path[-10:] for path, fault in asked if not fault) == ["000000.tar", "000001.tar", "000002.tar"]
    assert {fault for _, _, fault in proxy.seen} == {"", *FAULTS}


def test_each_rank_reads_only_the_shards_of_its_own_streams(
    proxy: FaultProxy,
    photos: Path,
    student_recipe: Recipes,
    new_bucket: Callable[[], str],
    tmp_path: Path,
) -> None:
    """Twenty shards of two images and four streams, two for each of two ranks."""
    many = f"{new_bucket()}/many"
    pack(photos, many, shard_rows=2)
    recipe = student_recipe(
        'loss.distillation="none"', f'data.train="{many}"', f'machine.shard_cache="{tmp_path / "kept"}"'
    )
    views = open_inputs(student_recipe()).policy
    recipe = recipe.model_copy(update={"cache": None, "views": views})
    inputs = open_inputs(recipe)
    feeds = [Feed(create_plan_spec(recipe, inputs), inputs.train, None, None, World(rank, 2)) for rank in (0, 1)]
    own = [{f"{visit.shard:06d}.tar" for _, visit in feed.requests(range(1), 0)} for feed in feeds]
    assert own[1] - own[0] and own[0] - own[1]
    for rank, feed in enumerate(feeds):
        before = len(proxy.asked(".tar"))
        assert len(list(feed.batches(range(1), 0, workers=0))) == 5
        asked = {path.rpartition("/")[2] for path in proxy.asked(".tar")[before:]}
        assert asked == own[rank] - (own[0] if rank else set())  # shards of both ranks are already on disk


def test_a_too_small_shard_cache_is_refused_before_the_first_step(
    student_recipe: Recipes, remote: tuple[str, ...], tmp_path: Path
) -> None:
    keep = f'machine.shard_cache="{tmp_path / "kept"}"', "machine.shard_cache_gib=1e-6"
    with pytest.raises(RecipeError, match=r"machine\.shard_cache_gib\b.*1e-06"):
        train(student_recipe(*remote, *keep), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_lost_response_to_an_upload_is_not_taken_for_a_conflict(
    proxy: FaultProxy, student_run: Path, new_bucket: Callable[[], str]
) -> None:
    url = f"{new_bucket()}/bundle"
    with proxy.breaking("unanswered", only=0, where=f"bundle/{CARD_NAME}"):
        send_bundle(student_run / FINAL, url)
    assert open_store(url).get(CARD_NAME) == (student_run / FINAL / CARD_NAME).read_bytes()
    other = open_store(f"{url}-other")
    other.put(CARD_NAME, b"another's")
    with pytest.raises(RunError, match=f"{url}-other"):
        send_bundle(student_run / FINAL, f"{url}-other")
    assert other.get(CARD_NAME) == b"another's"
