from collections import Counter
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from facts import assert_facts
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_cache.data.plan import PlanSpec, ReadRequest, epoch_seeds, pair_order, plan, steps_per_epoch
from teacher_cache.distributed.world import World
from teacher_cache.errors import RecipeError
from teacher_cache.views.mix import draw_mix
from teacher_cache.views.policy import ViewPolicy


def policy(repeats: int = 1, mixes: bool = True) -> ViewPolicy:
    return ViewPolicy(
        size=8,
        hflip=0.5,
        auto_augment="",
        re_prob=0.0,
        mixup=0.8 if mixes else 0.0,
        cutmix=0.0,
        aug_repeats=repeats,
    )


@st.composite
def setting(draw: Any) -> tuple[PlanSpec, list[int]]:
    """A spec, and row counts of shards (some empty, most odd) for at least one batch."""
    repeats = draw(st.integers(1, 4))
    streams = draw(st.sampled_from([1, 2, 3, 4, 8]))
    batch = streams * repeats * draw(st.integers(1, 5))
    blocks = draw(st.integers(1, 3))
    rows = draw(st.lists(st.one_of(st.integers(0, 9), st.integers(20, 60)), max_size=4))
    rows.insert(draw(st.integers(0, len(rows))), batch + 4 * repeats + draw(st.integers(0, 40)))
    return PlanSpec(policy(repeats, draw(st.booleans())), repeats * blocks, batch, streams), rows


def read_requests(
    spec: PlanSpec, rows: list[int], epoch: int, world: World = World(), first: int = 0
) -> list[ReadRequest]:
    return list(plan(spec, rows, epoch, world, first))


def views(found: list[ReadRequest]) -> list[tuple[int, int, int]]:
    """(seed, shard, row) of each view."""
    return [(seed, request.shard, row) for request in found for seed in request.seeds for row in request.rows]


@settings(deadline=None)
@given(setting=setting(), turn=st.integers(0, 5))
def test_each_row_is_seen_once_under_each_seed_up_to_the_last_batch(
    setting: tuple[PlanSpec, list[int]], turn: int
) -> None:
    spec, rows = setting
    repeats = spec.policy.aug_repeats
    epochs = range(turn * repeats, (turn + 1) * repeats)
    seen = Counter(view for epoch in epochs for view in views(read_requests(spec, rows, epoch)))
    block = epoch_seeds(spec, epochs[0])
    everything = {(seed, shard, row) for seed in block for shard, count in enumerate(rows) for row in range(count)}
    assert len(block) == repeats and set(seen) <= everything and max(seen.values()) == 1
    assert len(seen) == repeats * steps_per_epoch(spec, rows) * spec.batch
    parts = [len(set(views(read_requests(spec, rows, epoch)))) for epoch in epochs]
    assert len(set(parts)) == 1
    lost = (len(everything) - len(seen)) / repeats  # rows
    unevenness = 2 * len(rows) * repeats  # pairs stay together in every shard
    assert lost < repeats * (spec.streams * spec.rows_per_slice + spec.streams) + unevenness


@given(setting=setting(), epoch=st.integers(0, 30))
def test_every_batch_is_full_and_has_every_image_under_each_seed(
    setting: tuple[PlanSpec, list[int]], epoch: int
) -> None:
    spec, rows = setting
    found = read_requests(spec, rows, epoch)
    for step, batch in groupby(found, key=lambda request: request.step):
        members = list(batch)
        assert len(views(members)) == spec.batch, step
        assert {request.seeds for request in members} == {epoch_seeds(spec, epoch)}
        for stream, share in groupby(members, key=lambda request: request.stream):
            assert sum(len(request.rows) for request in share) == spec.rows_per_slice, stream
    assert [request.step for request in found] == sorted(request.step for request in found)
    assert {request.step for request in found} == set(range(steps_per_epoch(spec, rows)))


@given(setting=setting(), epoch=st.integers(0, 30))
def test_batches_are_the_same_for_every_number_of_processes(
    setting: tuple[PlanSpec, list[int]], epoch: int
) -> None:
    spec, rows = setting
    single = read_requests(spec, rows, epoch)
    for size in (1, 2, 3, 4, 8):
        if spec.streams % size:
            continue
        shares = [read_requests(spec, rows, epoch, World(rank, size)) for rank in range(size)]
        together = sorted(
            (request for share in shares for request in share), key=lambda request: (request.step, request.stream)
        )
        assert together == single
        for rank, share in enumerate(shares):
            assert {request.stream for request in share} == set(range(rank, spec.streams, size))
            assert len(views(share)) * size == len(views(single))


