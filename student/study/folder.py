"""A study's folder: what it is about, which tasks it has, and which of them are settled.

study.json says the first two; a task is a folder of its own in it, settled when its result.json stands. A job
holds the claim of the task it is at, which the kernel takes back when the job dies.
"""

import fcntl
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from student.recipe import with_init_from
from teacher_cache.config import describe_differences, differences
from teacher_cache.distributed.world import World
from teacher_cache.errors import RunError
from teacher_cache.storage.atomic import write_json
from teacher_cache.storage.file_lock import FileLock, is_locked

STUDY_FORMAT = 1
STUDY, RESULT, LOCK_NAME = "study.json", "result.json", "claim"
STATES = ("done", "failed", "at work", "begun", "to do")

Plain = dict[str, Any]


class Study:
    """Tasks, by their paths in the folder. Open one by `begin_study` or `open_study`."""

    def __init__(self, folder: Path, kind: str, tasks: Sequence[str]) -> None:
        self.folder, self.kind, self.tasks = folder, kind, tuple(tasks)

    def locked_tasks(self, world: World | None = None) -> Iterator[str]:
        """Tasks that are not settled and that no other job is at; each is this job's until the next is asked for.

        world: this job's share of the tasks; None for all of them.
        """
        share = self.tasks[world.rank :: world.size] if world else self.tasks
        found = True
        while found:  # in a second round: what a job that died has left
            found = False
            for task in share:
                with self._lock(task) as mine:
                    if mine and not self.is_finished(task):
                        found = True
                        yield task

    def finish(self, task: str, result: Plain) -> None:
        (self.folder / task).mkdir(parents=True, exist_ok=True)
        write_json(self.folder / task / RESULT, result)

    def is_finished(self, task: str) -> bool:
        return (self.folder / task / RESULT).exists()

    def result(self, task: str) -> Plain:
        """Raises RunError where it cannot be read."""
        return _read(self.folder / task / RESULT, "remove it, and the same command makes it anew")

    def open_tasks(self) -> list[str]:
        return [task for task in self.tasks if not self.is_finished(task)]

    def state(self, task: str) -> str:
        """One of STATES. A job that asks loses the claim it holds, so none may."""
        if self.is_finished(task):
            return "failed" if "failed" in self.result(task) else "done"
        if is_locked(self.folder / task / LOCK_NAME):
            return "at work"
        return "begun" if any(path.name != LOCK_NAME for path in (self.folder / task).glob("*")) else "to do"

    @contextmanager
    def _lock(self, task: str) -> Iterator[bool]:
        (self.folder / task).mkdir(parents=True, exist_ok=True)
        try:
            claim = FileLock(self.folder / task / LOCK_NAME)
        except BlockingIOError:
            yield False
        else:
            yield True
            claim.release()


def create_study(folder: Path, kind: str, about: Plain, tasks: Sequence[str]) -> Study:
    """Make a study's folder, or go on with it. The study returned has the tasks asked for; the folder keeps all.

    about: by name, what must not change; names may be added. Raises RunError with each key that differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / STUDY
    others = [file for file in folder.iterdir() if not file.name.startswith(f".{STUDY}.")]
    if others and not path.exists():  # asked last: another job may be beginning it
        raise RunError(f"'{folder}' is no study's folder: it holds other files; choose another --out")
    with (folder / f".{STUDY}.{LOCK_NAME}").open("a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        known: Plain = _read_study(folder) if path.exists() else {"kind": kind, "about": {}, "tasks": []}
        shared = about.keys() & known["about"].keys()
        there, here = ({name: part[name] for name in shared} for part in (with_init_from(known["about"]), about))
        if apart := differences({"kind": known["kind"], **there}, {"kind": kind, **here}):
            raise RunError(
                f"study '{folder}' is of another recipe: {describe_differences(apart)}; choose another --out"
            )
        every = list(dict.fromkeys([*known["tasks"], *tasks]))
        whole = {"format": STUDY_FORMAT, "kind": kind, "about": known["about"] | about, "tasks": every}
        write_json(path, whole)
    return Study(folder, kind, tasks)


def open_study(folder: Path) -> Study:
    """A study that is there; raises RunError where none is."""
    plain = _read_study(folder)
    return Study(folder, plain["kind"], plain["tasks"])


def status_of(study: Study) -> tuple[Table, str]:
    """The tasks that are not done, with their states, and a line that counts the states."""
    states = {task: study.state(task) for task in study.tasks}
    counts = Counter(states.values())
    table = Table("task", "state")
    for task, state in states.items():
        if state != "done":
            table.add_row(escape(task), state)
    told = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    rest = "complete" if counts["done"] + counts["failed"] == len(states) else "the command that began it goes on"
    return table, f"{study.kind} study '{study.folder}': {told}, of {len(states)}; {rest}"


def _read_study(folder: Path) -> Plain:
    path = folder / STUDY
    if not path.exists():
        raise RunError(f"'{folder}' is no study's folder: it has no {STUDY}; check the path")
    plain = _read(path, "choose another --out")
    if plain.get("format") != STUDY_FORMAT:
        raise RunError(
            f"study '{folder}' has format {plain.get('format')}, this version reads {STUDY_FORMAT}; "
            "choose another --out"
        )
    return plain


def _read(path: Path, advice: str) -> Plain:
    try:
        plain: Plain = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"'{path}' cannot be read ({error}); {advice}") from None
    return plain
