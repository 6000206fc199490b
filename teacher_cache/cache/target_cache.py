"""The teacher cache: Zarr arrays of targets by seed, shard and row, and a commit marker for each unit."""

import json
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from teacher_cache.cache.encoding import Array
from teacher_cache.cache.layout import MARKERS, ROOT, Layout, Unit, stored_manifest
from teacher_cache.cache.manifest import Manifest, read_manifest
from teacher_cache.cache.zarr_codec import pack, unpack
from teacher_cache.config import Plain
from teacher_cache.errors import CacheError
from teacher_cache.rng import generator
from teacher_cache.storage.store import Store, open_store

SAMPLE_UNITS = 1000
"""Units whose markers are read to estimate the size of a cache."""
MARKER_READERS = 16
"""Threads that read markers."""
WRITE_ATTEMPTS = 3
"""Attempts to write a unit that another job writes at the same time."""


@dataclass(frozen=True)
class Targets:
    """The targets of one shard under one seed: the columns of Encoding for its R rows."""

    columns: dict[str, Array]

    @property
    def hard(self) -> Array:
        """(R,) unsigned classes."""
        return self.columns["hard"]

    @property
    def digest(self) -> Array:
        """(R,) unsigned low bits of each view's hash."""
        return self.columns["digest"]

    def mismatches(self, rows: NDArray[np.int64], digest: NDArray[np.uint64]) -> NDArray[np.intp]:
        """Indices of the views, given by rows (N,) and digests (N,), that the teacher did not label."""
        return np.flatnonzero(digest.astype(self.digest.dtype) != self.digest[rows])


