"""The Zarr group that a manifest defines: units, object keys and metadata."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from teacher_cache.cache.manifest import Manifest
from teacher_cache.cache.zarr_codec import COMPRESSION_LEVEL, COMPRESSOR

ROOT = "zarr.json"
ATTRIBUTE = "limbeck"
MARKERS = "units"


@dataclass(frozen=True, order=True)
class Unit:
    """One shard under a block of seeds: labeled and committed at once."""

    block: int
    shard: int


class Layout:
    """Units, object keys and metadata of a cache.

    A marker's name contains the unit's seeds, so a unit that gets more seeds has a new marker.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest, self.rows = manifest, manifest.rows
        self._block_count = -(-manifest.seeds // manifest.seeds_per_unit)
        self.columns = manifest.codec.columns(max(self.rows))

    def units(self) -> Iterator[Unit]:
        """All units, in order of block, then shard."""
        return (Unit(block, shard) for block in range(self._block_count) for shard in range(len(self.rows)))

    def unit_at(self, number: int) -> Unit:
        """The unit with this index in `units()`."""
        return Unit(*divmod(number, len(self.rows)))

    @property
    def unit_count(self) -> int:
        """Number of units."""
        return self._block_count * len(self.rows)

    def seeds(self, unit: Unit) -> range:
        """The seeds of a unit; the last block may have fewer."""
        size, seeds = self.manifest.seeds_per_unit, self.manifest.seeds
        return range(unit.block * size, min((unit.block + 1) * size, seeds))

    def marker_name(self, unit: Unit) -> str:
        """FIRST-END.SHARD; END is exclusive."""
        seeds = self.seeds(unit)
        return f"{seeds.start}-{seeds.stop}.{unit.shard}"

    def units_without_marker(self, marker_names: set[str]) -> list[Unit]:
        """The units whose marker name is not in the set, in order.

        Creates Unit objects only for the result, which is faster for large caches.
        """
        shards = [str(shard) for shard in range(len(self.rows))]
        units = []
        for block in range(self._block_count):
            prefix = self.marker_name(Unit(block, 0)).removesuffix("0")
            units += [Unit(block, int(shard)) for shard in shards if prefix + shard not in marker_names]
        return units

    def marker_key(self, unit: Unit) -> str:
        return f"{MARKERS}/{self.marker_name(unit)}"

    def object_key(self, column: str, unit: Unit) -> str:
        """The key of the object with a unit's part of a column."""
        return f"{column}/c.{unit.block}.{unit.shard}" + ".0" * len(self.columns[column].sizes)

    def metadata(self) -> dict[str, bytes]:
        """Key -> zarr.json content, written by zarr: the root with the manifest first, then the arrays."""
        import zarr  # slow to import; only needed to create or verify a cache
        from zarr.codecs import BloscCodec, Crc32cCodec
        from zarr.storage import MemoryStore

        manifest = self.manifest
        objects: dict[str, Any] = {}
        group = zarr.create_group(MemoryStore(objects), attributes={ATTRIBUTE: manifest.with_checksum()})
        group.create_group(MARKERS)  # zarr and xarray warn about folders without metadata
        for name, column in self.columns.items():
            group.create_array(
                name,
                shape=(manifest.seeds, len(self.rows), *column.sizes),
                chunks=(1, 1, *column.sizes),
                shards=(manifest.seeds_per_unit, 1, *column.sizes),
                dtype=column.dtype,
                fill_value=column.fill,
                compressors=(
                    BloscCodec(cname=COMPRESSOR, clevel=COMPRESSION_LEVEL, shuffle="shuffle"),
                    Crc32cCodec(),
                ),
                dimension_names=("seed", "shard", *column.dims),
                chunk_key_encoding={"name": "default", "separator": "."},
            )
        return {name: bytes(objects[name].to_bytes()) for name in sorted(objects, key=lambda name: name != ROOT)}


def stored_manifest(root: bytes) -> Any:
    """The manifest stored in the bytes of a root zarr.json.

    Raises KeyError, TypeError or ValueError if it does not contain one.
    """
    return json.loads(root)["attributes"][ATTRIBUTE]
