import re
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from facts import assert_facts
from safetensors.torch import load_file, save_file
from toml_text import to_toml
from torch.backends import cudnn

from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.cache.verify import verify
from teacher_cache.config import resolved
from teacher_cache.data import view_reader
from teacher_cache.data.index import ShardIndex, load_index, save_index
from teacher_cache.data.indexing import expand_shards, index_shards
from teacher_cache.data.shards import read_shard
from teacher_cache.distributed import bottleneck
from teacher_cache.distributed.machine import memory_bytes
from teacher_cache.errors import CacheError, LimbeckError, LoaderError, RecipeError, RunError, ShardError
from teacher_cache.labeling import job
from teacher_cache.labeling.job import build
from teacher_cache.labeling.unit_dataset import UnitBatch, unit_loader
from teacher_cache.models.card import load_card
from teacher_cache.models.network import create_network
from teacher_cache.models.run_folder import FINAL
from teacher_cache.models.spec import NetworkSpec
from teacher_cache.models.teacher import load_teacher
from teacher_cache.models.weights import WEIGHTS_NAME, save_network, weights_sha256
from teacher_cache.recipe import CacheRecipe
from teacher_cache.views.decode import decode
from teacher_cache.views.mix import blend, draw_mix
from teacher_cache.views.render import digest, render
from teacher_cache.views.view import draw_view

SEEDS, SHARDS = 4, 3
Change = Callable[..., CacheRecipe]
Same = Callable[[TargetCache, TargetCache], None]


def everything(cache: TargetCache) -> dict[tuple[int, int, str], np.ndarray]:
    return {
        (seed, shard, name): values
        for seed in range(cache.manifest.seeds)
        for shard in range(len(cache.rows))
        for name, values in cache.read(seed, shard).columns.items()
    }


def live(recipe: CacheRecipe, seed: int, shard: int) -> tuple[np.ndarray, list[int], list[str]]:
    """Logits of the teacher on newly rendered mixed views, digests of the views, and keys, row by row."""
    policy, index = recipe.views, load_index(recipe.data.train)
    teacher = load_teacher(recipe.teacher, index.classes, policy.size)
    records = read_shard(index, shard)
    pixels = []
    for record in records:
        image = decode(record.image)
        view = draw_view(policy, seed, record.key, *image.shape[:2])
        pixels.append(render(image, view, policy.size))
    mix = draw_mix(policy, seed, shard, len(records))
    tensors = (torch.from_numpy(array) for array in (mix.partner, mix.lam, mix.cutmix, mix.box))
    logits = teacher(blend(torch.from_numpy(np.stack(pixels)), *tensors))
    proofs = [digest(view) ^ int(mix.fingerprints[row]) for row, view in enumerate(pixels)]
    return logits.numpy(), proofs, [record.key for record in records]


def test_cache_equals_the_live_teacher_on_the_same_views(cache: TargetCache, cache_recipe: CacheRecipe) -> None:
    labels = set()
    for seed in range(SEEDS):
        for shard in range(SHARDS):
            targets = cache.read(seed, shard)
            logits, digests, _ = live(cache_recipe, seed, shard)
            assert targets.digest.tolist() == [value % 2**16 for value in digests]
            ordered = np.sort(logits, axis=1)
            assert (targets.hard == logits.argmax(axis=1))[ordered[:, -1] - ordered[:, -2] > 1e-4].all()
            said = cache.encoding.expand(targets.columns, 1.0)
            assert said == pytest.approx(torch.from_numpy(logits).softmax(1).numpy(), abs=2e-3)
            top = np.take_along_axis(logits, targets.columns["index"].T.astype(int), axis=1)
            value = targets.columns["value"].T
            assert value == pytest.approx(top - top[:, :1], rel=2**-7, abs=2e-5)
            labels |= set(targets.hard.tolist())
    assert labels == {0, 1, 2}


