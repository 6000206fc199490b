"""What a cache recipe asks for, counted before anything is done: images, views, units, objects."""

from dataclasses import dataclass

import numpy as np

from teacher_cache.cache.encoding import Encoding
from teacher_cache.recipe import CacheRecipe

ROOT_OBJECTS = 2
"""zarr.json of the group and of the markers' folder; each array has one of its own."""


@dataclass(frozen=True)
class Workload:
    """rows: images of each shard. repeats: views of an image in an epoch that shows 1/repeats of them."""

    rows: tuple[int, ...]
    classes: int
    seeds: int
    seeds_per_unit: int
    repeats: int

    @property
    def images(self) -> int:
        return sum(self.rows)

    @property
    def views(self) -> int:
        return self.images * self.seeds

    @property
    def units(self) -> int:
        return self._blocks * len(self.rows)

    @property
    def _blocks(self) -> int:
        return -(-self.seeds // self.seeds_per_unit)

    def objects(self, encoding: Encoding) -> int:
        """Objects of a complete cache, its markers and zarr's own among them."""
        columns = len(encoding.columns(1))
        return self.units * (columns + 1) + columns + ROOT_OBJECTS

    def largest_share(self, workers: int) -> int:
        """Views of the busiest of some jobs that share out the units as --rank and --world do."""
        seeds = np.full(self._blocks, self.seeds_per_unit)
        seeds[-1] = self.seeds - self.seeds_per_unit * (self._blocks - 1)
        views = np.outer(seeds, self.rows).ravel()
        padded = np.zeros(-(-len(views) // workers) * workers, dtype=np.int64)
        padded[: len(views)] = views
        return int(padded.reshape(-1, workers).sum(axis=0).max())


def workload_of(recipe: CacheRecipe, rows: tuple[int, ...], classes: int) -> Workload:
    """The recipe's work on shards of so many rows."""
    return Workload(rows, classes, recipe.cache.seeds, recipe.cache.seeds_per_unit, recipe.views.aug_repeats)


def possible_encodings(recipe: CacheRecipe, classes: int) -> dict[str, Encoding]:
    """Every encoding that the recipe could have, by the name that figures files give it."""
    spec = recipe.cache
    kinds = [
        ("hard", "float16"),
        *((kind, values) for kind in ("topk", "dense") for values in ("uint8", "float16")),
    ]
    return {
        encoding_name(kind, values): Encoding(
            kind, classes, min(spec.k, classes) if kind == "topk" else 0, values, spec.digest_bits
        )
        for kind, values in kinds
    }


def encoding_name(kind: str, values: str) -> str:
    """hard, topk-uint8, topk-float16, dense-uint8 or dense-float16."""
    return kind if kind == "hard" else f"{kind}-{values}"
