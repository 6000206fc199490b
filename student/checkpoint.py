"""Where a run can be continued: everything that changes while it trains, in one file that is whole or absent."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import xxhash

from teacher_cache.disk import whole_file
from teacher_cache.errors import RunError

CHECKPOINT_FORMAT = 1
CHECKPOINT_NAME = "checkpoint.pt"
SEAL_BYTES = 16
"""The file ends with its own xxh3, as torch would load weights with a flipped bit without a word."""

State = dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """The state after `epoch` whole epochs. recipe: the digest of the recipe it belongs to."""

    recipe: str
    epoch: int
    network: State
    optimizer: State
    journal: list[State]


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Replace the run's checkpoint in one step."""
    fields = {name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__}
    with whole_file(run / CHECKPOINT_NAME) as temporary:
        torch.save({"format": CHECKPOINT_FORMAT, **fields}, temporary)
        seal = xxhash.xxh3_128_digest(temporary.read_bytes())
        with temporary.open("ab") as file:
            file.write(seal)


def load_checkpoint(run: Path, recipe: str) -> Checkpoint | None:
    """The run's checkpoint, or None before the first; raises RunError for a damaged one or another recipe's."""
    path = run / CHECKPOINT_NAME
    if not path.exists():
        return None
    try:
        fields = torch.load(BytesIO(_unseal(path)), map_location="cpu", weights_only=True)
        found = fields.pop("format")
        checkpoint = Checkpoint(**fields)
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise RunError(f"checkpoint '{path}' cannot be read ({reason}); remove it to begin the run anew") from None
    if found != CHECKPOINT_FORMAT:
        raise RunError(f"checkpoint '{path}' has format {found}, this version reads {CHECKPOINT_FORMAT}")
    if checkpoint.recipe != recipe:
        raise RunError(f"checkpoint '{path}' belongs to another recipe; choose another --out")
    return checkpoint


def _unseal(path: Path) -> bytes:
    """The bytes that were saved; raises ValueError where they have changed since."""
    whole = path.read_bytes()
    saved, seal = whole[:-SEAL_BYTES], whole[-SEAL_BYTES:]
    if xxhash.xxh3_128_digest(saved) != seal:
        raise ValueError("its checksum does not fit its bytes")
    return saved
