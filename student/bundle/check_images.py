"""check.safetensors: a few images with torch's logits, to check other runtimes.

    pixels          (N, S, S, 3) uint8    prepared: decoded, resized, cropped; not normalized
    class_logits    (N, C) float32        from torch in float32 on a CPU, one thread, each image alone
    distill_logits  (N, C) float32        a copy of class_logits if the network has one head

Its metadata (strings): format, keys (a JSON list), sha256 (of the weights) and torch (its version).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from student.bundle.bundle import Bundle, one_thread
from student.model.student import Heads
from teacher_cache.data.index import ShardIndex
from teacher_cache.data.shards import spread
from teacher_cache.errors import RunError

CHECK_NAME = "check.safetensors"
CHECK_FORMAT = "1"
IMAGE_COUNT = 8


@dataclass(frozen=True)
class CheckImages:
    """pixels: (N, S, S, 3) uint8. heads: two (N, C) float32 logits."""

    keys: list[str]
    pixels: Tensor
    heads: Heads


def make_check(bundle: Bundle, index: ShardIndex) -> CheckImages:
    """Images spread evenly over the shards, and the bundle's logits of each."""
    records = spread(index, IMAGE_COUNT)
    pixels = bundle.prepare_all([record.image for record in records])
    with one_thread():
        single = [bundle.heads(image[None]) for image in pixels]
    heads = Heads(*(torch.cat(logits) for logits in zip(*single, strict=True)))
    return CheckImages([record.key for record in records], pixels, heads)


def save_check(folder: Path, check: CheckImages, sha256: str) -> None:
    """Write the file into a bundle's folder. sha256: of the weights that computed the logits."""
    tensors = {"pixels": check.pixels, **check.heads._asdict()}
    metadata = {
        "format": CHECK_FORMAT,
        "keys": json.dumps(check.keys),
        "sha256": sha256,
        "torch": torch.__version__,
    }
    data = save({name: tensor.clone() for name, tensor in tensors.items()}, metadata)
    (folder / CHECK_NAME).write_bytes(data)


def load_check(folder: Path) -> CheckImages:
    """Read a bundle's file. Raises RunError if it is missing, damaged or of another format."""
    path = folder / CHECK_NAME
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(path)
        if metadata.get("format") != CHECK_FORMAT:
            found = metadata.get("format")
            raise RunError(f"'{path}' has format {found}, this version reads {CHECK_FORMAT}; export the run again")
        heads = Heads(tensors["class_logits"], tensors["distill_logits"])
        return CheckImages(json.loads(metadata["keys"]), tensors["pixels"], heads)
    except FileNotFoundError:
        raise RunError(f"'{path}' does not exist; export the run again") from None
    except (OSError, RuntimeError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise RunError(f"'{path}' is damaged: {error}; export the run again") from None
