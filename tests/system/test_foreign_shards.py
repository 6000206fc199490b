"""A set with samples left out, keys that begin again and dots: every command agrees about its rows."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from facts import assert_facts
from tars import write_tar

from teacher_cache.data.index import ShardIndex, load_index
from teacher_cache.data.shards import read_shard
from teacher_cache.errors import LimbeckError, ShardError

Limbeck = Callable[..., str]


@pytest.fixture
def foreign(shards: ShardIndex, tmp_path: Path) -> Path:
    """The photos as another tool might write them: keys begin again, all images come first, one is damaged."""
    for number in range(3):
        records = read_shard(shards, number)
        images = [(f"img.{record.row:04d}.jpg", record.image) for record in records]
        labels = [(f"img.{record.row:04d}.txt", str(record.label).encode()) for record in records]
        images[3] = (images[3][0], images[3][1][:100])
        write_tar(tmp_path / "foreign" / f"part-{number}.tar", images + labels)
    return tmp_path / "foreign"


def test_all_commands_agree_about_the_rows(
    foreign: Path,
    shards: ShardIndex,
    teacher_run: Path,
    recipe_text: Callable[..., str],
    tmp_path: Path,
    limbeck: Limbeck,
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(shards.classes))
    options = ("--dotted-keys", "--key-prefix", "shard", "--label", "txt", "--classes", names)
    cache = tmp_path / "cache.zarr"
    recipes = {name: tmp_path / f"{name}.toml" for name in ("cache", "student")}
    for name, path in recipes.items():
        path.write_text(recipe_text(name, shards=foreign, teacher=teacher_run, cache=cache))
    changes = ("--set", "job.workers=0", "--set", "job.device=cpu")
    limbeck("index", foreign, *options)
    with pytest.raises(ShardError) as caught:
        limbeck("cache", "build", recipes["cache"], *changes)
    first = re.search(r"part-\d\.tar", str(caught.value))  # units are taken in a random order
    assert first
    part = first[0].removesuffix(".tar")
    assert_facts(caught.value, f"/{part}.tar'", f"'{part}/img.0003'", "--skip-broken")
    limbeck("index", foreign, *options, "--skip-broken")
    index = load_index(foreign)
    assert [shard.rows for shard in index.shards] == [15, 15, 7] and read_shard(index, 1)[
        3
    ].key == "part-1/img.0004"
    with pytest.raises(LimbeckError):  # the rows have changed since the interrupted build
        limbeck("cache", "build", recipes["cache"], *changes)
    changes = (*changes, "--set", f"cache.path={tmp_path / 'new.zarr'}")
    limbeck("cache", "build", recipes["cache"], *changes)
    limbeck("cache", "verify", tmp_path / "new.zarr", "--replay", 20)
    run = tmp_path / "run"
    limbeck(
        *("train", recipes["student"], "--out", run, "--set", f"cache.path={tmp_path / 'new.zarr'}"),
        *("--set", "machine.workers=0", "--set", "machine.device=cpu", "--set", "schedule.epochs=1"),
        *("--set", "schedule.warmup_epochs=0"),
    )
    assert_facts(limbeck("evaluate", run, foreign, "--device", "cpu"), "37")
    limbeck("index", foreign, *options)
    with pytest.raises(LimbeckError) as changed:
        limbeck("cache", "verify", tmp_path / "new.zarr", "--replay", 1)
    assert_facts(changed.value, "shards")
