"""One process at a time works in a run's folder."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import pytest
from clean_process import begin
from locked_run import held_by_another
from wait import until

from student.training.checkpoint import checkpoints
from student.training.loop import train
from student.training.run import LOCK_NAME
from teacher_cache.errors import RunLockedError
from teacher_cache.storage.file_lock import FileLock, is_locked


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("end", [psutil.Process.kill, psutil.Process.resume])
def test_a_claim_is_one_process_s_until_it_is_released_or_the_process_dies(
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


def test_a_second_training_in_one_folder_is_refused_and_disturbs_nothing(
    student_recipe: Any, student_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first is stopped in the midst of it, and later goes on; then it is killed, and the second may."""
    recipe, run = student_recipe("machine.checkpoint_every=1"), tmp_path / "run"
    first = begin(train, recipe, run)
    until(lambda: checkpoints(run))
    psutil.Process(first.pid).suspend()
    before = bytes_in(run)
    with (
        patch("student.training.run.LOCK_WAIT_SECONDS", 0.3),
        pytest.raises(
            RunLockedError, match=rf"^run '{run}' is being trained by another process; let it end, or choose"
        ),
    ):
        train(recipe, run)
    assert f"another process trains run '{run}'; waiting 0 s for it to end\n" in capfd.readouterr().err
    assert bytes_in(run) == before
    first.kill()
    first.join()
    train(recipe, run)
    name = "final/model.safetensors"
    assert (run / name).read_bytes() == (student_run / name).read_bytes()


def test_where_files_cannot_be_locked_it_is_said_and_trained(
    student_recipe: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As the kernel answers for a file system without locks; there is none here to mount."""
    with patch("fcntl.lockf", side_effect=OSError(errno.ENOLCK, "No locks available")):
        train(student_recipe(), tmp_path / "run")
    assert "lies where files cannot be locked; see that no other process trains it" in capfd.readouterr().err
