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

from rich.markup import escape
from rich.table import Table

from teacher_cache.config import Plain, describe_differences, differences
from teacher_cache.distributed.world import World
from teacher_cache.errors import RunError
from teacher_cache.storage.atomic import write_atomic
from teacher_cache.storage.file_lock import FileLock, is_locked

STUDY_FORMAT = 1
STUDY_NAME, RESULT_NAME, LOCK_NAME = "study.json", "result.json", "claim"
STATES = ("done", "failed", "running", "interrupted", "pending")


class Study:
    """Tasks, by their paths in the folder. Open one by `begin_study` or `open_study`."""

    def __init__(self, folder: Path, kind: str, tasks: Sequence[str]) -> None:
        self.folder, self.kind, self.tasks = folder, kind, tuple(tasks)

    def claim_tasks(self, world: World | None = None) -> Iterator[str]:
        """Tasks that are not settled and that no other job is at; each is this job's until the next is asked for.

        world: this job's share of the tasks; None for all of them.
        """
        share = self.tasks[world.rank :: world.size] if world else self.tasks
        claimed_any = True
        while claimed_any:  # in a second round: what a job that died has left
            claimed_any = False
            for task in share:
                with self._lock(task) as claimed:
                    if claimed and not self.is_finished(task):
                        claimed_any = True
                        yield task

    def finish(self, task: str, result: Plain) -> None:
        (self.folder / task).mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / task / RESULT_NAME, (json.dumps(result, indent=1) + "\n").encode())

    def is_finished(self, task: str) -> bool:
        return (self.folder / task / RESULT_NAME).exists()

    def result(self, task: str) -> Plain:
        """Raises RunError where it cannot be read."""
        return _read(self.folder / task / RESULT_NAME, "remove it, and the same command makes it anew")

    def unfinished_tasks(self) -> list[str]:
        return [task for task in self.tasks if not self.is_finished(task)]

    def state(self, task: str) -> str:
        """One of STATES. A job that asks loses the claim it holds, so none may."""
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
    """Make a study's folder, or go on with it. The study returned has the tasks asked for; the folder keeps all.

    about: by name, what must not change; names may be added. Raises RunError with each key that differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / STUDY_NAME
    files = [file for file in folder.iterdir() if not file.name.startswith(f".{STUDY_NAME}.")]
    if files and not path.exists():  # asked last: another job may be beginning it
        raise RunError(f"'{folder}' is no study's folder: it holds other files; choose another --out")
    with (folder / f".{STUDY_NAME}.{LOCK_NAME}").open("a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        stored: Plain = _read_study(folder) if path.exists() else {"kind": kind, "about": {}, "tasks": []}
        shared = identity.keys() & stored["about"].keys()
        stored_values, given_values = (
            {name: values[name] for name in shared} for values in (stored["about"], identity)
        )
        if differing := differences({"kind": stored["kind"], **stored_values}, {"kind": kind, **given_values}):
            raise RunError(
                f"study '{folder}' is of another recipe: {describe_differences(differing)}; choose another --out"
            )
        all_tasks = list(dict.fromkeys([*stored["tasks"], *tasks]))
        document = {"format": STUDY_FORMAT, "kind": kind, "about": stored["about"] | identity, "tasks": all_tasks}
        write_atomic(path, (json.dumps(document, indent=1) + "\n").encode())
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
    count_text = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    outlook = (
        "complete" if counts["done"] + counts["failed"] == len(states) else "the command that began it goes on"
    )
    return table, f"{study.kind} study '{study.folder}': {count_text}, of {len(states)}; {outlook}"


def _read_study(folder: Path) -> Plain:
    path = folder / STUDY_NAME
    if not path.exists():
        raise RunError(f"'{folder}' is no study's folder: it has no {STUDY_NAME}; check the path")
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
