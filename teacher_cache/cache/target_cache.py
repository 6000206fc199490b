"""The teacher cache: Zarr arrays of targets by seed, shard and row, and the markers that make a unit count."""

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
"""Units whose markers tell how large a cache is."""
MARKER_READERS = 16
"""Markers that are read at the same time."""
WRITE_ATTEMPTS = 3
"""Attempts at a unit that another job keeps writing at the same time."""


@dataclass(frozen=True)
class Targets:
    """What the teacher said of one shard under one seed: the columns of Encoding, for its R rows."""

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
        """Which of some views, by their rows (N,) and digests (N,), are not those that the teacher judged."""
        return np.flatnonzero(digest.astype(self.digest.dtype) != self.digest[rows])


class TargetCache:
    """One cache in a store. Made by `create` or `open`; everything else goes through a unit or a (seed, shard)."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.store, self.manifest, self.where = store, manifest, store.where
        self.encoding, self.rows, self.layout = manifest.codec, manifest.rows, Layout(manifest)

    @classmethod
    def create(cls, where: str | Path, manifest: Manifest) -> "TargetCache":
        """Make an empty cache; where one is already, whoever made it, open that one.

        The root comes first, and only one process can be the first to write it; it implies all that follows.
        """
        store = open_store(where)
        if store.is_empty():
            store.create(ROOT, Layout(manifest).metadata()[ROOT])
        while True:
            cache = cls.open(where)
            for name, data in cache.layout.metadata().items():
                if name != ROOT and not _holds_json(store, name, data):
                    store.put(name, data)
            if cls.open(where).manifest.seeds == cache.manifest.seeds:  # else it was extended meanwhile
                return cache

    @classmethod
    def open(cls, where: str | Path) -> "TargetCache":
        """Open a cache; raises CacheError where there is none or it is of another format."""
        store = open_store(where)
        try:
            plain = dict(stored_manifest(store.get(ROOT)))
        except (FileNotFoundError, NotADirectoryError):
            if store.is_empty():
                message = f"no teacher cache at '{where}'; make one with: limbeck cache build RECIPE"
                raise CacheError(message) from None
            raise CacheError(f"'{where}' is there and is no cache; give another path") from None
        except (KeyError, TypeError, ValueError) as error:
            raise CacheError(
                f"'{where}' has a {ROOT} without a manifest ({error!r}); restore it or build a new cache"
            ) from None
        return cls(store, read_manifest(plain, str(where)))

    def extend(self, seeds: int, recipe: Plain) -> "TargetCache":
        """The same cache with room for more seeds, or as it is where it has got them meanwhile.

        Units that grow thereby count as missing.
        """
        latest = TargetCache.open(self.where)
        if latest.manifest.seeds >= seeds:
            return latest
        layout = Layout(replace(self.manifest, seeds=seeds, recipe=recipe))
        for name, data in reversed(layout.metadata().items()):  # the root last: arrays may promise more than it
            self.store.put(name, data)
        for unit in self.layout.units():
            if layout.seeds(unit) != self.layout.seeds(unit):
                self.drop(unit)  # no reader asks for its old marker any more
        return TargetCache(self.store, layout.manifest)

    def present(self) -> set[Unit]:
        """The units with a commit marker, read anew."""
        names = self.store.names(MARKERS)
        return {unit for unit in self.layout.units() if self.layout.marker_name(unit) in names}

    def missing(self) -> list[Unit]:
        return self.layout.units_without_marker(self.store.names(MARKERS))

    def has(self, unit: Unit) -> bool:
        """Whether one unit has its marker."""
        try:
            self.store.get(self.layout.marker_key(unit))
        except FileNotFoundError:
            return False
        return True

    def write(self, unit: Unit, columns: Mapping[str, Array]) -> None:
        """Write a unit wholly and durably, and only then set its marker; one that has a marker is let be.

        columns: for each column (seeds of the unit, rows of the shard, ...) with row in its place.
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
                return  # another job wrote the unit at the same time, and last
            self.drop(unit)  # its marker is there, but the objects are ours
        raise CacheError(f"cache '{self.where}', unit {unit}: other jobs keep writing it; run again")

    def _refuse_if_extended(self, unit: Unit) -> None:
        """Raises CacheError where `extend` has made this unit another one, whose objects have the same names."""
        if len(self.layout.seeds(unit)) == self.manifest.seeds_per_unit:
            return  # it cannot grow
        latest = TargetCache.open(self.where)
        if latest.layout.marker_key(unit) != self.layout.marker_key(unit):
            if latest.has(unit) and latest.damage(unit):
                latest.drop(unit)  # the objects are ours
            raise CacheError(f"cache '{self.where}' was extended while this job ran; run it again")

    def drop(self, unit: Unit) -> None:
        """Make a unit missing."""
        self.store.remove(self.layout.marker_key(unit))

    def damaged_metadata(self) -> list[str]:
        """Which of zarr's own files are missing, or not as the manifest implies them; other readers need them."""
        expected = self.layout.metadata().items()
        return [
            f"'{name}' is not as it was written"
            for name, data in expected
            if not _holds_json(self.store, name, data)
        ]

    def sweep(self) -> None:
        """Remove what killed writers left behind."""
        for folder in ("", MARKERS, *self.layout.columns):
            self.store.sweep(folder)

    def damage(self, unit: Unit) -> list[str]:
        """What is wrong with a unit that has a marker, object by object."""
        try:
            marker = self._marker(unit)
        except FileNotFoundError:
            return [f"'{self.layout.marker_key(unit)}' is missing"]
        except ValueError as error:
            return [str(error)]
        problems = []
        for name in self.layout.columns:
            key = self.layout.object_key(name, unit)
            try:
                self._object(key, marker)
            except (FileNotFoundError, ValueError) as error:
                problems.append(f"'{key}' {'is missing' if isinstance(error, FileNotFoundError) else error}")
        return problems

    def read(self, seed: int, shard: int) -> Targets:
        """All targets of a shard under a seed; raises CacheError where they are missing or damaged."""
        unit = Unit(seed // self.manifest.seeds_per_unit, shard)
        where = f"cache '{self.where}', seed {seed}, shard {shard}"
        try:
            marker = self._marker(unit)
            columns = {name: self._read(name, unit, seed, marker) for name in self.layout.columns}
        except FileNotFoundError:
            if self.has(unit):
                raise CacheError(f"{where} is damaged: an object is missing; {_REPAIR}") from None
            raise CacheError(f"{where} has no targets yet; finish it with: limbeck cache build RECIPE") from None
        except ValueError as error:
            raise CacheError(f"{where} is damaged ({error}); {_REPAIR}") from None
        targets = Targets(columns)
        if (targets.hard == self.layout.columns["hard"].fill).any():
            raise CacheError(f"{where} has a marker but lacks rows; {_REPAIR}")
        return targets

    def bytes_by_column(self) -> dict[str, int]:
        """Bytes of each array's objects, committed or not."""
        return {
            name: sum(size for key, size in self.store.sizes(name).items() if key != ROOT)
            for name in self.layout.columns
        }

    def estimated_bytes(self, missing: Collection[Unit], sample: int = SAMPLE_UNITS) -> dict[str, int]:
        """Bytes of each array's committed objects, by the markers of a sample of units; of few units, by all.

        Looking at every object of a large cache takes a minute where its markers are listed in a second.
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
            raise CacheError(f"cache '{self.where}': the marker of {unit} cannot be read; {_REPAIR}") from None

    def _read(self, name: str, unit: Unit, seed: int, marker: Plain) -> Array:
        key, column = self.layout.object_key(name, unit), self.layout.columns[name]
        slots = self.manifest.seeds_per_unit
        try:
            chunk = unpack(self._object(key, marker), seed % slots, slots, column.sizes, column.dtype)
        except ValueError as error:
            raise ValueError(f"'{key}' {error}") from None
        rows: Array = chunk[column.index_of(slice(self.rows[unit.shard]))]
        return rows

    def _object(self, key: str, marker: Plain) -> bytes:
        """An object's bytes; raises ValueError where they are not what the marker was written for."""
        data = self.store.get(key)
        if _fingerprint(data) != marker["objects"].get(key):
            raise ValueError("is not what its marker was written for")
        return data

    def _marker(self, unit: Unit) -> Plain:
        """Raises FileNotFoundError, or ValueError for one that cannot be this unit's."""
        try:
            marker: Any = json.loads(self.store.get(self.layout.marker_key(unit)))
            if marker["rows"] != self.rows[unit.shard] or not isinstance(marker["objects"], dict):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"'{self.layout.marker_key(unit)}' cannot be read") from None
        return dict(marker)

    def _pack_object(self, name: str, values: Array) -> bytes:
        column = self.layout.columns[name]
        chunks = np.full((len(values), *column.sizes), column.fill, dtype=column.dtype)
        chunks[column.index_of(slice(values.shape[1 + column.dims.index("row")]))] = values
        return pack(list(chunks), self.manifest.seeds_per_unit)


_REPAIR = "limbeck cache verify names all damage, limbeck cache build RECIPE mends it"


def _fingerprint(data: bytes) -> Plain:
    return {"bytes": len(data), "xxh3": xxhash.xxh3_128_hexdigest(data)}


def _holds_json(store: Store, name: str, data: bytes) -> bool:
    """Whether an object holds this JSON; another version of zarr may add fields to it."""
    try:
        found, expected = json.loads(store.get(name)), json.loads(data)
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(found, dict) and bool(found) and all(expected.get(key) == found[key] for key in found)
