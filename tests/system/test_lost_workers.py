"""A lost worker ends every command with one line and a status; a small /dev/shm changes nothing."""

import faulthandler
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import Process
from pathlib import Path
from typing import Any

import psutil
import pytest
from facts import assert_facts
from wait import until

from server.cli import main
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.data.index import ShardIndex

BOUND_SECONDS = 60
SMALL = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", "/dev/shm"]

Commands = Callable[[str], dict[str, list[str]]]


def run_limbeck(words: list[str], log: Path) -> None:
    """In a process of its own: run a command."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stderr = sys.stdout = os.fdopen(descriptor, "w", buffering=1)
    sys.argv = ["limbeck", *words]
    faulthandler.disable()  # pytest's would print the stack of a killed worker
    main()


def start(words: list[str], log: Path) -> Process:
    process = Process(target=run_limbeck, args=(words, log))
    process.start()
    return process


@pytest.fixture
def commands(recipe_text: Callable[..., str], teacher_run: Path, tmp_path: Path) -> Commands:
    """The commands that have workers, for shards in a folder."""

    def write(folder: str) -> dict[str, list[str]]:
        train, cache = tmp_path / "run.toml", tmp_path / "cache.toml"
        train.write_text(
            recipe_text("teacher", shards=folder).replace("batch = 8", "batch = 40")
            + '[machine]\nworkers = 2\ndevice = "cpu"\n'
        )
        cache.write_text(
            recipe_text("cache", shards=folder, teacher=teacher_run, cache=tmp_path / "a.zarr")
            + '[job]\nworkers = 2\ndevice = "cpu"\n'
        )
        scores = ["--json", str(tmp_path / "scores.json")]
        return {
            "train": ["train", str(train), "--out", str(tmp_path / "run")],
            "cache build": ["cache", "build", str(cache)],
            "evaluate": ["evaluate", str(teacher_run), folder, "--workers", "2", *scores],
        }

    return write


@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("train", signal.SIGKILL),
        ("cache build", signal.SIGKILL),
        ("evaluate", signal.SIGKILL),
        ("evaluate", signal.SIGBUS),
    ],
)
def test_a_killed_worker_is_one_line_and_a_status(
    command: str, number: signal.Signals, commands: Commands, shards: ShardIndex, tmp_path: Path
) -> None:
    """The workers wait for the content of a pipe in place of a shard, until one is killed."""
    folder = shutil.copytree(shards.folder, tmp_path / "shards")
    for tar in Path(folder).glob("*.tar"):
        tar.unlink()
        os.mkfifo(tar)
    process = start(commands(str(folder))[command], tmp_path / "log")
    try:
        workers = until(lambda: psutil.Process(process.pid).children(), BOUND_SECONDS)
        workers[0].send_signal(number)
        process.join(BOUND_SECONDS)
        assert process.exitcode == 2
    finally:
        process.kill()
        process.join()
    psutil.wait_procs(workers, BOUND_SECONDS)
    line = (tmp_path / "log").read_text().splitlines()[-1]
    assert line.startswith("limbeck: ") and "Traceback" not in (tmp_path / "log").read_text()
    assert_facts(line, "worker 0 of 2", f"pid {workers[0].pid}", number.name)


@pytest.fixture
def can_mount() -> None:
    """Only root may mount, and not in every container."""
    command = ["unshare", "-m", *SMALL]
    if not shutil.which("unshare") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs root, unshare(1) and mount(8)")


@pytest.mark.usefixtures("can_mount")
def test_a_small_dev_shm_changes_no_result(commands: Commands, shards: ShardIndex, tmp_path: Path) -> None:
    for words in commands(shards.folder).values():
        limbeck = shlex.join([sys.executable, "-m", "server.cli", *words])
        script = f"mount --make-rprivate / && {shlex.join(SMALL)} && exec {limbeck}"
        ended = subprocess.run(
            ["unshare", "-m", "sh", "-c", script], capture_output=True, encoding="utf-8", timeout=BOUND_SECONDS
        )
        assert ended.returncode == 0, ended.stderr
    scores: dict[str, Any] = json.loads((tmp_path / "scores.json").read_text())
    assert {row["images"] for row in scores["scores"]} == {shards.rows}
    assert TargetCache.open(tmp_path / "a.zarr").missing() == []
    journal = (tmp_path / "run" / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in journal] == [1, 2]
