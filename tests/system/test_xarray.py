"""xarray opens a cache directly and finds our dimension names."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from teacher_cache.cache.target_cache import TargetCache

DIMS = {
    "hard": ("seed", "shard", "row"),
    "digest": ("seed", "shard", "row"),
    "tail": ("seed", "shard", "row"),
    "index": ("seed", "shard", "rank", "row"),
    "value": ("seed", "shard", "rank", "row"),
    "logits": ("seed", "shard", "row", "class"),
    "scale": ("seed", "shard", "row"),
    "offset": ("seed", "shard", "row"),
}
KINDS = ("hard", "topk", "dense", "topk uint8", "dense uint8")


def opened(path: str | Path) -> Any:
    return xarray.open_zarr(path, consolidated=False, chunks=None)


@pytest.mark.parametrize("kind", KINDS)
def test_named_dimensions_select_what_read_returns(made_up: Any, kind: str, tmp_path: Path) -> None:
    cache = made_up.fill(TargetCache.create(tmp_path / "a.zarr", made_up.make_manifest(kind)))
    with opened(cache.where) as group:
        assert set(group.data_vars) == set(cache.layout.columns)
        assert group.sizes["seed"] == 5 and group.sizes["shard"] == 3 and group.sizes["row"] == 7
        for name in group.data_vars:
            assert group[name].dims == DIMS[name]
        for seed in range(5):
            for shard, rows in enumerate(cache.rows):
                chosen = group.isel(seed=seed, shard=shard, row=slice(rows))
                for name, values in cache.read(seed, shard).columns.items():
                    assert chosen[name].dtype == values.dtype
                    assert np.array_equal(chosen[name].values, values)
                    picked = group[name].sel(seed=seed, shard=shard).sel(row=rows - 1)
                    assert np.array_equal(picked.values, values[cache.layout.columns[name].index_of(rows - 1)])


@pytest.mark.parametrize("kind", KINDS)
def test_missing_rows_are_absent(made_up: Any, kind: str, tmp_path: Path) -> None:
    """Padding, and rows of an unwritten unit: all ones for integers, NaN for floats."""
    cache = TargetCache.create(tmp_path / "a.zarr", made_up.make_manifest(kind))
    unit = next(iter(cache.layout.units()))
    cache.write(unit, made_up.columns(cache, unit))
    with opened(cache.where) as group:
        for name, column in cache.layout.columns.items():
            padded, unwritten = group[name].isel(seed=0, shard=0, row=slice(3, None)), group[name].isel(seed=4)
            for absent in (padded.values, unwritten.values):
                assert np.array_equal(
                    absent, np.full_like(absent, column.fill), equal_nan=absent.dtype.kind == "f"
                )


def test_the_manifest_is_an_attribute(made_up: Any, tmp_path: Path) -> None:
    cache = made_up.fill(TargetCache.create(tmp_path / "a.zarr", made_up.make_manifest()))
    with opened(cache.where) as group:
        assert group.attrs["limbeck"]["shards"]["rows"] == cache.rows
        assert group.attrs["limbeck"]["seeds"] == 5
