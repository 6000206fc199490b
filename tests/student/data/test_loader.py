import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from facts import assert_facts
from torch import Tensor

from student.data import loader
from student.data.batch import Batch
from student.data.loader import Feed
from student.recipe import CacheRef
from teacher_cache.cache.manifest import library_versions
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.indexing import index_shards
from teacher_cache.data.loader import load
from teacher_cache.data.plan import PlanSpec, plan, steps_per_epoch
from teacher_cache.data.shards import Record, read_shard, with_decoded_cache
from teacher_cache.disk_cache.decoded_cache import DecodedCacheSpec
from teacher_cache.distributed import ring_memory
from teacher_cache.distributed.machine import memory_bytes
from teacher_cache.distributed.world import World
from teacher_cache.errors import LoaderError, RecipeError, ReplayError
from teacher_cache.loading.pace import Pace
from teacher_cache.models.teacher import load_teacher
from teacher_cache.recipe import CacheRecipe
from teacher_cache.views.decode import decode
from teacher_cache.views.mix import Mix, draw_mix
from teacher_cache.views.policy import ViewPolicy
from teacher_cache.views.render import render
from teacher_cache.views.view import draw_view

CPU = torch.device("cpu")
TAU = 2.0


@pytest.fixture
def feed(cache: TargetCache, shards: ShardIndex) -> Feed:
    """Five steps of 8 views, in 4 slices of 2, with soft and hard targets."""
    spec = PlanSpec(cache.manifest.policy, cache.manifest.seeds, batch=8, streams=4)
    return Feed(spec, shards, CacheRef(path=cache.where), TAU, World())


def uneven(feed: Feed, batch: int, streams: int, repeats: int) -> Feed:
    """The same images in other batches, without a cache, as its views are not repeated."""
    policy = feed.spec.policy.model_copy(update={"aug_repeats": repeats})
    return replace(feed, spec=PlanSpec(policy, 4, batch, streams), cache=None, tau=None)


def copies(batches: Iterator[Batch]) -> list[Batch]:
    """All batches; the loader uses the memory of each again."""
    return [batch.clone() for batch in batches]


def used(batch: Batch) -> dict[str, Tensor]:
    """The parts of a batch that count: each sample's pixels and its partner's, without unused places."""
    fields = batch.tensors()
    pixels, partner = fields.pop("pixels"), fields.pop("partner")
    return fields | {"own": pixels[: len(partner)], "other": pixels[partner]}


def same(first: list[Batch], second: list[Batch]) -> bool:
    pairs = [(used(a), used(b)) for a, b in zip(first, second, strict=True)]
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)


