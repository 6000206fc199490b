"""The driver receives every line of a process once, complete and in order, before the job returns."""

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import redirect_stderr
from io import StringIO
from queue import Queue

import pytest

from teacher_cache.console import log_line, progress
from teacher_cache.distributed.ray_logs import Forwarder, follow

OUTPUT = "epoch 1/2: loss 1.8\n\nepoch 2/2: loss 1.5\nunfinished"


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_complete_lines_are_queued_and_all_text_is_written(size: int) -> None:
    lines, out = Queue[str](), StringIO()
    forwarder = Forwarder(out, lines)
    for start in range(0, len(OUTPUT), size):
        assert forwarder.write(OUTPUT[start : start + size]) == len(OUTPUT[start : start + size])
    assert out.getvalue() == OUTPUT
    assert list(lines.queue) == OUTPUT.split("\n")[:-1]


def test_log_lines_and_progress_are_forwarded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teacher_cache.console.PLAIN_FIRST_SECONDS", 0.0)
    lines, own = Queue[str](), StringIO()
    with redirect_stderr(Forwarder(own, lines)):
        log_line("epoch 1/2: [red] " + 300 * "x")
        with progress("train a", 10, "steps") as bar:
            bar.advance(4, "loss 1.8")
    first, second = lines.queue
    assert first == "epoch 1/2: [red] " + 300 * "x"
    assert second.startswith("train a: 4/10 steps, ") and second.endswith("loss 1.8")
    assert own.getvalue() == f"{first}\n{second}\n"


def test_a_forked_process_forwards_nothing() -> None:
    """A forked process has no connection to Ray and would block forever."""
    lines = Queue[str]()
    forwarder = Forwarder(StringIO(), lines)
    if not (child := os.fork()):
        forwarder.write("a\n")
        os._exit(lines.qsize())
    assert os.waitpid(child, 0)[1] == 0
    forwarder.write("a\n")
    assert lines.qsize() == 1


def test_all_lines_are_printed_before_the_job_returns_or_raises() -> None:
    def job(error: Exception | None) -> int:
        for number in range(100):
            lines.put(f"line {number}")
            time.sleep(0.001)
        if error:
            raise error
        return 7

    lines = Queue[str]()
    with ThreadPoolExecutor() as pool:
        for error in (None, ValueError("mistake")):
            out = StringIO()
            ended: Future[int] = pool.submit(job, error)
            if error:
                with pytest.raises(ValueError, match="mistake"):
                    follow(ended, lines, out)
            else:
                assert follow(ended, lines, out) == 7
            assert out.getvalue() == "".join(f"line {number}\n" for number in range(100))


def test_lines_are_printed_while_the_job_runs() -> None:
    lines, job = Queue[str](), Future[int]()

    class Screen(StringIO):
        def write(self, text: str) -> int:
            if text == "line":
                job.set_result(7)
            return super().write(text)

    lines.put("line")
    assert follow(job, lines, Screen()) == 7
