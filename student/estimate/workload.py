"""The work of a cache recipe, counted before it runs: images, views, units, objects."""

from dataclasses import dataclass

import numpy as np

from teacher_cache.cache.encoding import Encoding
from teacher_cache.recipe import CacheRecipe

ROOT_OBJECTS = 2
"""The zarr.json files of the group and of the markers' folder; each array has another one."""


@dataclass(frozen=True)
class Workload:
    """Size of a labeling job. rows: number of images of each shard."""

    rows: tuple[int, ...]
    classes: int
    seeds: int
    seeds_per_unit: int

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
        """Number of objects of a complete cache, with commit markers and zarr.json files."""
        columns = len(encoding.columns(1))
        return self.units * (columns + 1) + columns + ROOT_OBJECTS

    def largest_share(self, workers: int) -> int:
        """Views of the busiest worker if the units are distributed as with --rank and --world."""
        seeds = np.full(self._blocks, self.seeds_per_unit)
        seeds[-1] = self.seeds - self.seeds_per_unit * (self._blocks - 1)
        views = np.outer(seeds, self.rows).ravel()
        padded = np.zeros(-(-len(views) // workers) * workers, dtype=np.int64)
        padded[: len(views)] = views
        return int(padded.reshape(-1, workers).sum(axis=0).max())


def workload_of(recipe: CacheRecipe, rows: tuple[int, ...], classes: int) -> Workload:
    """The work of a recipe on shards with the given numbers of images."""
    return Workload(rows, classes, recipe.cache.seeds, recipe.cache.seeds_per_unit)


def possible_encodings(recipe: CacheRecipe, classes: int) -> dict[str, Encoding]:
    """Every encoding that the recipe could use, by its name in figures files."""
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