def views_of(feed: Feed, epoch: int) -> Iterator[list[tuple[int, int, int]]]:
    """The (shard, seed, row) of each view in the plan, step by step."""
    rows = [shard.rows for shard in feed.index.shards]
    steps: list[list[tuple[int, int, int]]] = [[] for _ in range(steps_per_epoch(feed.spec, rows))]
    for request in plan(feed.spec, rows, epoch, World()):
        steps[request.step] += [(request.shard, seed, row) for seed in request.seeds for row in request.rows]
    return iter(steps)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_with_a_decoded_cache(feed: Feed, tmp_path: Path, workers: int) -> None:
    spec = DecodedCacheSpec(decoded_cache=str(tmp_path))
    decoded = replace(feed, index=with_decoded_cache(feed.index, spec, "machine"))
    without = copies(feed.batches(range(2), 0, workers))
    for _ in range(2):
        assert same(copies(decoded.batches(range(2), 0, workers)), without)
    assert len(list(tmp_path.glob("*.pixels"))) == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_the_same_for_any_number_of_workers(feed: Feed, workers: int) -> None:
    without = copies(feed.batches(range(1, 2), 0, workers=0))
    assert len(without) == 5
    assert same(without, copies(feed.batches(range(1, 2), 0, workers)))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_started_at_a_later_step_has_the_same_batches(feed: Feed, workers: int) -> None:
    assert same(copies(feed.batches(range(2, 3), 0, workers=0))[3:], copies(feed.batches(range(2, 3), 3, workers)))


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_hold_the_slices_of_the_same_global_batches(feed: Feed, size: int) -> None:
    per_slice = feed.spec.batch // feed.spec.streams

    def slices(batch: Batch) -> list[tuple[Tensor, ...]]:
        pixels, truth = batch.on(CPU, 3)
        assert truth.hard is not None and truth.soft is not None
        cut = [part.split(per_slice) for part in (pixels, truth.label, truth.hard, truth.soft)]
        return list(zip(*cut, strict=True))

    by_rank = [
        copies(replace(feed, world=World(rank, size)).batches(range(1), 0, workers=0)) for rank in range(size)
    ]
    for step, batch in enumerate(feed.batches(range(1), 0, workers=0)):
        joined: list[tuple[Tensor, ...]] = [()] * feed.spec.streams
        for rank in range(size):
            joined[rank::size] = slices(by_rank[rank][step])
        for mine, theirs in zip(slices(batch), joined, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize(("batch", "streams", "repeats"), [(8, 4, 1), (6, 2, 1), (5, 1, 1), (6, 1, 2), (12, 2, 2)])
def test_a_batch_on_the_device_mixes_each_view_and_label_with_its_partners(
    feed: Feed, batch: int, streams: int, repeats: int
) -> None:
    feed = uneven(feed, batch, streams, repeats)
    policy = feed.spec.policy
    records = [read_shard(feed.index, shard) for shard in range(len(feed.index.shards))]

    def view(seed: int, record: Record) -> np.ndarray:
        image = decode(record.image)
        return render(image, draw_view(policy, seed, record.key, *image.shape[:2]), policy.size).astype(np.float32)

    behind = 0
    for got, named in zip(feed.batches(range(3, 4), 0, workers=0), views_of(feed, 3), strict=True):
        pixels, truth = got.on(CPU, 3)
        assert pixels.shape == (batch, 3, 32, 32) and len(named) == batch
        behind += int((got.partner >= batch).sum())
        for place, (shard, seed, row) in enumerate(named):
            mix = draw_mix(policy, seed, shard, len(records[shard]))
            own, other = records[shard][row], records[shard][mix.partner[row]]
            mine, theirs, lam = view(seed, own), view(seed, other), float(mix.lam[row])
            if mix.cutmix[row]:
                top, left, bottom, right = mix.box[row]
                mine[top:bottom, left:right] = theirs[top:bottom, left:right]
                assert lam == pytest.approx(1 - (bottom - top) * (right - left) / policy.size**2)
            else:
                mine = np.float32(lam) * mine + np.float32(1 - lam) * theirs
            assert np.abs(pixels[place].permute(1, 2, 0).numpy() - mine).max() < 1e-3
            expected = lam * np.eye(3)[own.label] + (1 - lam) * np.eye(3)[other.label]
            assert np.abs(truth.label[place].numpy() - expected).max() < 1e-6
        assert truth.hard is None and truth.soft is None
    odd = batch // streams // repeats % 2 == 1
    assert (behind > 0) == odd  # an odd slice splits a pair: its other half is rendered but not trained on


def test_hard_targets_equal_those_in_the_cache(feed: Feed, cache: TargetCache) -> None:
    for epoch in range(cache.manifest.seeds):
        hard = {(shard, epoch): cache.read(epoch, shard).hard for shard in range(len(cache.rows))}
        for batch, named in zip(
            feed.batches(range(epoch, epoch + 1), 0, workers=0), views_of(feed, epoch), strict=True
        ):
            expected = [hard[shard, seed][row] for shard, seed, row in named]
            assert batch.hard is not None and batch.hard.tolist() == expected


def test_running_the_teacher_again_reproduces_the_targets_of_a_batch(
    feed: Feed, cache_recipe: CacheRecipe
) -> None:
    teacher = load_teacher(cache_recipe.teacher, feed.index.classes, cache_recipe.views.size)
    for batch in replace(feed, tau=1.0).batches(range(1), 0, workers=0):
        pixels, truth = batch.on(CPU, 3)
        logits = teacher(pixels)
        assert torch.equal(logits.argmax(dim=1), truth.hard)
        assert truth.soft is not None
        assert (
            truth.soft - logits.softmax(dim=1)
        ).abs().max() < 5e-3  # the cache has the top 2 of 3 classes as float16


def test_soft_targets_use_the_recipes_temperature(feed: Feed, cache: TargetCache) -> None:
    for batch, named in zip(feed.batches(range(1), 0, workers=0), views_of(feed, 0), strict=True):
        rows = [
            cache.encoding.expand(
                cache.encoding.select_rows(cache.read(seed, shard).columns, np.array([row])), TAU
            )[0]
            for shard, seed, row in named
        ]
        assert batch.soft is not None
        assert np.array_equal(batch.soft.numpy(), np.array(rows))


def test_without_a_temperature_there_are_no_soft_targets(feed: Feed) -> None:
    batch = next(iter(replace(feed, tau=None).batches(range(1), 0, workers=0)))
    assert batch.hard is not None and batch.soft is None


@pytest.fixture
def alter(
    feed: Feed, cache: TargetCache, alter_manifest: Callable[..., None], tmp_path: Path
) -> Callable[[dict[str, str]], tuple[Feed, str]]:
    """Return shards with one image replaced, a cache built by other libraries, and the key of that image."""

    def change(libraries: dict[str, str]) -> tuple[Feed, str]:
        shutil.copytree(feed.index.folder, tmp_path / "shards")
        shutil.copytree(cache.where, tmp_path / "cache.zarr")
        changed, other = read_shard(feed.index, 1)[4], read_shard(feed.index, 0)[1]
        smaller = min((r.image for s in range(3) for r in read_shard(feed.index, s)), key=len)
        assert smaller not in (changed.image, other.image)
        path = tmp_path / "shards" / feed.index.shards[1].url
        padded = smaller.ljust(len(changed.image), b"\0")  # decoders ignore bytes after the end of an image
        path.write_bytes(path.read_bytes().replace(changed.image, padded))
        alter_manifest(tmp_path / "cache.zarr", libraries=cache.manifest.libraries | libraries)
        urls = [str(tmp_path / "shards" / shard.url) for shard in feed.index.shards]
        index = index_shards(urls, tmp_path / "shards", feed.index.classes)  # a new index has matching checksums
        return replace(feed, index=index, cache=CacheRef(path=str(tmp_path / "cache.zarr"))), changed.key

    return change


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_changed_since_the_cache_was_built_stops_the_run_with_its_key_and_seed(
    alter: Callable[[dict[str, str]], tuple[Feed, str]], workers: int
) -> None:
    feed, key = alter({})
    with pytest.raises(ReplayError) as raised:
        copies(feed.batches(range(3, 4), 0, workers))
    message = str(raised.value)
    assert "\n" not in message
    assert_facts(message, key, "seed 3", "1 of ")
    assert not [name for name in library_versions() if name in message], "no library changed"


def test_libraries_that_changed_since_the_cache_was_built_are_named(
    alter: Callable[[dict[str, str]], tuple[Feed, str]],
) -> None:
    feed, _ = alter({"pillow": "9.0", "simplejpeg": "0.1"})
    now = library_versions()
    with pytest.raises(ReplayError) as raised:
        copies(feed.batches(range(1), 0, workers=0))
    assert_facts(raised.value, "pillow", "9.0", now["pillow"], "simplejpeg", "0.1", now["simplejpeg"])


@pytest.mark.parametrize("workers", [0, 1])
def test_too_few_images_for_a_batch_are_reported_in_one_line(feed: Feed, workers: int) -> None:
    with pytest.raises(RecipeError) as raised:
        copies(uneven(feed, 48, 4, 1).batches(range(1), 0, workers))
    assert_facts(raised.value, "40 images", 48)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("received", "facts"), [(range(4), (4, 5)), ((0, 1, 2, 3, 4, 4), (6, 5)), ((), (0, 5))])