def test_teacher_labels_mixed_views_not_plain_images(cache: TargetCache) -> None:
    answers = np.stack(
        [np.concatenate([cache.read(seed, shard).hard for shard in range(SHARDS)]) for seed in range(SEEDS)]
    )
    assert (answers != answers[0]).any(axis=0).mean() > 0.2
    digests = [
        value for seed in range(SEEDS) for shard in range(SHARDS) for value in cache.read(seed, shard).digest
    ]
    assert len(set(digests)) > 150


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_a_target(
    cache: TargetCache,
    cache_recipe: CacheRecipe,
    workers: int,
    tmp_path: Path,
    changed: Change,
    assert_same: Same,
) -> None:
    assert_same(build(changed(cache_recipe, tmp_path / "a.zarr", job={"workers": workers})), cache)


def test_a_cache_states_tf32_and_cudnn_benchmark_which_change_nothing_on_a_cpu(
    cache: TargetCache, cache_recipe: CacheRecipe, tmp_path: Path, changed: Change, assert_same: Same
) -> None:
    where, seen = tmp_path / "a.zarr", set[bool]()

    def watch(module: torch.nn.Module, inputs: tuple[torch.Tensor], _: object) -> None:
        if isinstance(module, torch.nn.Conv2d) and len(inputs[0]) > 1:  # not the check of the size
            seen.add(cudnn.benchmark)

    with torch.nn.modules.module.register_module_forward_hook(watch):
        recipe = changed(cache_recipe, where, teacher={"dtype": "tf32"}, job={"cudnn_benchmark": True})
        assert_same(build(recipe), cache)
    assert seen == {True} and not cudnn.benchmark
    manifest = TargetCache.open(str(where)).manifest
    assert manifest.teacher["dtype"] == "tf32" and manifest.recipe["job"]["cudnn_benchmark"] is True
    assert fields(refused(changed(cache_recipe, where))) == {"teacher.dtype"}


def test_a_batch_of_another_size_changes_no_view_and_no_label(
    cache: TargetCache, cache_recipe: CacheRecipe, tmp_path: Path, changed: Change
) -> None:
    other = everything(build(changed(cache_recipe, tmp_path / "a.zarr", job={"batch": 5})))
    for (seed, shard, name), values in everything(cache).items():
        if name in ("hard", "digest"):
            assert (other[seed, shard, name] == values).all()
        elif name != "index":  # equal logits may change places in it
            assert other[seed, shard, name] == pytest.approx(values, abs=2e-2)


@pytest.mark.parametrize("encoding", ["hard", "dense"])
def test_every_encoding_is_built_with_a_short_last_block(
    cache: TargetCache, cache_recipe: CacheRecipe, encoding: str, tmp_path: Path, changed: Change
) -> None:
    spec = {"encoding": encoding, "seeds": 4, "seeds_per_unit": 3, "digest_bits": 64}
    other = build(changed(cache_recipe, tmp_path / "a.zarr", cache=spec))
    assert (
        other.missing() == []
        and [len(other.layout.seeds(unit)) for unit in other.layout.units()] == [3] * 3 + [1] * 3
    )
    for seed in range(4):
        for shard in range(SHARDS):
            rebuilt, original = other.read(seed, shard), cache.read(seed, shard)
            assert (rebuilt.hard == original.hard).all() and (rebuilt.digest & 0xFFFF == original.digest).all()
            if encoding == "dense":
                assert other.encoding.expand(rebuilt.columns, 1.0) == pytest.approx(
                    cache.encoding.expand(original.columns, 1.0), abs=2e-3
                )
            else:
                assert rebuilt.columns.keys() == {"hard", "digest"}


def test_seeds_shown_together_and_no_mixing_are_built_too(
    cache_recipe: CacheRecipe, tmp_path: Path, changed: Change
) -> None:
    for name, views in (("plain", {"mixup": 0.0, "cutmix": 0.0}), ("repeats", {"aug_repeats": 2})):
        recipe = changed(cache_recipe, tmp_path / name, views=views, cache={"seeds": 2, "encoding": "hard"})
        built = build(recipe)
        for seed in range(2):
            logits, digests, _ = live(recipe, seed, 2)
            assert (built.read(seed, 2).hard == logits.argmax(axis=1)).all()
            assert built.read(seed, 2).digest.tolist() == [value % 2**16 for value in digests]