@given(setting=setting(), epoch=st.integers(0, 30), data=st.data())
def test_a_plan_from_a_later_step_is_the_tail(
    setting: tuple[PlanSpec, list[int]], epoch: int, data: st.DataObject
) -> None:
    spec, rows = setting
    first = data.draw(st.integers(0, steps_per_epoch(spec, rows)))
    whole = read_requests(spec, rows, epoch)
    assert read_requests(spec, rows, epoch, first=first) == [request for request in whole if request.step >= first]


@given(
    rows=st.integers(0, 80),
    seed=st.integers(0, 50),
    shard=st.integers(0, 50),
    turn=st.integers(0, 50),
    repeats=st.integers(1, 3),
)
def test_partners_are_adjacent(rows: int, seed: int, shard: int, turn: int, repeats: int) -> None:
    spec = policy(repeats)
    order = pair_order(spec, seed, shard, rows, turn)
    partner = draw_mix(spec, seed, shard, rows).partner
    assert sorted(order) == list(range(rows))
    pairs = order[: rows // 2 * 2].reshape(-1, 2)
    assert (partner[pairs[:, 0]] == pairs[:, 1]).all()


@settings(max_examples=50)
@given(pairs=st.lists(st.integers(6, 20), min_size=1, max_size=4), epoch=st.integers(0, 9))
def test_batches_of_even_shards_hold_their_partners(pairs: list[int], epoch: int) -> None:
    rows = [2 * count for count in pairs]
    spec = PlanSpec(policy(3), seeds=6, batch=12, streams=1)
    assert steps_per_epoch(spec, rows) > 0
    found = read_requests(spec, rows, epoch)
    for _, batch in groupby(found, key=lambda request: request.step):
        members = {(request.shard, row) for request in batch for row in request.rows}
        for shard, row in members:
            for seed in epoch_seeds(spec, epoch):
                partner = draw_mix(spec.policy, seed, shard, rows[shard]).partner[row]
                assert (shard, partner) in members


def test_epochs_are_shuffled_reproducibly() -> None:
    spec, rows = PlanSpec(policy(), seeds=1, batch=8, streams=2), [40, 30, 50]
    orders = [tuple(views(read_requests(spec, rows, epoch))) for epoch in range(6)]
    assert len(set(orders)) == 6  # one seed, in another order each epoch
    assert orders == [tuple(views(read_requests(spec, rows, epoch))) for epoch in range(6)]
    assert len({order[0][1] for order in orders}) > 1  # the shards too


def test_row_dropped_in_one_epoch_is_used_in_another() -> None:
    spec, rows = PlanSpec(policy(), seeds=1, batch=16, streams=4), [10, 11, 12]
    seen = {view for epoch in range(20) for view in views(read_requests(spec, rows, epoch))}
    assert len(seen) == 33


def test_an_image_is_seen_under_every_seed_in_turn() -> None:
    spec, rows = PlanSpec(policy(2), seeds=6, batch=8, streams=2), [16, 16]
    assert [epoch_seeds(spec, epoch) for epoch in range(7)] == [(0, 1)] * 2 + [(2, 3)] * 2 + [(4, 5)] * 2 + [
        (0, 1)
    ]
    seen = Counter(view for epoch in range(6) for view in views(read_requests(spec, rows, epoch)))
    assert len(seen) == 6 * 32 and set(seen.values()) == {1}


def test_a_stream_reads_few_shards() -> None:
    spec, rows = PlanSpec(policy(), seeds=1, batch=64, streams=4), [1000] * 12
    found = read_requests(spec, rows, 0)
    reads = [[shard for shard, _ in groupby(v.shard for v in found if v.stream == stream)] for stream in range(4)]
    assert sum(map(len, reads)) <= 12 + 3  # each once, except shards that are split between two streams
    assert np.ptp([len(read) for read in reads]) <= 1


@pytest.mark.parametrize(("batch", "streams", "repeats"), [(10, 4, 1), (8, 4, 3), (7, 8, 1)])
def test_batch_not_divisible_by_streams_and_repeats_is_refused(batch: int, streams: int, repeats: int) -> None:
    with pytest.raises(RecipeError) as caught:
        PlanSpec(policy(repeats), 12, batch, streams)
    assert_facts(caught.value, f"batch = {batch}", "views.aug_repeats", streams, repeats)


def test_streams_not_divisible_by_processes_are_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        read_requests(PlanSpec(policy(), 1, 8, 4), [40], 0, World(0, 3))
    assert_facts(caught.value, "3 processes", "4 streams", "train.streams")


@pytest.mark.parametrize("rows", [[3], [0], [1, 2, 4], []])
def test_too_few_images_for_one_batch_are_refused(rows: list[int]) -> None:
    with pytest.raises(RecipeError) as caught:
        read_requests(PlanSpec(policy(), 1, 8, 4), rows, 0)
    assert_facts(caught.value, f"{sum(rows)} images", 8)