def test_steps_that_are_not_those_of_the_plan_are_an_error(
    feed: Feed, received: Iterable[int], facts: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_some(*arguments: Any, **options: Any) -> Iterator[Any]:
        steps = list(load(*arguments, **options))
        return iter([steps[step] for step in received])

    monkeypatch.setattr(loader, "load", load_some)
    with pytest.raises(LoaderError) as raised:
        list(feed.batches(range(1), 0, workers=0))
    assert_facts(raised.value, *facts)


def test_a_step_without_the_views_of_one_worker_is_an_error(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_all_but_last(*arguments: Any, **options: Any) -> Iterator[Any]:
        return iter(list(load(*arguments, **options))[:-1])

    monkeypatch.setattr(loader, "load", load_all_but_last)
    with pytest.raises(LoaderError) as raised:
        list(feed.batches(range(1), 0, workers=2))
    assert_facts(raised.value, 4, 8)


def test_a_different_mix_of_the_same_pixels_stops_the_run(
    feed: Feed, cache: TargetCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn_otherwise(policy: ViewPolicy, seed: int, shard: int, rows: int) -> Mix:
        mix = draw_mix(policy, seed, shard, rows)
        return replace(mix, lam=np.where(mix.lam < 1, mix.lam * np.float32(0.9), mix.lam))

    monkeypatch.setattr("teacher_cache.data.view_reader.draw_mix", drawn_otherwise)
    with pytest.raises(ReplayError, match=str(cache.where)):
        copies(feed.batches(range(1), 0, workers=0))


def test_memory_does_not_grow_over_two_thousand_steps(feed: Feed) -> None:
    """Resident memory of the process and its workers, from step 200 on: by then each slot and shard was used."""
    policy = feed.spec.policy.model_copy(update={"size": 8, "auto_augment": "", "re_prob": 0.0})
    spec = PlanSpec(policy, seeds=4, batch=4, streams=2)
    feed = replace(feed, spec=spec, cache=None, tau=None)
    steps = feed.steps_per_epoch()
    process, limit = psutil.Process(), 2_000

    def resident() -> int:
        return sum(one.memory_info().rss for one in (process, *process.children()))

    sizes = []
    for number, _ in zip(range(limit), feed.batches(range(limit // steps + 1), 0, workers=2), strict=False):
        if number % 200 == 199:
            sizes.append(resident())
    assert len(sizes) == 10
    assert sizes[-1] - sizes[0] < 2_000 * 4 * 8 * 8 * 3, "less than the pixels of these steps"


def test_the_memory_of_the_batches_is_logged_and_limited(
    feed: Feed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    feed.check_memory()
    assert not capsys.readouterr().err
    monkeypatch.setattr(ring_memory, "NOTABLE_BYTES", 1)
    feed.check_memory()
    assert_facts(capsys.readouterr().err, "8 views", "32 px", "GiB")
    views = memory_bytes() // (32 * 32 * 3 * 4) // 8 * 8 + 8
    with pytest.raises(RecipeError) as caught:
        replace(feed, spec=replace(feed.spec, batch=views)).check_memory()
    assert_facts(caught.value, f"{views:,} views", "train.batch", "GiB")


@pytest.mark.parametrize("workers", [0, 2])
def test_the_pace_counts_the_views_and_the_workers(feed: Feed, workers: int) -> None:
    pace = Pace()
    batches = len(copies(feed.batches(range(1), 0, workers, pace)))
    assert pace.views == 8 * batches and pace.workers == max(workers, 1) and pace.views_per_second > 0
