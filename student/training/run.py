"""A run's folder: whose it is, where it stopped, and the finished network in it."""

import errno
import json
import time
from pathlib import Path
from typing import Any

from student.data.inputs import Inputs
from student.recipe import TrainRecipe, with_init_from
from student.training.checkpoint import CHECKPOINTS, Checkpoint, checkpoint_steps, load_checkpoint, save_checkpoint
from student.training.learner import Learner
from student.training.trackers import RunJournal
from teacher_cache.config import Plain, describe_differences, differences, digest_of, resolved
from teacher_cache.console import log_line
from teacher_cache.distributed.collectives import broadcast
from teacher_cache.distributed.world import World
from teacher_cache.errors import RunError, RunLockedError
from teacher_cache.models.card import CARD_FORMAT, Card
from teacher_cache.models.run_folder import FINAL, FINAL_EMA, RECIPE_NAME
from teacher_cache.models.weights import save_network, weights_sha256
from teacher_cache.storage.atomic import write_json
from teacher_cache.storage.file_lock import FileLock

LOCK_NAME = ".claim"
LOCK_WAIT_SECONDS = 120.0
"""A file server gives a dead machine's locks back after 90 s or so."""
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class Run:
    """The folder of one recipe's run: recipe.json, journal.jsonl, checkpoints/, at the end final/ (final_ema/).

    Of several processes only rank 0 reads and writes it, and of several jobs the one that holds it.
    """

    def __init__(self, folder: Path, recipe: TrainRecipe, inputs: Inputs, world: World = World()) -> None:
        """Make the folder, or see that it is this recipe's on these inputs; raises RunError with what differs.

        A folder in which nothing was saved yet may change its recipe.
        """
        self.folder, self._recipe, self._world = folder, recipe, world
        self._identity = experiment(recipe) | {"inputs": inputs.identity()}
        self._digest = digest_of(self._identity)
        self.journal = RunJournal(folder / "journal.jsonl", recipe.machine.trackers, resolved(recipe))
        self._file_lock: FileLock | None = None
        if world.is_main:
            self._open_folder()

    def _open_folder(self) -> None:
        folder = self.folder
        folder.mkdir(parents=True, exist_ok=True)
        self._file_lock = lock_run(folder)
        for left in (folder / CHECKPOINTS).glob(".*.tmp"):  # by a process that was killed while it saved
            left.unlink()
        path = folder / RECIPE_NAME
        has_checkpoint = bool(checkpoint_steps(folder))
        if has_checkpoint and not path.exists():
            raise RunError(f"'{folder}' holds a checkpoint but no {RECIPE_NAME}; choose another --out")
        if not has_checkpoint and (folder / FINAL).exists():
            raise RunError(f"run '{folder}' is finished, but its checkpoint is gone; choose another --out")
        if not has_checkpoint:
            write_json(path, self._identity)
            return
        stored = _read(path)
        if different := differences(with_init_from(stored), self._identity):
            raise RunError(
                f"run '{folder}' is of another recipe: {describe_differences(different)}; choose another --out"
            )
        self._digest = digest_of(stored)  # the one in the checkpoints, even if keys have been renamed since

    def resume(self, learner: Learner, skip_damaged: bool = False) -> tuple[int, Plain]:
        """Load the last checkpoint, if there is one; returns the steps that are done, and the epoch so far."""
        found = None
        if self._world.is_main:
            found = load_checkpoint(self.folder, self._digest, skip_damaged)
            self.journal.keep(found.journal if found else [])
        checkpoint = broadcast(self._world, found)
        if checkpoint is None:
            return 0, {}
        learner.load(checkpoint.learner)
        log_line(f"run '{self.folder}' goes on after step {checkpoint.step:,}")
        return checkpoint.step, checkpoint.epoch

    def save(self, step: int, learner: Learner, epoch: Plain) -> None:
        """Add a checkpoint after `step` steps; the last few are kept, and the best one.

        Raises FloatingPointError where the weights are not worth keeping, as their loss comes a step too late.
        """
        learner.check(step)
        if self._world.is_main:
            lines = self.journal.read()
            checkpoint = Checkpoint(self._digest, step, learner.state(), epoch, lines)
            save_checkpoint(self.folder, checkpoint, self._recipe.machine.keep, best_step(lines))

    def last_checkpoint(self) -> str:
        """Where the run would go on, in a phrase for a person."""
        steps = checkpoint_steps(self.folder)
        return f"the last good checkpoint is of step {steps[-1]:,}" if steps else "there is no checkpoint yet"

    def finish(self, learner: Learner, classes: tuple[str, ...], heads: tuple[str, ...]) -> dict[str, float]:
        """Leave the finished network in the folder, which is what makes a run finished; returns its accuracy."""
        last_line: dict[str, Any] = broadcast(self._world, self.journal.read()[-1] if self._world.is_main else {})
        learner.check(last_line.get("step", 0))
        accuracy: dict[str, float] = last_line["accuracy"]
        if not self._world.is_main:
            return accuracy

        def save(name: str, state: Plain, accuracy: dict[str, float]) -> None:
            if not (self.folder / name).exists():
                save_network(self.folder / name, self._card(classes, heads, state, accuracy), state)

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
    """Keep other jobs out of a run's folder; None, told of, where the file system has no locks.

    Waits for one that is about to end; raises HeldError where it does not.
    """
    deadline, is_waiting = time.monotonic() + LOCK_WAIT_SECONDS, False
    while True:
        try:
            return FileLock(folder / name)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                told = f"run '{folder}' is being trained by another process; let it end, or choose another --out"
                raise RunLockedError(told) from None
            if not is_waiting:
                log_line(f"another process trains run '{folder}'; waiting {LOCK_WAIT_SECONDS:.0f} s for it to end")
            is_waiting = True
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            log_line(f"run '{folder}' lies where files cannot be locked; see that no other process trains it")
            return None
        time.sleep(0.1)


def best_step(lines: list[Plain]) -> int | None:
    """The step after which the joint classifier (of one head: that) was right most often; the first of equals."""
    measured = [line for line in lines if line["accuracy"]]
    if not measured:
        return None
    best = max(measured, key=lambda line: line["accuracy"].get("joint", line["accuracy"]["class"]))
    return int(best["step"])


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise RunError(f"'{path}' cannot be read ({error}); choose another --out") from None


def experiment(recipe: TrainRecipe) -> dict[str, Any]:
    """The resolved recipe without [machine], which may change between two halves of a run."""
    return {name: table for name, table in resolved(recipe).items() if name != "machine"}


def format_accuracy(accuracy: dict[str, float]) -> str:
    """Top-1 by head, for a person."""
    return "  ".join(f"{name} {value:.2f} %" for name, value in accuracy.items())
