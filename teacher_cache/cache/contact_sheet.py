"""`limbeck cache show`: a picture of what the teacher saw of some images, and of what it said."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from teacher_cache.cache.target_cache import TargetCache, Targets
from teacher_cache.cache.verify import open_shards
from teacher_cache.console import count_of, log_line
from teacher_cache.data.shards import read_shard
from teacher_cache.data.view_reader import ShardViews, ViewReader
from teacher_cache.errors import RecipeError
from teacher_cache.storage.atomic import atomic_file
from teacher_cache.views.decode import decode

TOP = 3
INCHES = 2.2
DPI = 100


def draw_sheet(where: str, seed: int, shard: int, rows: int, out: Path, shards: str | None) -> None:
    """Write a PNG with one line an image. Raises RecipeError for a seed or shard that the cache does not have."""
    cache = TargetCache.open(where)
    for name, value, count in (("seed", seed, cache.manifest.seeds), ("shard", shard, len(cache.rows))):
        if value >= count:
            raise RecipeError(
                f"--{name} {value}: cache '{where}' has {name}s 0 to {count - 1}; choose one of them"
            )
    index = open_shards(cache, shards)
    targets, records = cache.read(seed, shard), read_shard(index, shard)
    chosen = list(range(min(rows, len(records))))
    examples = ViewReader(index, cache.manifest.policy).read(shard, chosen, [seed])[0]
    mixed = examples.batch.mixed(torch.device("cpu")).permute(0, 2, 3, 1).round().byte().numpy()
    figure = Figure(figsize=(4.4 * INCHES, len(chosen) * INCHES), dpi=DPI, layout="constrained")
    axes: Any = figure.subplots(len(chosen), 4, squeeze=False, width_ratios=(1, 1, 1, 1.4))
    for row, (image, view, both, words) in zip(chosen, axes, strict=True):
        for axis, pixels in (
            (image, decode(records[row].image)),
            (view, examples.batch.pixels[row].numpy()),
            (both, mixed[row]),
        ):
            axis.imshow(pixels)
            axis.set_axis_off()
        words.set_axis_off()
        words.text(
            0, 0.5, _words(cache, targets, examples, index.classes, row), va="center", fontsize=9, wrap=True
        )
    for axis, title in zip(axes[0], ("image", "view", "mixed view", f"seed {seed}, shard {shard}"), strict=True):
        axis.set_title(title, fontsize=10, loc="left" if axis is axes[0][-1] else "center")
    with atomic_file(out) as temporary:
        figure.savefig(temporary, format="png")
    log_line(f"{count_of(len(chosen), 'image')} of shard {shard} under seed {seed}: {out}")


def _words(cache: TargetCache, targets: Targets, examples: ShardViews, classes: tuple[str, ...], row: int) -> str:
    label, other = classes[int(examples.batch.label[row])], classes[int(examples.batch.partner_label[row])]
    share = float(examples.batch.lam[row])
    truth = label if share == 1 or label == other else f"{share:.0%} {label}, {1 - share:.0%} {other}"
    if len(targets.mismatches(np.array([row]), examples.digest[row : row + 1])):
        truth += "\n(not the view the teacher judged)"
    return f"{examples.keys[row]}\nlabel: {truth}\nteacher:\n" + "\n".join(_said(cache, targets, classes, row))


def _said(cache: TargetCache, targets: Targets, classes: tuple[str, ...], row: int) -> list[str]:
    if cache.encoding.kind == "hard":
        return [f"  {classes[int(targets.hard[row])]} (hard labels only)"]
    kept = cache.encoding.rows(targets.columns, np.array([row]))
    likely: NDArray[np.float32] = cache.encoding.expand(kept, 1.0)[0]
    count = min(TOP, cache.encoding.k) if cache.encoding.kind == "topk" else TOP
    return [f"  {likely[place]:.1%} {classes[place]}" for place in np.argsort(-likely, kind="stable")[:count]]
