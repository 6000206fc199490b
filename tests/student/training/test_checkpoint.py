import errno
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from facts import assert_facts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from student.training.checkpoint import (
    Checkpoint,
    _save,
    checkpoint_path,
    checkpoint_steps,
    load_checkpoint,
    save_checkpoint,
)
from teacher_cache.errors import RunError

RECIPE = "the digest of a recipe"
STEPS = range(1, 7)


def checkpoint_at(epoch: int) -> Checkpoint:
    """A network and an optimizer with real state, whose numbers depend on the epoch."""
    network = torch.nn.Linear(20, 10)
    torch.nn.init.constant_(network.weight, epoch)
    torch.nn.init.constant_(network.bias, epoch)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-30, weight_decay=0)
    (network(torch.ones(1, 20)).sum() * epoch).backward()
    optimizer.step()
    journal: list[dict[str, Any]] = [{"epoch": done + 1, "loss": 1 / (done + 1)} for done in range(epoch)]
    learner = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "ema": None}
    return Checkpoint(RECIPE, epoch, learner, {"losses": (1.0, 2.0, 3.0)}, journal)


def flat(state: Any) -> Any:
    """Nested state with tensors as lists, so that == compares all of it."""
    if isinstance(state, Tensor):
        return (str(state.dtype), state.tolist())
    if isinstance(state, dict):
        return {key: flat(value) for key, value in state.items()}
    return [flat(value) for value in state] if isinstance(state, list | tuple) else state


def alike(loaded: Checkpoint | None, saved: Checkpoint) -> bool:
    return loaded is not None and flat(vars(loaded)) == flat(vars(saved))


def test_a_new_run_has_no_checkpoint(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path, RECIPE) is None


def test_the_last_checkpoint_is_loaded_completely(tmp_path: Path) -> None:
    for epoch in (1, 2):
        save_checkpoint(tmp_path, checkpoint_at(epoch), keep=1)
        assert alike(load_checkpoint(tmp_path, RECIPE), checkpoint_at(epoch))
    assert not alike(load_checkpoint(tmp_path, RECIPE), checkpoint_at(1))
    assert [path.name for path in tmp_path.rglob("*.*")] == ["step-000000002.pt"]


@pytest.mark.parametrize(
    ("keep", "best", "remaining"),
    [(1, None, [6]), (2, None, [5, 6]), (2, 3, [3, 5, 6]), (2, 6, [5, 6]), (9, 1, list(STEPS))],
)
def test_the_last_few_checkpoints_and_the_best_are_kept(
    tmp_path: Path, keep: int, best: int | None, remaining: list[int]
) -> None:
    for step in STEPS:
        save_checkpoint(tmp_path, checkpoint_at(step), keep, min(best, step) if best else None)
    assert checkpoint_steps(tmp_path) == remaining


def test_a_damaged_checkpoint_is_skipped_only_if_requested_and_is_renamed(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, checkpoint_at(step), keep=3)
    for step in (2, 3):
        checkpoint_path(tmp_path, step).write_bytes(checkpoint_path(tmp_path, step).read_bytes()[:-1])
    with pytest.raises(RunError) as raised:
        load_checkpoint(tmp_path, RECIPE)
    assert_facts(raised.value, checkpoint_path(tmp_path, 3), "--skip-damaged", "step 2")
    assert alike(load_checkpoint(tmp_path, RECIPE, skip_damaged=True), checkpoint_at(1))
    assert sorted(path.name for path in checkpoint_path(tmp_path, 1).parent.iterdir()) == [
        "step-000000001.pt",
        "step-000000002.damaged",
        "step-000000003.damaged",
    ]
    assert alike(load_checkpoint(tmp_path, RECIPE), checkpoint_at(1))


def test_a_checkpoint_of_another_format_version_is_not_reported_as_damaged(tmp_path: Path) -> None:
    checkpoint_path(tmp_path, 1).parent.mkdir()
    torch.save({"format": 77, "epoch": 1}, checkpoint_path(tmp_path, 1))
    data = checkpoint_path(tmp_path, 1).read_bytes()
    checkpoint_path(tmp_path, 1).write_bytes(data + xxhash.xxh3_128_digest(data))
    with pytest.raises(RunError) as raised:
        load_checkpoint(tmp_path, RECIPE, skip_damaged=True)
    assert_facts(raised.value, checkpoint_path(tmp_path, 1), "format", 77, "--out")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_to_a_checkpoint_is_reported_with_its_path(tmp_path: Path, data: st.DataObject) -> None:
    path = checkpoint_path(tmp_path, 1)
    save_checkpoint(tmp_path, checkpoint_at(1), keep=1)
    intact = path.read_bytes()
    place = data.draw(st.integers(0, len(intact) - 1))
    flipped = bytearray(intact)
    flipped[place] ^= data.draw(st.integers(1, 255))
    junk = data.draw(st.binary(max_size=100))
    path.write_bytes(data.draw(st.sampled_from([intact[:place], bytes(flipped), junk, intact + junk + b"."])))
    with pytest.raises(RunError) as raised:
        load_checkpoint(tmp_path, RECIPE)
    assert_facts(raised.value, path)
    assert "--skip-damaged" not in str(raised.value), "there is no checkpoint before it"
    assert "\n" not in str(raised.value)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint_at(1), keep=1)
    with pytest.raises(RunError, match=rf"{re.escape(str(checkpoint_path(tmp_path, 1)))}.*--out"):
        load_checkpoint(tmp_path, "another digest")


def _save_on_and_on(run: Path) -> None:
    two = [checkpoint_at(epoch) for epoch in (1, 2)]
    while True:
        for checkpoint in two:
            save_checkpoint(run, checkpoint, keep=2)


def test_a_process_killed_while_saving_leaves_a_complete_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint_at(1), keep=2)
    saved = {epoch: checkpoint_at(epoch) for epoch in (1, 2)}
    seen = set()
    for turn in range(8):
        process = multiprocessing.get_context("fork").Process(target=_save_on_and_on, args=(tmp_path,))
        process.start()
        time.sleep(0.1 + turn * 0.007)
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        found = load_checkpoint(tmp_path, RECIPE)
        assert found is not None and alike(found, saved[found.step])
        seen.add(found.step)
    assert seen <= {1, 2}


def test_a_full_disk_is_the_error_of_the_system() -> None:
    """torch's writer raises an error of its own, which does not say that the disk is full."""
    with Path("/dev/full").open("wb", buffering=0) as file, pytest.raises(OSError) as raised:
        _save(vars(checkpoint_at(1)), file)
    assert raised.value.errno == errno.ENOSPC
