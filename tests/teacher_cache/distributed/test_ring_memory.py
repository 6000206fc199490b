"""The shared memory of batches is logged if it is notable, and refused if the machine has less."""

import pytest
from facts import assert_facts

from teacher_cache.distributed.machine import memory_bytes
from teacher_cache.distributed.ring_memory import GIB, NOTABLE_BYTES, check_ring_memory
from teacher_cache.errors import RecipeError

BATCHES, ADVICE = "4 batches of 1,024 views of 224 px", "lower train.batch"


@pytest.mark.parametrize(("nbytes", "is_logged"), [(NOTABLE_BYTES - 1, False), (3 * NOTABLE_BYTES, True)])
def test_memory_is_one_line_if_it_is_notable(
    nbytes: int, is_logged: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    check_ring_memory(nbytes, BATCHES, ADVICE)
    printed = capsys.readouterr().err
    assert printed.count("\n") == is_logged
    if is_logged:
        assert_facts(printed, BATCHES, f"{nbytes / GIB:.2f} GiB")


@pytest.mark.parametrize(("processes", "share"), [("1", 1.01), ("4", 0.26)])
def test_more_than_the_machine_has_is_refused(
    processes: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    nbytes = int(share * memory_bytes())
    with pytest.raises(RecipeError) as caught:
        check_ring_memory(nbytes, BATCHES, ADVICE)
    assert_facts(caught.value, BATCHES, f"{nbytes / GIB:,.2f} GiB", f"{memory_bytes() / GIB:,.2f} GiB", ADVICE)
    assert processes == "1" or f"{processes} processes" in str(caught.value)
