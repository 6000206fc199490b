"""Only one process at a time can use a run folder."""

import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import pytest
from clean_process import start_process
from facts import assert_facts
from locked_run import held_by_another
from wait import until

from student.training.checkpoint import checkpoint_steps
from student.training.loop import train
from student.training.run import LOCK_NAME
from teacher_cache.errors import RunLockedError
from teacher_cache.storage.file_lock import FileLock, is_locked


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lines_about(run: Path, printed: str) -> list[str]:
    """Printed lines that contain the path of a run, without those with its accuracy."""
    return [line for line in printed.splitlines() if str(run) in line and " %" not in line]


@pytest.mark.parametrize("end", [psutil.Process.kill, psutil.Process.resume])
def test_lock_is_exclusive_until_it_is_released_or_the_process_exits(
    tmp_path: Path, end: Callable[[psutil.Process], None]
) -> None:
    path = tmp_path / LOCK_NAME
    assert not is_locked(path)
    with held_by_another(path) as holder:
        with pytest.raises(BlockingIOError, match=LOCK_NAME):
            FileLock(path)
        end(holder)
        until(lambda: not is_locked(path))
        FileLock(path).release()


def test_second_training_in_a_folder_is_refused_and_changes_nothing(
    student_recipe: Any, student_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first process is suspended during training. After it is killed, another one can train."""
    recipe, run = student_recipe("machine.checkpoint_every=1"), tmp_path / "run"
    first = start_process(train, recipe, run)
    until(lambda: checkpoint_steps(run))
    psutil.Process(first.pid).suspend()
    before = bytes_in(run)
    with patch("student.training.run.LOCK_WAIT_SECONDS", 0.3), pytest.raises(RunLockedError) as raised:
        train(recipe, run)
    assert_facts(raised.value, run, "--out")
    (line,) = lines_about(run, capfd.readouterr().err)
    assert re.search(r"\b0\b", line.replace(str(run), "")), "the seconds it waits"
    assert bytes_in(run) == before
    first.kill()
    first.join()
    train(recipe, run)
    name = "final/model.safetensors"
    assert (run / name).read_bytes() == (student_run / name).read_bytes()


def test_training_without_file_locks_continues_with_a_warning(
    student_recipe: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Patches in the kernel's error for a file system without locks, as tests cannot mount one."""
    with patch("fcntl.lockf", side_effect=OSError(errno.ENOLCK, "No locks available")):
        train(student_recipe(), tmp_path / "run")
    assert len(lines_about(tmp_path / "run", capfd.readouterr().err)) == 1
