"""A run's folder: its recipe, lock, journal, checkpoints and, at the end, the trained network."""

import errno
import json
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from student.data.inputs import Inputs
from student.recipe import TrainRecipe, with_init_from
from student.training.checkpoint import (
    CHECKPOINTS,
    Checkpoint,
    checkpoint_steps,
    load_checkpoint,
    prune_checkpoints,
)
from student.training.checkpoint_writer import CheckpointWriter
from student.training.learner import Learner
from student.training.trackers import RunJournal
from teacher_cache.config import Plain, describe_differences, differences, digest_of, resolved
from teacher_cache.console import log_line
from teacher_cache.distributed.collectives import broadcast
from teacher_cache.distributed.world import World
from teacher_cache.errors import RunError, RunLockedError
from teacher_cache.models.card import CARD_FORMAT, CARD_NAME, Card
from teacher_cache.models.run_folder import FINAL, FINAL_EMA, RECIPE_NAME
from teacher_cache.models.weights import save_network, weights_sha256
from teacher_cache.storage.atomic import write_json
from teacher_cache.storage.file_lock import FileLock

LOCK_NAME, JOURNAL_NAME = ".claim", "journal.jsonl"
OTHER_CONTENT = {
    CARD_NAME: "a bundle",
    "study.json": "a study",
    "zarr.json": "a cache",
    "index.json": "a set of shards",
}
"""Files that show that a folder is not a run's."""
LOCK_WAIT_SECONDS = 120.0
"""A file server releases the locks of a dead machine after about 90 s."""
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class Run:
    """The folder of a run: recipe.json, journal.jsonl, checkpoints/ and, at the end, final/ (and final_ema/).

    Only rank 0 reads and writes it, and only one job at a time, which has the lock.
    """

    def __init__(self, folder: Path, recipe: TrainRecipe, inputs: Inputs, world: World = World()) -> None:
        """Create the folder and lock it. The recipe may change before the first checkpoint.

        Raises RunError if the folder has a checkpoint of another recipe or other inputs, with the differing keys.
        """
        self.folder, self._recipe, self._world = folder, recipe, world
        self._identity = experiment(recipe) | {"inputs": inputs.identity()}
        self._digest = digest_of(self._identity)
        self.journal = RunJournal(folder / JOURNAL_NAME, recipe.machine.trackers, resolved(recipe))
        self._checkpoints = CheckpointWriter(folder, recipe.machine.keep)
        self._file_lock: FileLock | None = None
        if world.is_main:
            self._open_folder()

    def _open_folder(self) -> None:
        folder = self.folder
        require_run_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._file_lock = lock_run(folder)
        for temporary in (folder / CHECKPOINTS).glob(".*.tmp"):  # from a process that was killed while saving
            temporary.unlink()
        path = folder / RECIPE_NAME
        has_checkpoint = bool(checkpoint_steps(folder))
        if has_checkpoint and not path.exists():
            raise RunError(f"run '{folder}' has a checkpoint but no {RECIPE_NAME}; choose another --out")
        if not has_checkpoint and (folder / FINAL).exists():
            raise RunError(f"run '{folder}' is finished but has no checkpoint; choose another --out")
        if path.exists() and "inputs" not in _read(path):
            raise RunError(f"'{path}' is not of limbeck train; choose another --out")
        if not has_checkpoint:
            write_json(path, self._identity)
            return
        stored = _read(path)
        if different := differences(with_init_from(stored), self._identity):
            raise RunError(
                f"run '{folder}' has another recipe: {describe_differences(different)}; choose another --out"
            )
        self._digest = digest_of(stored)  # as in the checkpoints, even if a key has been renamed since

    def resume(self, learner: Learner, skip_damaged: bool = False) -> tuple[int, Plain]:
        """Load the last checkpoint, if there is one. Returns its step and the state of its epoch, or 0 and {}."""
        loaded = None
        if self._world.is_main:
            loaded = load_checkpoint(self.folder, self._digest, skip_damaged)
            if loaded:
                loaded = self._with_evaluation(loaded)
            self.journal.replace(loaded.journal if loaded else [])
        checkpoint = broadcast(self._world, loaded)
        if checkpoint is None:
            return 0, {}
        learner.load(checkpoint.learner)
        log_line(f"run '{self.folder}' resumes after step {checkpoint.step:,}")
        return checkpoint.step, checkpoint.epoch

    def _with_evaluation(self, loaded: Checkpoint) -> Checkpoint:
        """The checkpoint with the line that the journal got after it, if its epoch was evaluated."""
        lines = self.journal.read()
        known = len(loaded.journal)
        if lines[:known] == loaded.journal and len(lines) > known and lines[known].get("step") == loaded.step:
            return replace(loaded, journal=lines[: known + 1], epoch={})
        return loaded

    def save(self, step: int, learner: Learner, epoch: Plain) -> None:
        """Write a checkpoint after `step` steps in a thread, and remove old ones (machine.keep).

        Raises FloatingPointError if a weight is NaN or infinite: the loss shows this only one step later.
        """
        learner.check(step)
        if self._world.is_main:
            lines = self.journal.read()
            checkpoint = Checkpoint(self._digest, step, learner.state(), epoch, lines)
            self._checkpoints.save(checkpoint, best_step(lines))

    def describe_last_checkpoint(self) -> str:
        """The last checkpoint, as part of an error message."""
        with suppress(OSError):  # the error that is being described comes first
            self._checkpoints.wait()
        steps = checkpoint_steps(self.folder)
        return f"the last checkpoint is of step {steps[-1]:,}" if steps else "it has no checkpoint"

    def finish(self, learner: Learner, classes: tuple[str, ...], heads: tuple[str, ...]) -> dict[str, float]:
        """Write the trained network into the folder; the run is then finished. Returns its accuracy by head."""
        last_line: dict[str, Any] = broadcast(self._world, self.journal.read()[-1] if self._world.is_main else {})
        learner.check(last_line.get("step", 0))
        accuracy: dict[str, float] = last_line["accuracy"]
        if not self._world.is_main:
            return accuracy

        def save(name: str, state: Plain, accuracy: dict[str, float]) -> None:
            if not (self.folder / name).exists():
                save_network(self.folder / name, self._card(classes, heads, state, accuracy), state)

        self._checkpoints.wait()
        prune_checkpoints(self.folder, self._recipe.machine.keep, best_step(self.journal.read()))
        self.journal.close()
        state = learner.state()
        if state["ema"]:
            save(FINAL_EMA, state["ema"], last_line["accuracy_ema"])
        save(FINAL, state["network"], accuracy)
        self._file_lock = None
        log_line(f"run '{self.folder}' is finished: {format_accuracy(accuracy)}")
        return accuracy

    def _card(
        self, classes: tuple[str, ...], heads: tuple[str, ...], state: Plain, accuracy: dict[str, float]
    ) -> Card:
        return Card(
            format=CARD_FORMAT,
            network=self._recipe.model,
            eval=self._recipe.eval,
            classes=classes,
            heads=heads,
            fusion="class" if len(heads) == 1 else "softmax-sum",
            sha256=weights_sha256(state),
            accuracy=accuracy,
            recipe=resolved(self._recipe),
        )