def test_cache_with_an_empty_shard_completes(
    cache_recipe: CacheRecipe, shards: ShardIndex, tmp_path: Path, changed: Change
) -> None:
    folder = Path(shutil.copytree(shards.folder, tmp_path / "shards"))
    with tarfile.open(folder / "000003.tar", "w"):
        pass
    save_index(index_shards(expand_shards([str(folder)]), folder, shards.classes), folder / "index.json")
    built = build(changed(cache_recipe, tmp_path / "a.zarr", data={"train": str(folder)}))
    assert built.rows == [16, 16, 8, 0] and built.missing() == [] and len(built.read(0, 3).hard) == 0


def test_a_complete_cache_is_left_alone(
    cache: TargetCache, cache_recipe: CacheRecipe, tmp_path: Path, changed: Change
) -> None:
    path = Path(shutil.copytree(cache.where, tmp_path / "a.zarr"))
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in path.rglob("*") if file.is_file()}
    build(changed(cache_recipe, path, job={"batch": 7, "workers": 1}))
    assert {
        file: (file.stat().st_mtime_ns, file.read_bytes()) for file in path.rglob("*") if file.is_file()
    } == before


def test_a_damaged_unit_is_built_again(
    cache: TargetCache, cache_recipe: CacheRecipe, tmp_path: Path, changed: Change, assert_same: Same
) -> None:
    path = Path(shutil.copytree(cache.where, tmp_path / "a.zarr"))
    (file,) = path.glob("value/c.1.2.*")
    data = file.read_bytes()
    file.write_bytes(data[:9] + bytes([data[9] ^ 1]) + data[10:])
    with pytest.raises(CacheError) as caught:
        TargetCache.open(path).read(2, 2)
    assert_facts(caught.value, path, f"value/{file.name}", "limbeck cache build")
    build(changed(cache_recipe, path), check=False)
    assert file.read_bytes() != data
    assert_same(build(changed(cache_recipe, path)), cache)
    assert file.read_bytes() == data


def refused(recipe: CacheRecipe) -> str:
    with pytest.raises(CacheError) as caught:
        build(recipe)
    message = str(caught.value)
    assert_facts(message, f"cache '{recipe.cache.path}'", "cache.path")
    assert "\n" not in message
    return message


def fields(message: str) -> set[str]:
    """The fields of the manifest that a message names."""
    return set(re.findall(r"\b(?:views|encoding|teacher|shards|libraries)\.[a-z]\w*", message))


def test_a_cache_of_other_views_or_encoding_is_refused_with_every_difference(
    cache: TargetCache, cache_recipe: CacheRecipe, changed: Change
) -> None:
    views = {"hflip": 0.25, "auto_augment": "", "mixup": 0.7}
    message = refused(changed(cache_recipe, cache.where, views=views, cache={"k": 1}))
    assert fields(message) == {"views.hflip", "views.auto_augment", "views.mixup", "encoding.k"}
    assert_facts(message, 0.5, 0.25, "'rand-m9-mstd0.5-inc1'", "''", 0.8, 0.7, 2, 1)
    assert cache.missing() == []


def test_a_cache_of_another_teacher_is_refused(
    cache: TargetCache, cache_recipe: CacheRecipe, teacher_run: Path, tmp_path: Path, changed: Change
) -> None:
    state = load_file(teacher_run / FINAL / WEIGHTS_NAME)
    state["fc.bias"] += 1e-3
    card = load_card(teacher_run / FINAL).model_copy(update={"sha256": weights_sha256(state)})
    save_network(tmp_path / "run" / FINAL, card, state)
    message = refused(changed(cache_recipe, cache.where, teacher={"run": str(tmp_path / "run")}))
    assert fields(message) == {"teacher.sha256"}
    assert_facts(message, cache.manifest.teacher["sha256"], card.sha256)


