"""Each process of a machine uses its own GPU."""

import pytest
import torch
from facts import assert_facts

from teacher_cache.distributed.device import local_device
from teacher_cache.errors import RecipeError


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Simulate a machine with two GPUs; returns the devices in use."""
    taken = list[torch.device]()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    return taken


def test_each_process_takes_a_gpu_of_its_own(two_gpus: list[torch.device]) -> None:
    found = [local_device("auto", {"LOCAL_RANK": str(place)}) for place in range(2)]
    assert found == two_gpus == [torch.device("cuda:0"), torch.device("cuda:1")]
    assert local_device("cuda", {}) == torch.device("cuda:0")
    assert local_device("cuda:1", {"LOCAL_RANK": "7"}) == torch.device("cuda:1")  # as set in the recipe


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_more_processes_than_gpus_are_refused(two_gpus: list[torch.device], name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        local_device(name, {"LOCAL_RANK": "2"})
    assert_facts(caught.value, "2 GPUs", "--nproc-per-node 2")
    assert two_gpus == []
