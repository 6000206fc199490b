"""Where a run can be continued: everything that changes while it trains, in files that are whole or absent."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import xxhash

from teacher_cache.console import log_line
from teacher_cache.errors import RunError
from teacher_cache.storage.atomic import atomic_file

CHECKPOINT_FORMAT = 2
CHECKPOINTS = "checkpoints"
"""The folder, inside a run, of its checkpoints."""
CHECKSUM_BYTES = 16
"""A file ends with its own xxh3, as torch would load weights with a flipped bit without a word."""

State = dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` steps. recipe: the digest of the recipe it belongs to.

    learner: weights, their average, optimizer. epoch: what the one that has begun gave so far; {}
    once it is evaluated. journal: its lines so far.
    """

    recipe: str
    step: int
    learner: State
    epoch: State
    journal: list[State]


def checkpoint_path(run: Path, step: int) -> Path:
    return run / CHECKPOINTS / f"step-{step:09}.pt"


def checkpoint_steps(run: Path) -> list[int]:
    """The steps after which there are checkpoints, the last one last."""
    return sorted(int(path.stem.removeprefix("step-")) for path in (run / CHECKPOINTS).glob("step-*.pt"))


def save_checkpoint(run: Path, checkpoint: Checkpoint, keep: int, best: int | None = None) -> None:
    """Add a checkpoint, then remove all but the last `keep` and the one after `best` steps."""
    fields = {name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__}
    path = checkpoint_path(run, checkpoint.step)
    path.parent.mkdir(exist_ok=True)
    with atomic_file(path) as temporary:
        torch.save({"format": CHECKPOINT_FORMAT, **fields}, temporary)
        checksum = xxhash.xxh3_128_digest(temporary.read_bytes())
        with temporary.open("ab") as file:
            file.write(checksum)
    for step in checkpoint_steps(run)[:-keep]:
        if step != best:
            checkpoint_path(run, step).unlink()


def load_checkpoint(run: Path, recipe: str, skip_damaged: bool = False) -> Checkpoint | None:
    """The run's last checkpoint, or None before the first.

    Raises RunError for a damaged one and for another recipe's. skip_damaged: set damaged ones aside, and take the
    last that is whole.
    """
    while steps := checkpoint_steps(run):
        path = checkpoint_path(run, steps[-1])
        try:
            return _load(path, recipe)
        except _DamagedError as error:
            if not skip_damaged:
                advice = "remove it to begin the run anew"
                if len(steps) > 1:
                    advice = f"--skip-damaged goes on from the one before it, after step {steps[-2]:,}"
                raise RunError(f"checkpoint '{path}' cannot be read ({error}); {advice}") from None
            renamed = path.rename(path.with_suffix(".damaged"))
            log_line(f"checkpoint '{path}' cannot be read ({error}); it lies aside as '{renamed.name}'")
    return None


class _DamagedError(Exception):
    """Bytes that are no checkpoint."""


def _load(path: Path, recipe: str) -> Checkpoint:
    try:
        fields = torch.load(BytesIO(_verified(path)), map_location="cpu", weights_only=True)
        found_format = fields.pop("format")
        if found_format != CHECKPOINT_FORMAT:
            told = f"checkpoint '{path}' has format {found_format}, this version reads {CHECKPOINT_FORMAT}"
            raise RunError(f"{told}; choose another --out")
        checkpoint = Checkpoint(**fields)
    except (OSError, RuntimeError, AttributeError, LookupError, TypeError, ValueError, UnpicklingError) as error:
        raise _DamagedError(str(error).partition("\n")[0]) from None
    if checkpoint.recipe != recipe:
        raise RunError(f"checkpoint '{path}' belongs to another recipe; choose another --out")
    return checkpoint


def _verified(path: Path) -> bytes:
    """The bytes that were saved; raises ValueError where they have changed since."""
    data = path.read_bytes()
    saved, seal = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if xxhash.xxh3_128_digest(saved) != seal:
        raise ValueError("its checksum does not fit its bytes")
    return saved