def test_a_cache_of_other_shards_is_refused(
    cache: TargetCache, cache_recipe: CacheRecipe, shards: ShardIndex, tmp_path: Path, changed: Change
) -> None:
    folder = Path(shutil.copytree(shards.folder, tmp_path / "shards"))
    assert (
        build(changed(cache_recipe, cache.where, data={"train": str(folder)})).missing() == []
    )  # a copy of the shards is accepted
    index = load_index(folder)
    save_index(ShardIndex(index.folder, index.shards[:2], index.classes), folder / "index.json")
    message = refused(changed(cache_recipe, cache.where, data={"train": str(folder)}))
    assert fields(message) == {"shards.rows", "shards.md5"}
    assert_facts(message, 3, 2)


def gone(path: Path) -> None:
    path.unlink()


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1024])


def spoiled(path: Path) -> None:
    data = bytearray(path.read_bytes())
    place = data.index(b"\xff\xd8\xff")  # the first JPEG
    data[place : place + 300] = bytes(300)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "lost_bytes", "workers"), [(gone, None, 0), (cut_short, 1024, 0), (spoiled, None, 1)]
)
def test_missing_or_damaged_shard_is_one_line_error(
    cache_recipe: CacheRecipe,
    shards: ShardIndex,
    spoil: Callable[[Path], None],
    lost_bytes: int | None,
    workers: int,
    tmp_path: Path,
    changed: Change,
) -> None:
    folder = Path(shutil.copytree(shards.folder, tmp_path / "shards"))
    spoil(folder / "000001.tar")
    recipe = changed(cache_recipe, tmp_path / "a.zarr", data={"train": str(folder)}, job={"workers": workers})
    with pytest.raises(ShardError) as caught:
        build(recipe)
    size = shards.shards[1].bytes
    assert_facts(caught.value, folder / "000001.tar", *([size - lost_bytes, size] if lost_bytes else []))
    assert "\n" not in str(caught.value)
    assert {unit.shard for unit in TargetCache.open(tmp_path / "a.zarr").present()} <= {0, 2}


