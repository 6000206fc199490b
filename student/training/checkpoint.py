"""Checkpoints: everything that changes during training, in files that are written atomically."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch
import xxhash

from teacher_cache.config import Plain
from teacher_cache.console import log_line
from teacher_cache.errors import RunError
from teacher_cache.storage.atomic import atomic_file

CHECKPOINT_FORMAT = 2
CHECKPOINTS = "checkpoints"
"""The folder of the checkpoints inside a run."""
CHECKSUM_BYTES = 16
"""A file ends with the xxh3 of its other bytes, as torch.load does not notice a flipped bit in a weight."""


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` steps.

    recipe: digest of the run's recipe. learner: weights, their moving average, optimizer. epoch: sums of the
    current epoch, {} after its evaluation. journal: its lines so far.
    """

    recipe: str
    step: int
    learner: Plain
    epoch: Plain
    journal: list[Plain]


def checkpoint_path(run: Path, step: int) -> Path:
    return run / CHECKPOINTS / f"step-{step:09}.pt"


def checkpoint_steps(run: Path) -> list[int]:
    """The steps of the run's checkpoints, in ascending order."""
    return sorted(int(path.stem.removeprefix("step-")) for path in (run / CHECKPOINTS).glob("step-*.pt"))


def save_checkpoint(run: Path, checkpoint: Checkpoint, keep: int, best: int | None = None) -> None:
    """Write a checkpoint, then remove all but the last `keep` and the one of step `best`."""
    fields = {name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__}
    path = checkpoint_path(run, checkpoint.step)
    path.parent.mkdir(exist_ok=True)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        file.write(_save({"format": CHECKPOINT_FORMAT, **fields}, file))
    prune_checkpoints(run, keep, best)


def prune_checkpoints(run: Path, keep: int, best: int | None = None) -> None:
    """Remove all checkpoints but the last `keep` and the one of step `best`."""
    for step in checkpoint_steps(run)[:-keep]:
        if step != best:
            checkpoint_path(run, step).unlink()


def _save(fields: Plain, file: IO[bytes]) -> bytes:
    """Write fields with torch.save, and return the checksum. Raises OSError, e.g. if the disk is full."""
    hashing: Any = _HashingFile(file)  # torch.save needs write and flush only
    try:
        torch.save(fields, hashing)
    except RuntimeError:  # torch's writer hides the error of its file
        if hashing.error:
            raise hashing.error from None
        raise
    return bytes(hashing.digest())


class _HashingFile:
    """Hashes what is written from start to end, so that no second reading is needed, and keeps the first error."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash = file, xxhash.xxh3_128()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> bytes:
        return self._hash.digest()


def load_checkpoint(run: Path, recipe: str, skip_damaged: bool = False) -> Checkpoint | None:
    """The run's last checkpoint, or None before the first. recipe: the digest it must have.

    skip_damaged: rename damaged checkpoints and load the last undamaged one. Raises RunError if the checkpoint
    belongs to another recipe or format, or is damaged.
    """
    while steps := checkpoint_steps(run):
        path = checkpoint_path(run, steps[-1])
        try:
            return _load(path, recipe)
        except _DamagedError as error:
            if not skip_damaged:
                advice = "remove it to restart the run"
                if len(steps) > 1:
                    advice = f"continue from the one of step {steps[-2]:,} with --skip-damaged"
                raise RunError(f"checkpoint '{path}' is damaged ({error}); {advice}") from None
            renamed = path.rename(path.with_suffix(".damaged"))
            log_line(f"checkpoint '{path}' is damaged ({error}); renamed it to '{renamed.name}'")
    return None


class _DamagedError(Exception):
    """The file is not a valid checkpoint."""


def _load(path: Path, recipe: str) -> Checkpoint:
    try:
        fields = torch.load(BytesIO(_verified(path)), map_location="cpu", weights_only=True)
        found_format = fields.pop("format")
        if found_format != CHECKPOINT_FORMAT:
            raise RunError(
                f"checkpoint '{path}' has format {found_format}, this version reads {CHECKPOINT_FORMAT}; "
                "choose another --out"
            )
        checkpoint = Checkpoint(**fields)
    except (OSError, RuntimeError, AttributeError, LookupError, TypeError, ValueError, UnpicklingError) as error:
        raise _DamagedError(str(error).partition("\n")[0]) from None
    if checkpoint.recipe != recipe:
        raise RunError(f"checkpoint '{path}' belongs to another recipe; choose another --out")
    return checkpoint


def _verified(path: Path) -> bytes:
    """The bytes before the checksum. Raises ValueError if the checksum is wrong."""
    data = path.read_bytes()
    saved, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if xxhash.xxh3_128_digest(saved) != checksum:
        raise ValueError("wrong checksum")
    return saved
