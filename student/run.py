"""A run's folder: whose it is, where it stopped, and the finished network in it."""

import json
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from student.checkpoint import CHECKPOINT_NAME, Checkpoint, load_checkpoint, save_checkpoint
from student.inputs import Inputs
from student.recipe import TrainRecipe
from teacher_cache.disk import write_durably
from teacher_cache.errors import RunError
from teacher_cache.journal import Journal, say
from teacher_cache.network import CARD_FORMAT, Card, save_network, weights_sha256
from teacher_cache.recipe import differences, digest_of, resolved
from teacher_cache.teacher import FINAL


class Run:
    """The folder of one recipe's run: recipe.json, journal.jsonl, checkpoint.pt, and at the end final/."""

    def __init__(self, folder: Path, recipe: TrainRecipe, inputs: Inputs) -> None:
        """Make the folder, or see that it is this recipe's on these inputs; raises RunError with what differs.

        A folder in which no epoch was finished may change its recipe.
        """
        self.folder, self._recipe = folder, recipe
        self._mine = experiment(recipe) | {"inputs": inputs.identity()}
        self.journal = Journal(folder / "journal.jsonl")
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f".{CHECKPOINT_NAME}.*.tmp"):  # by a process that was killed while it saved
            left.unlink()
        path = folder / "recipe.json"
        begun = (folder / CHECKPOINT_NAME).exists()
        if begun and not path.exists():
            raise RunError(f"'{folder}' holds a checkpoint but no recipe.json; choose another --out")
        if not begun and (folder / FINAL).exists():
            raise RunError(f"run '{folder}' is finished, but its checkpoint is gone; choose another --out")
        if not begun:
            write_durably(path, (json.dumps(self._mine, indent=1) + "\n").encode())
        elif apart := differences(_read(path), self._mine):
            told = "; ".join(f"{name} is {there!r} there and {here!r} here" for name, there, here in apart)
            raise RunError(f"run '{folder}' is of another recipe: {told}; choose another --out")

    def resume(self, network: nn.Module, optimizer: Optimizer) -> int:
        """Load the checkpoint, if there is one; returns the number of epochs that are done."""
        checkpoint = load_checkpoint(self.folder, digest_of(self._mine))
        if checkpoint is None:
            self.journal.keep([])
            return 0
        network.load_state_dict(checkpoint.network)
        optimizer.load_state_dict(checkpoint.optimizer)
        self.journal.keep(checkpoint.journal)
        say(f"run '{self.folder}' goes on after epoch {checkpoint.epoch}")
        return checkpoint.epoch

    def save(self, epoch: int, network: nn.Module, optimizer: Optimizer) -> None:
        """Replace the checkpoint by the state after `epoch` epochs."""
        of_recipe = digest_of(self._mine)
        lines = self.journal.read()
        save_checkpoint(
            self.folder, Checkpoint(of_recipe, epoch, network.state_dict(), optimizer.state_dict(), lines)
        )

    def finish(self, network: nn.Module, classes: tuple[str, ...], heads: tuple[str, ...]) -> dict[str, float]:
        """Leave the finished network in the folder, which is what makes a run finished; returns its accuracy."""
        accuracy: dict[str, float] = self.journal.read()[-1]["accuracy"]
        if not (self.folder / FINAL).exists():
            card = Card(
                format=CARD_FORMAT,
                network=self._recipe.model,
                eval=self._recipe.eval,
                classes=classes,
                heads=heads,
                fusion="class" if len(heads) == 1 else "softmax-sum",
                sha256=weights_sha256(network.state_dict()),
                accuracy=accuracy,
                recipe=resolved(self._recipe),
            )
            save_network(self.folder / FINAL, card, network.state_dict())
        say(f"run '{self.folder}' is finished: {describe(accuracy)}")
        return accuracy


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise RunError(f"'{path}' cannot be read ({error}); choose another --out") from None


def experiment(recipe: TrainRecipe) -> dict[str, Any]:
    """The resolved recipe without [machine], which may change between two halves of a run."""
    return {name: table for name, table in resolved(recipe).items() if name != "machine"}


def describe(accuracy: dict[str, float]) -> str:
    """Top-1 by head, for a person."""
    return "  ".join(f"{name} {value:.2f} %" for name, value in accuracy.items())