def test_views_that_are_not_received_are_an_error(
    cache_recipe: CacheRecipe, tmp_path: Path, changed: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_all_but_last(*arguments: Any, **options: Any) -> Iterator[UnitBatch]:
        return iter(list(unit_loader(*arguments, **options))[:-1])

    monkeypatch.setattr(job, "unit_loader", load_all_but_last)
    recipe = changed(cache_recipe, tmp_path / "a.zarr")
    with pytest.raises(LoaderError) as raised:
        build(recipe)
    assert_facts(raised.value, recipe.cache.path, "5 of 6 units")
    assert TargetCache.open(recipe.cache.path).missing()


def test_teacher_with_nan_logits_is_refused(
    cache_recipe: CacheRecipe, teacher_run: Path, tmp_path: Path, changed: Change
) -> None:
    state = load_file(teacher_run / FINAL / WEIGHTS_NAME)
    state["fc.bias"][1] = float("nan")
    card = load_card(teacher_run / FINAL).model_copy(update={"sha256": weights_sha256(state)})
    save_network(tmp_path / "run" / FINAL, card, state)
    recipe = changed(cache_recipe, tmp_path / "a.zarr", teacher={"run": str(tmp_path / "run")})
    with pytest.raises(RunError, match=r"'\d{8}'.*\bseed \d\b") as caught:
        build(recipe)
    assert_facts(caught.value, "'resnet10t'", "NaN")
    assert not TargetCache.open(tmp_path / "a.zarr").present()


def test_unavailable_device_is_reported(cache_recipe: CacheRecipe, tmp_path: Path, changed: Change) -> None:
    for device in ("tpux", "cuda" if not torch.cuda.is_available() else "tpux"):
        with pytest.raises(LimbeckError, match=f"'{device}'"):
            build(changed(cache_recipe, tmp_path / "a.zarr", job={"device": device}))


def test_the_command_builds_from_toml_and_overrides(
    cache: TargetCache, cache_recipe: CacheRecipe, tmp_path: Path, limbeck: Callable[..., str]
) -> None:
    (tmp_path / "recipe.toml").write_text(to_toml(resolved(cache_recipe)), encoding="utf-8")
    path = tmp_path / "a.zarr"
    said = limbeck(
        "cache", "build", tmp_path / "recipe.toml", "--set", f"cache.path={path}", "--set", "cache.seeds=2"
    )
    assert_facts(said, f"cache '{path}'", "3 units")
    built = TargetCache.open(path)
    whole = everything(cache)
    for place, values in everything(built).items():
        assert (values == whole[place]).all()
    assert re.search(r"\bseeds\W+2\D+2\b", limbeck("cache", "status", path))


def test_the_mean_of_a_local_teacher_is_used_checked_and_part_of_the_cache(
    cache_recipe: CacheRecipe, changed: Callable[..., CacheRecipe], shards: ShardIndex, tmp_path: Path
) -> None:
    """Labels, the manifest and `verify --replay --teacher` use teacher.mean; another mean is another cache."""
    weights = tmp_path / "w.safetensors"
    save_file(create_network(NetworkSpec(name="resnet10t"), len(shards.classes)).state_dict(), weights)
    teacher = {"run": "", "model": "resnet10t", "weights": str(weights)}
    small = {"seeds": 1, "seeds_per_unit": 1, "encoding": "dense"}
    recipe, plain = (
        changed(cache_recipe, tmp_path / "cache.zarr", teacher=teacher | given, cache=small)
        for given in ({"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.25]}, {})
    )
    cache = build(recipe)
    assert cache.manifest.teacher["mean"] == [0.1, 0.2, 0.3] and cache.manifest.teacher["std"] == [0.5, 0.5, 0.25]
    verify(cache.where, replay=4, teacher=True, shards=None, seed=0)
    with pytest.raises(CacheError) as caught:
        build(plain)
    assert_facts(caught.value, "teacher.mean", "teacher.std")
    stored = cache.encoding.expand(cache.read(0, 0).columns, 1.0)
    right, wrong = (torch.from_numpy(live(each, 0, 0)[0]).softmax(1).numpy() for each in (recipe, plain))
    assert np.abs(stored - right).max() < 1e-3 < np.abs(stored - wrong).max()


def test_a_build_says_once_that_its_views_are_the_slower_half(
    cache_recipe: CacheRecipe,
    tmp_path: Path,
    changed: Change,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def slow_render(*arguments: Any) -> Any:
        time.sleep(0.01)
        return render(*arguments)

    monkeypatch.setattr(view_reader, "render", slow_render)
    monkeypatch.setattr(bottleneck, "MIN_SECONDS", 0.2)
    build(changed(cache_recipe, tmp_path / "a.zarr", job={"workers": 2}))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "views are the bottleneck" in line]
    assert re.search(r"[12] workers?\b", line)  # those that have sent views until then
    assert_facts(line, "views/s", "% of the time", "cache.seeds_per_unit")
    assert 40 < float(line.partition(" views/s")[0].rpartition(" ")[2]) <= 200


def test_batches_that_the_memory_cannot_hold_are_refused_before_work(
    cache_recipe: CacheRecipe, tmp_path: Path, changed: Change
) -> None:
    workers = memory_bytes() // (16 * 32 * 32 * 3)
    with pytest.raises(RecipeError) as raised:
        build(changed(cache_recipe, tmp_path / "a.zarr", job={"workers": workers}))
    assert_facts(raised.value, "job.batch", f"job.workers = {workers}", "GiB")
    assert not (tmp_path / "a.zarr").exists()
