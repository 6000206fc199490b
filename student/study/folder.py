"""The folder of a study: its identity, its tasks, and which of them are finished.

study.json has the identity and the tasks. A task has its own folder, and is finished if that contains result.json.
A job locks the task that it runs; the kernel releases the lock when the job exits.
"""

import fcntl
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from student.recipe import with_init_from
from teacher_cache.config import Plain, describe_differences, differences
from teacher_cache.distributed.world import World
from teacher_cache.errors import RunError
from teacher_cache.models.run_folder import RECIPE_NAME
from teacher_cache.storage.atomic import write_json
from teacher_cache.storage.file_lock import FileLock, is_locked

STUDY_FORMAT = 1
STUDY_NAME, RESULT_NAME, LOCK_NAME = "study.json", "result.json", "claim"
STATES = ("done", "failed", "running", "interrupted", "pending")


class Study:
    """A study and its tasks, which are paths in its folder. Open one with `create_study` or `open_study`."""

    def __init__(self, folder: Path, kind: str, tasks: Sequence[str]) -> None:
        self.folder, self.kind, self.tasks = folder, kind, tuple(tasks)

    def claim_tasks(self, world: World | None = None) -> Iterator[str]:
        """Yield unfinished tasks that no other job runs. Each is locked until the next one is requested.

        world: gives this job's share of the tasks; None means all tasks.
        """
        share = self.tasks[world.rank :: world.size] if world else self.tasks
        claimed_any = True
        while claimed_any:  # a further pass takes over the tasks of jobs that have exited
            claimed_any = False
            for task in share:
                with self._lock(task) as claimed:
                    if claimed and not self.is_finished(task):
                        claimed_any = True
                        yield task

    def finish(self, task: str, result: Plain) -> None:
        """Write the result of a task, which marks it as finished."""
        (self.folder / task).mkdir(parents=True, exist_ok=True)
        write_json(self.folder / task / RESULT_NAME, result)

    def is_finished(self, task: str) -> bool:
        return (self.folder / task / RESULT_NAME).exists()

    def result(self, task: str) -> Plain:
        """The result of a finished task. Raises RunError if it cannot be read."""
        return _read(self.folder / task / RESULT_NAME, "delete it, then run the same command again")

    def unfinished_tasks(self) -> list[str]:
        return [task for task in self.tasks if not self.is_finished(task)]

    def state(self, task: str) -> str:
        """One of STATES.

        Do not call it for a task that this process has locked: checking a POSIX lock releases it.
        """
        if self.is_finished(task):
            return "failed" if "failed" in self.result(task) else "done"
        if is_locked(self.folder / task / LOCK_NAME):
            return "running"
        started = any(path.name != LOCK_NAME for path in (self.folder / task).glob("*"))
        return "interrupted" if started else "pending"

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


def create_study(folder: Path, kind: str, identity: Plain, tasks: Sequence[str]) -> Study:
    """Create or reopen a study's folder. The returned study has the given tasks; the folder keeps all tasks.

    identity: values by name that must not change; names may be added. Raises RunError with each key that differs.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"'{folder}' is a file; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / STUDY_NAME
    files = [file for file in folder.iterdir() if not file.name.startswith(f".{STUDY_NAME}.")]
    if files and not path.exists():  # checked second: another job may be creating it
        raise RunError(f"'{folder}' is not a study: it contains other files; choose another --out")
    with (folder / f".{STUDY_NAME}.{LOCK_NAME}").open("a", encoding="utf-8") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        stored: Plain = _read_study(folder) if path.exists() else {"kind": kind, "about": {}, "tasks": []}
        shared = identity.keys() & stored["about"].keys()
        stored_values, given_values = (
            {name: values[name] for name in shared} for values in (with_init_from(stored["about"]), identity)
        )
        if differing := differences({"kind": stored["kind"], **stored_values}, {"kind": kind, **given_values}):
            raise RunError(
                f"study '{folder}' is for another recipe: {describe_differences(differing)}; choose another --out"
            )
        all_tasks = list(dict.fromkeys([*stored["tasks"], *tasks]))
        document = {"format": STUDY_FORMAT, "kind": kind, "about": stored["about"] | identity, "tasks": all_tasks}
        write_json(path, document)
    return Study(folder, kind, tasks)


def remove_unstarted(folder: Path) -> None:
    """Remove the folder of a study that was refused before its first step; keep it if it has any result."""
    names = {path.name for path in folder.rglob("*") if not path.is_dir()}
    if names <= {STUDY_NAME, RECIPE_NAME, LOCK_NAME, f".{LOCK_NAME}", f".{STUDY_NAME}.{LOCK_NAME}"}:
        shutil.rmtree(folder)


def open_study(folder: Path) -> Study:
    """Open an existing study; raises RunError if the folder is not a study."""
    plain = _read_study(folder)
    return Study(folder, plain["kind"], plain["tasks"])


def status_of(study: Study) -> tuple[Table, str]:
    """A table of the tasks that are not done, and a line with the number of tasks in each state."""
    states = {task: study.state(task) for task in study.tasks}
    counts = Counter(states.values())
    table = Table("task", "state")
    for task, state in states.items():
        if state != "done":
            table.add_row(escape(task), state)
    count_text = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    outlook = (
        "complete"
        if counts["done"] + counts["failed"] == len(states)
        else "run the same command again to continue"
    )
    return table, f"{study.kind} study '{study.folder}': {count_text} (of {len(states)}); {outlook}"


def _read_study(folder: Path) -> Plain:
    path = folder / STUDY_NAME
    if not path.exists():
        raise RunError(f"'{folder}' is not a study: it has no {STUDY_NAME}; check the path")
    plain = _read(path, "choose another --out")
    if plain.get("format") != STUDY_FORMAT:
        raise RunError(
            f"study '{folder}' has format {plain.get('format')}, this version reads {STUDY_FORMAT}; "
            "choose another --out"
        )
    return plain


def _read(path: Path, advice: str) -> Plain:
    try:
        plain: Plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"'{path}' cannot be read ({error}); {advice}") from None
    return plain