class TargetCache:
    """One cache in a store; use `create` or `open`. Written by unit, read by (seed, shard)."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.store, self.manifest, self.where = store, manifest, store.where
        self.encoding, self.rows, self.layout = manifest.codec, manifest.rows, Layout(manifest)

    @classmethod
    def create(cls, where: str | Path, manifest: Manifest) -> "TargetCache":
        """Create an empty cache, or open the existing one, which may have another manifest.

        The root zarr.json is created first, by exactly one process; all other metadata follows from it.
        """
        store = open_store(where)
        if store.is_empty():
            store.create(ROOT, Layout(manifest).metadata()[ROOT])
        while True:
            cache = cls.open(where)
            for name, data in cache.layout.metadata().items():
                if name != ROOT and not _holds_json(store, name, data):
                    store.put(name, data)
            if cls.open(where).manifest.seeds == cache.manifest.seeds:  # otherwise it was extended meanwhile
                return cache

    @classmethod
    def open(cls, where: str | Path) -> "TargetCache":
        """Open a cache; raises CacheError if it does not exist or has another format."""
        store = open_store(where)
        try:
            plain = dict(stored_manifest(store.get(ROOT)))
        except (FileNotFoundError, NotADirectoryError):
            if store.is_empty():
                message = f"no teacher cache at '{where}'; create one with: limbeck cache build RECIPE"
                raise CacheError(message) from None
            raise CacheError(f"'{where}' exists and is not a teacher cache; give another path") from None
        except (KeyError, TypeError, ValueError) as error:
            raise CacheError(
                f"'{where}' has a {ROOT} without a manifest ({error!r}); restore it or build a new cache"
            ) from None
        return cls(store, read_manifest(plain, str(where)))

    def extend(self, seeds: int, recipe: Plain) -> "TargetCache":
        """Extend the cache to more seeds; returns it unchanged if another job has extended it meanwhile.

        A last block of seeds that was short becomes longer; its units are then missing.
        """
        latest = TargetCache.open(self.where)
        if latest.manifest.seeds >= seeds:
            return latest
        layout = Layout(replace(self.manifest, seeds=seeds, recipe=recipe))
        for name, data in reversed(layout.metadata().items()):  # root last: arrays may exceed its seeds
            self.store.put(name, data)
        for unit in self.layout.units():
            if layout.seeds(unit) != self.layout.seeds(unit):
                self.drop(unit)  # readers of the new layout use the new marker
        return TargetCache(self.store, layout.manifest)

    def present(self) -> set[Unit]:
        """The units with a commit marker; lists the store on each call."""
        names = self.store.names(MARKERS)
        return {unit for unit in self.layout.units() if self.layout.marker_name(unit) in names}

    def missing(self) -> list[Unit]:
        """The units without a commit marker, in order; lists the store on each call."""
        return self.layout.units_without_marker(self.store.names(MARKERS))

    def has(self, unit: Unit) -> bool:
        """Whether a unit has its commit marker."""
        try:
            self.store.get(self.layout.marker_key(unit))
        except FileNotFoundError:
            return False
        return True

    def write(self, unit: Unit, columns: Mapping[str, Array]) -> None:
        """Write all objects of a unit durably, then its marker. A unit with a marker is not changed.

        columns: name -> (seeds of the unit, *sizes of the column), with the shard's row count as size of "row".
        Raises CacheError if other jobs repeatedly overwrite the unit, or the cache was extended meanwhile.
        """
        if self.has(unit):
            return
        objects = {self.layout.object_key(name, unit): self._pack_object(name, columns[name]) for name in columns}
        marker = {
            "rows": self.rows[unit.shard],
            "objects": {key: _fingerprint(data) for key, data in objects.items()},
        }
        for _ in range(WRITE_ATTEMPTS):
            for key, data in objects.items():
                self.store.put(key, data)
            self._refuse_if_extended(unit)
            if self.store.create(self.layout.marker_key(unit), (json.dumps(marker) + "\n").encode()):
                return
            if not self.damage(unit):
                return  # another job wrote the same unit and its objects are the last
            self.drop(unit)  # the marker is the other job's, but the objects are ours
        raise CacheError(f"cache '{self.where}', unit {unit}: other jobs are writing it; rerun later")

    def _refuse_if_extended(self, unit: Unit) -> None:
        """Raise CacheError if the cache was extended and this unit now has more seeds but the same object keys."""
        if len(self.layout.seeds(unit)) == self.manifest.seeds_per_unit:
            return  # a full block cannot get more seeds
        latest = TargetCache.open(self.where)
        if latest.layout.marker_key(unit) != self.layout.marker_key(unit):
            if latest.has(unit) and latest.damage(unit):
                latest.drop(unit)  # its objects are ours
            raise CacheError(f"cache '{self.where}' was extended while this job ran; rerun the job")

    def drop(self, unit: Unit) -> None:
        """Remove a unit's marker, which makes it missing."""
        self.store.remove(self.layout.marker_key(unit))

    def damaged_metadata(self) -> list[str]:
        """One line for each zarr.json that is missing or does not match the manifest; zarr needs them."""
        expected = self.layout.metadata().items()
        return [
            f"'{name}': missing or different from the manifest"
            for name, data in expected
            if not _holds_json(self.store, name, data)
        ]

    def sweep(self) -> None:
        """Remove temporary files of killed writers."""
        for folder in ("", MARKERS, *self.layout.columns):
            self.store.sweep(folder)

    def damage(self, unit: Unit) -> list[str]:
        """One line for each damaged or missing object of a committed unit."""
        try:
            marker = self._marker(unit)
        except FileNotFoundError:
            return [f"'{self.layout.marker_key(unit)}': missing"]
        except ValueError as error:
            return [str(error)]
        problems = []
        for name in self.layout.columns:
            key = self.layout.object_key(name, unit)
            try:
                self._object(key, marker)
            except (FileNotFoundError, ValueError) as error:
                problems.append(f"'{key}': {'missing' if isinstance(error, FileNotFoundError) else error}")
        return problems

    def read(self, seed: int, shard: int) -> Targets:
        """All targets of a shard under a seed; raises CacheError if they are missing or damaged."""
        for name, number, count in (("seed", seed, self.manifest.seeds), ("shard", shard, len(self.rows))):
            if not 0 <= number < count:
                raise CacheError(f"cache '{self.where}' has no {name} {number}; choose one from 0 to {count - 1}")
        unit = Unit(seed // self.manifest.seeds_per_unit, shard)
        where = f"cache '{self.where}', seed {seed}, shard {shard}"
        try:
            marker = self._marker(unit)
            columns = {name: self._read(name, unit, seed, marker) for name in self.layout.columns}
        except FileNotFoundError:
            if self.has(unit):
                raise CacheError(f"{where} is damaged: an object is missing; {_REPAIR}") from None
            raise CacheError(
                f"{where} has no targets yet; complete the cache with: limbeck cache build RECIPE"
            ) from None
        except ValueError as error:
            raise CacheError(f"{where} is damaged ({error}); {_REPAIR}") from None
        targets = Targets(columns)
        if (targets.hard == self.layout.columns["hard"].fill).any():
            raise CacheError(f"{where} has a marker, but rows are absent; {_REPAIR}")
        return targets

    def bytes_by_column(self) -> dict[str, int]:
        """Bytes of each array's objects, including objects of units without a marker."""
        return {
            name: sum(size for key, size in self.store.sizes(name).items() if key != ROOT)
            for name in self.layout.columns
        }

    def estimated_bytes(self, missing: Collection[Unit], sample: int = SAMPLE_UNITS) -> dict[str, int]:
        """Bytes of each array's committed objects, estimated from the markers of a random sample of units.

        Exact if the cache has at most `sample` units. Faster than bytes_by_column, which lists every object: for a
        large cache a second instead of a minute.
        """
        missing_set, count = set(missing), self.layout.unit_count
        numbers = range(count) if count <= sample else generator("sizes").integers(count, size=sample).tolist()
        chosen = [unit for number in numbers if (unit := self.layout.unit_at(number)) not in missing_set]
        scale = (count - len(missing_set)) / max(len(chosen), 1)
        with ThreadPoolExecutor(MARKER_READERS) as threads:
            sizes = list(threads.map(self._sizes, chosen))
        return {name: round(scale * sum(size[name] for size in sizes)) for name in self.layout.columns}

    def _sizes(self, unit: Unit) -> dict[str, int]:
        try:
            objects = self._marker(unit)["objects"]
            sizes = {key.partition("/")[0]: entry["bytes"] for key, entry in objects.items()}
            return {name: sizes[name] for name in self.layout.columns}
        except (FileNotFoundError, KeyError, ValueError):
            raise CacheError(f"cache '{self.where}': the marker of {unit} is invalid; {_REPAIR}") from None

    def _read(self, name: str, unit: Unit, seed: int, marker: Plain) -> Array:
        key, column = self.layout.object_key(name, unit), self.layout.columns[name]
        slots = self.manifest.seeds_per_unit
        try:
            chunk = unpack(self._object(key, marker), seed % slots, slots, column.sizes, column.dtype)
        except ValueError as error:
            raise ValueError(f"'{key}': {error}") from None
        rows: Array = chunk[column.index_of(slice(self.rows[unit.shard]))]
        return rows

    def _object(self, key: str, marker: Plain) -> bytes:
        """An object's bytes; raises ValueError if their hash differs from the one in the marker."""
        data = self.store.get(key)
        if _fingerprint(data) != marker["objects"].get(key):
            raise ValueError("hash differs from its marker")
        return data

    def _marker(self, unit: Unit) -> Plain:
        """Read and check a unit's marker; raises FileNotFoundError, or ValueError if it is invalid."""
        try:
            marker: Any = json.loads(self.store.get(self.layout.marker_key(unit)))
            if marker["rows"] != self.rows[unit.shard] or not isinstance(marker["objects"], dict):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"'{self.layout.marker_key(unit)}': invalid marker") from None
        return dict(marker)

    def _pack_object(self, name: str, values: Array) -> bytes:
        """One object from the values of a column, padded to the largest shard."""
        column = self.layout.columns[name]
        chunks = np.full((len(values), *column.sizes), column.fill, dtype=column.dtype)
        chunks[column.index_of(slice(values.shape[1 + column.dims.index("row")]))] = values
        return pack(list(chunks), self.manifest.seeds_per_unit)


_REPAIR = "list all damage with: limbeck cache verify; repair it with: limbeck cache build RECIPE"


def _fingerprint(data: bytes) -> Plain:
    return {"bytes": len(data), "xxh3": xxhash.xxh3_128_hexdigest(data)}


def _holds_json(store: Store, name: str, data: bytes) -> bool:
    """Whether a stored JSON object equals `data` in all its fields; an older zarr may have written fewer."""
    try:
        found, expected = json.loads(store.get(name)), json.loads(data)
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(found, dict) and bool(found) and all(expected.get(key) == found[key] for key in found)
