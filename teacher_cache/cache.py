"""The teacher cache: Zarr arrays of targets by seed, shard and row, and the markers that make a unit count."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.errors import GroupNotFoundError

from teacher_cache.disk import sync_file, sync_folder, whole_folder, write_durably
from teacher_cache.encoding import Array, Encoding
from teacher_cache.errors import CacheError
from teacher_cache.manifest import Manifest, read_manifest

MARKERS = "units"
ATTRIBUTE = "limbeck"


@dataclass(frozen=True, order=True)
class Unit:
    """What is computed and committed at once: one shard under a block of seeds."""

    block: int
    shard: int


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


class TargetCache:
    """One cache on disk. Made by `create` or `open`; everything else goes through a unit or a (seed, shard)."""

    def __init__(self, path: Path, group: zarr.Group, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        rows = manifest.shards["rows"]
        self.rows: list[int] = rows
        self.encoding = Encoding(classes=len(manifest.shards["classes"]), **manifest.encoding)
        self._columns = self.encoding.columns(max(rows))
        stored: dict[str, Any] = {name: group[name] for name in self._columns}
        self._arrays = {name: array.with_config({"write_empty_chunks": True}) for name, array in stored.items()}
        self._present: set[Unit] | None = None
        self._verified: set[Unit] = set()

    @classmethod
    def create(cls, path: Path, manifest: Manifest) -> "TargetCache":
        """Make an empty cache, whole or not at all; where another process was first, open that one."""
        encoding = Encoding(classes=len(manifest.shards["classes"]), **manifest.encoding)
        try:
            with whole_folder(path) as temporary:
                group = zarr.create_group(temporary, attributes={ATTRIBUTE: manifest.plain()})
                for name, column in encoding.columns(max(manifest.shards["rows"])).items():
                    group.create_array(
                        name,
                        shape=(manifest.seeds, len(manifest.shards["rows"]), *column.sizes),
                        chunks=(1, 1, *column.sizes),
                        shards=(manifest.seeds_per_unit, 1, *column.sizes),
                        dtype=column.dtype,
                        fill_value=column.fill,
                        compressors=[BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"), Crc32cCodec()],
                        dimension_names=("seed", "shard", *column.dims),
                        chunk_key_encoding={"name": "default", "separator": "."},
                    )
                (temporary / MARKERS).mkdir()
        except FileExistsError:
            if not (path / "zarr.json").exists():
                raise CacheError(f"'{path}' is there and is no cache; choose another cache.path") from None
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> "TargetCache":
        """Open a cache; raises CacheError where there is none or it is of another format."""
        try:
            (path / "zarr.json").stat()  # zarr would make a folder where there is none
            group = zarr.open_group(path, mode="r+")
            plain: Any = group.attrs[ATTRIBUTE]
        except (GroupNotFoundError, FileNotFoundError, NotADirectoryError, KeyError, ValueError):
            raise CacheError(f"no teacher cache at '{path}'; make one with: limbeck cache build RECIPE") from None
        try:
            return cls(path, group, read_manifest(dict(plain), str(path)))
        except (KeyError, TypeError, ValueError) as error:
            raise CacheError(f"cache '{path}' is damaged ({error}); restore it or build a new cache") from None

    def units(self) -> Iterator[Unit]:
        """Every unit the manifest promises, in order."""
        manifest = self.manifest
        for block in range(-(-manifest.seeds // manifest.seeds_per_unit)):
            for shard in range(len(self.rows)):
                yield Unit(block, shard)

    def seeds(self, unit: Unit) -> range:
        first = unit.block * self.manifest.seeds_per_unit
        return range(first, min(first + self.manifest.seeds_per_unit, self.manifest.seeds))

    def present(self) -> set[Unit]:
        """The units with a commit marker, read anew."""
        names = (marker.name.split(".") for marker in (self.path / MARKERS).iterdir())
        self._present = {Unit(*map(int, name)) for name in names if len(name) == 2 and all(map(str.isdigit, name))}
        return self._present

    def missing(self) -> list[Unit]:
        present = self.present()
        return [unit for unit in self.units() if unit not in present]

    def write(self, unit: Unit, columns: dict[str, Array]) -> None:
        """Write a unit wholly, make it durable, and only then set its marker; one that has a marker is let be.

        columns: for each column (seeds of the unit, rows of the shard, ...) with row in its place.
        """
        if self._marker(unit).exists():
            return
        objects = {}
        for name, array in self._arrays.items():
            column = self._columns[name]
            seeds = self.seeds(unit)
            padded = np.full((len(seeds), *column.sizes), column.fill, dtype=column.dtype)
            places = [slice(None)] * columns[name].ndim
            places[1 + column.dims.index("row")] = slice(self.rows[unit.shard])
            padded[tuple(places)] = columns[name]
            key = self._key(name, unit)
            try:
                array[seeds.start : seeds.stop, unit.shard] = padded
            except ValueError:  # zarr reads what is there first, and it is damaged
                (self.path / key).unlink()
                array[seeds.start : seeds.stop, unit.shard] = padded
            objects[key] = _fingerprint(self.path / key)
            sync_file(self.path / key)
            sync_folder((self.path / key).parent)
        marker = {"rows": self.rows[unit.shard], "objects": objects}
        write_durably(self._marker(unit), (json.dumps(marker) + "\n").encode())

    def read(self, seed: int, shard: int) -> Targets:
        """All targets of a shard under a seed; raises CacheError where they are missing or damaged."""
        unit = Unit(seed // self.manifest.seeds_per_unit, shard)
        if self._present is None or unit not in self._present:
            self.present()
        if self._present is None or unit not in self._present:
            raise CacheError(
                f"cache '{self.path}' has no targets yet for seed {seed}, shard {shard}; "
                "finish it with: limbeck cache build RECIPE"
            )
        try:
            self._verify(unit)
            whole = {name: np.asarray(array[seed, shard]) for name, array in self._arrays.items()}
        except (KeyError, ValueError, RuntimeError, OSError) as error:
            raise CacheError(
                f"cache '{self.path}', seed {seed}, shard {shard} is damaged ({error}); "
                f"remove '{self._marker(unit)}' and build again"
            ) from None
        rows = self.rows[shard]
        columns = {
            name: values[tuple(slice(rows) if dim == "row" else slice(None) for dim in self._columns[name].dims)]
            for name, values in whole.items()
        }
        targets = Targets(columns)
        if (targets.hard == self._columns["hard"].fill).any():
            raise CacheError(
                f"cache '{self.path}', seed {seed}, shard {shard} has a marker but lacks rows; "
                f"remove '{self._marker(unit)}' and build again"
            )
        return targets

    def _verify(self, unit: Unit) -> None:
        """Compare a unit's objects with its marker, once; a missing one would read as fill values."""
        if unit in self._verified:
            return
        written = json.loads(self._marker(unit).read_bytes())["objects"]
        for key in (self._key(name, unit) for name in self._arrays):
            if _fingerprint(self.path / key) != written[key]:
                raise ValueError(f"'{key}' is not what the marker was written for")
        self._verified.add(unit)

    def bytes_by_column(self) -> dict[str, int]:
        """Bytes on disk of each array's committed and uncommitted objects."""
        return {name: sum(file.stat().st_size for file in (self.path / name).glob("c.*")) for name in self._arrays}

    def _key(self, name: str, unit: Unit) -> str:
        rest = ".0" * len(self._columns[name].sizes)
        return f"{name}/c.{unit.block}.{unit.shard}{rest}"

    def _marker(self, unit: Unit) -> Path:
        return self.path / MARKERS / f"{unit.block}.{unit.shard}"


def _fingerprint(path: Path) -> dict[str, int | str]:
    data = path.read_bytes()
    return {"bytes": len(data), "xxh3": xxhash.xxh3_128_hexdigest(data)}
