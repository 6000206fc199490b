"""`limbeck cache show`: draw images, their views, labels and teacher targets as one PNG."""

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
from teacher_cache.figure import render_png
from teacher_cache.storage.atomic import write_atomic
from teacher_cache.storage.output import check_outputs, origin_of
from teacher_cache.storage.store import is_remote
from teacher_cache.views.decode import decode

TOP_CLASSES = 3
CELL_INCHES = 2.2
DPI = 100


def draw_sheet(
    where: str, seed: int, shard: int, rows: int, out: Path, shards: str | None, overwrite: bool = False
) -> None:
    """Write a PNG with one row for each of the first `rows` images of a shard.

    shards: location of the shards; None: the location in the cache's recipe. overwrite: replace `out` even if
    another command or other inputs made it.
    Raises RecipeError for a seed or shard outside the cache or if `out` cannot be written, CacheError if targets
    are missing or shards differ.
    """
    cache = TargetCache.open(where)
    for name, value, count in (("seed", seed, cache.manifest.seeds), ("shard", shard, len(cache.rows))):
        if value >= count:
            raise RecipeError(
                f"--{name} {value}: cache '{where}' has {name}s 0 to {count - 1}; choose one of these"
            )
    origin = origin_of("cache show", where if is_remote(where) else Path(where), seed, shard, rows, shards)
    check_outputs({"--out": out}, origin, overwrite)
    index = open_shards(cache, shards)
    targets, records = cache.read(seed, shard), read_shard(index, shard)
    numbers = list(range(min(rows, len(records))))
    views = ViewReader(index, cache.manifest.policy).read(shard, numbers, [seed])[0]
    mixed = views.batch.mixed(torch.device("cpu")).permute(0, 2, 3, 1).round().byte().numpy()
    figure = Figure(figsize=(4.4 * CELL_INCHES, len(numbers) * CELL_INCHES), dpi=DPI, layout="constrained")
    axes: Any = figure.subplots(len(numbers), 4, squeeze=False, width_ratios=(1, 1, 1, 1.4))
    for row, (image, view, mixed_axis, text) in zip(numbers, axes, strict=True):
        for axis, pixels in (
            (image, decode(records[row].image)),
            (view, views.batch.pixels[row].numpy()),
            (mixed_axis, mixed[row]),
        ):
            axis.imshow(pixels)
            axis.set_axis_off()
        text.set_axis_off()
        text.text(0, 0.5, _caption(cache, targets, views, index.classes, row), va="center", fontsize=9, wrap=True)
    for axis, title in zip(axes[0], ("image", "view", "mixed view", f"seed {seed}, shard {shard}"), strict=True):
        axis.set_title(title, fontsize=10, loc="left" if axis is axes[0][-1] else "center")
    write_atomic(out, render_png(figure, origin))
    log_line(f"{count_of(len(numbers), 'image')} of shard {shard} under seed {seed}: {out}")


def _caption(cache: TargetCache, targets: Targets, views: ShardViews, classes: tuple[str, ...], row: int) -> str:
    label, partner = classes[int(views.batch.label[row])], classes[int(views.batch.partner_label[row])]
    lam = float(views.batch.lam[row])
    truth = label if lam == 1 or label == partner else f"{lam:.0%} {label}, {1 - lam:.0%} {partner}"
    if len(targets.mismatches(np.array([row]), views.digest[row : row + 1])):
        truth += "\n(differs from the view the teacher labeled)"
    return f"{views.keys[row]}\nlabel: {truth}\nteacher:\n" + "\n".join(
        _teacher_lines(cache, targets, classes, row)
    )


def _teacher_lines(cache: TargetCache, targets: Targets, classes: tuple[str, ...], row: int) -> list[str]:
    if cache.encoding.kind == "hard":
        return [f"  {classes[int(targets.hard[row])]} (hard labels only)"]
    columns = cache.encoding.select_rows(targets.columns, np.array([row]))
    probabilities: NDArray[np.float32] = cache.encoding.expand(columns, 1.0)[0]
    count = min(TOP_CLASSES, cache.encoding.k) if cache.encoding.kind == "topk" else TOP_CLASSES
    return [
        f"  {probabilities[index]:.1%} {classes[index]}"
        for index in np.argsort(-probabilities, kind="stable")[:count]
    ]
