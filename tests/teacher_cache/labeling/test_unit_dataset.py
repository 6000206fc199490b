"""The memory for decoded images, as far as the machine has it."""

import pytest
from facts import assert_facts

from teacher_cache.distributed.machine import memory_bytes
from teacher_cache.labeling.unit_dataset import decoded_bytes, log_decoded_bytes
from teacher_cache.recipe import JobSpec

GIB = 2**30
MEMORY = memory_bytes() / GIB


@pytest.mark.parametrize(("gib", "workers"), [(MEMORY / 4, 0), (MEMORY / 4, 1), (MEMORY / 4.1, 4)])
def test_memory_that_the_machine_has_is_used_without_a_line(
    gib: float, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    job = JobSpec(decoded_gib=gib)
    log_decoded_bytes(job, workers)
    assert decoded_bytes(job, workers) == int(gib * GIB) and not capsys.readouterr().err


@pytest.mark.parametrize(("gib", "workers"), [(MEMORY + 1, 0), (MEMORY + 1, 1), (MEMORY / 2, 4)])
def test_memory_that_the_machine_lacks_is_one_line_and_not_used(
    gib: float, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    job = JobSpec(decoded_gib=gib)
    log_decoded_bytes(job, workers)
    assert decoded_bytes(job, workers) * max(workers, 1) <= MEMORY * GIB / 2
    printed = capsys.readouterr().err
    assert_facts(printed, f"job.decoded_gib = {gib:g}", f"job.workers = {workers}", f"{MEMORY:.2f} GiB")
    assert printed.count("\n") == 1