def lock_run(folder: Path, name: str = LOCK_NAME) -> FileLock | None:
    """Lock a run's folder against other jobs. Returns None, and logs it, if the file system has no locks.

    Waits LOCK_WAIT_SECONDS for another job to exit. Raises RunLockedError if it does not.
    """
    deadline, is_waiting = time.monotonic() + LOCK_WAIT_SECONDS, False
    while True:
        try:
            return FileLock(folder / name)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise RunLockedError(
                    f"run '{folder}' is being trained by another process; stop it, or choose another --out"
                ) from None
            if not is_waiting:
                log_line(f"run '{folder}' is being trained by another process; waiting {LOCK_WAIT_SECONDS:.0f} s")
            is_waiting = True
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            log_line(
                f"run '{folder}' cannot be locked on this file system; make sure that no other process trains it"
            )
            return None
        time.sleep(0.1)


def best_step(lines: list[Plain]) -> int | None:
    """The first step with the best accuracy (joint, or class for one head), or None before any evaluation."""
    measured = [line for line in lines if line["accuracy"]]
    if not measured:
        return None
    best = max(measured, key=lambda line: line["accuracy"].get("joint", line["accuracy"]["class"]))
    return int(best["step"])


def require_run_folder(folder: Path) -> None:
    """Raise RunError if a folder has files of another command, or files that a run would replace.

    Other files, such as logs, are allowed.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"'{folder}' is a file; choose another --out")
    for name, content in OTHER_CONTENT.items():
        if (folder / name).exists():
            raise RunError(f"'{folder}' is {content} (it has {name}); choose another --out")
    if not (folder / RECIPE_NAME).exists():
        for name in (JOURNAL_NAME, "tensorboard", "wandb"):
            if (folder / name).exists():
                raise RunError(f"'{folder}' has {name} but no {RECIPE_NAME}; choose another --out")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"'{path}' is not valid JSON ({error}); choose another --out") from None


def experiment(recipe: TrainRecipe) -> dict[str, Any]:
    """The resolved recipe without [machine], which may change when a run is resumed."""
    return {name: table for name, table in resolved(recipe).items() if name != "machine"}


def format_accuracy(accuracy: dict[str, float]) -> str:
    """Top-1 by head, as text."""
    return "  ".join(f"{name} {value:.2f} %" for name, value in accuracy.items())
