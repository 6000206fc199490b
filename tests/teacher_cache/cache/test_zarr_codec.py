"""Our objects and Zarr's sharding codec are compatible: each reads the other's bytes."""

from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from teacher_cache.cache.encoding import Array
from teacher_cache.cache.zarr_codec import COMPRESSION_LEVEL, COMPRESSOR, pack, unpack

DTYPES = st.sampled_from(["uint8", "uint16", "uint32", "uint64", "float16", "float32"])


@st.composite
def blocks(draw: st.DrawFn) -> tuple[list[Array], int]:
    """Chunks of one shape and dtype, and the capacity of their object; a chunk may be all zeros."""
    shape = draw(st.sampled_from([(1,), (7,), (2, 5), (3, 1, 4), (1000,)]))
    dtype, seed = np.dtype(draw(DTYPES)), draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    slots = draw(st.integers(1, 6))
    chunks = [rng.integers(0, 256, (*shape, dtype.itemsize), np.uint8).view(dtype)[..., 0] for _ in range(slots)]
    zeros = draw(st.sets(st.integers(0, slots - 1)))
    chunks = [np.zeros_like(chunk) if n in zeros else chunk for n, chunk in enumerate(chunks)]
    return chunks[: draw(st.integers(0, slots))], slots


def zarr_array(store: dict[str, Any], chunk: Array, slots: int, **options: Any) -> Any:
    return zarr.create_group(MemoryStore(store)).create_array(
        "a",
        shape=(slots, *chunk.shape),
        chunks=(1, *chunk.shape),
        shards=(slots, *chunk.shape),
        dtype=chunk.dtype,
        fill_value=9,
        compressors=(BloscCodec(cname=COMPRESSOR, clevel=COMPRESSION_LEVEL, shuffle="shuffle"), Crc32cCodec()),
        chunk_key_encoding={"name": "default", "separator": "."},
        **options,
    )


def key(chunk: Array) -> str:
    return "a/c.0" + ".0" * chunk.ndim


def same(one: Array, other: Array) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


@settings(max_examples=40)
@given(block=blocks())
def test_zarr_reads_what_we_pack_and_absent_chunks_as_fill(block: tuple[list[Array], int]) -> None:
    chunks, slots = block
    empty = np.zeros(3, np.uint16)
    store: dict[str, Any] = {}
    array = zarr_array(store, chunks[0] if chunks else empty, slots)
    buffer = default_buffer_prototype().buffer
    store[key(chunks[0] if chunks else empty)] = buffer.from_bytes(pack(chunks, slots))
    for slot in range(slots):
        read = array[slot]
        assert same(read, chunks[slot]) if slot < len(chunks) else (read == 9).all()


@settings(max_examples=40)
@given(block=blocks())
def test_we_unpack_what_we_pack(block: tuple[list[Array], int]) -> None:
    chunks, slots = block
    data = pack(chunks, slots)
    assert data == pack([chunk.astype(chunk.dtype.newbyteorder(">")) for chunk in chunks], slots)
    for slot in range(slots):
        if slot < len(chunks):
            assert same(unpack(data, slot, slots, chunks[slot].shape, chunks[slot].dtype), chunks[slot])
        else:
            with pytest.raises(ValueError, match=rf"chunk {slot}\b"):
                unpack(data, slot, slots, (3,), np.dtype(np.uint16))


@settings(max_examples=40)
@given(block=blocks().filter(lambda block: bool(block[0])), empty=st.booleans())
def test_we_unpack_what_zarr_writes(block: tuple[list[Array], int], empty: bool) -> None:
    """Without write_empty_chunks zarr omits chunks of fill values, and a reader finds them absent."""
    chunks, slots = block
    store: dict[str, Any] = {}
    array = zarr_array(store, chunks[0], slots, config={"write_empty_chunks": empty})
    array[: len(chunks)] = np.stack(chunks)
    for slot, chunk in enumerate(chunks):
        if (chunk == 9).all() and not empty:
            continue
        assert same(unpack(store[key(chunk)].to_bytes(), slot, slots, chunk.shape, chunk.dtype), chunk)
    for slot in range(len(chunks), slots):
        if not empty:
            with pytest.raises(ValueError, match=rf"chunk {slot}\b"):
                unpack(store[key(chunks[0])].to_bytes(), slot, slots, chunks[0].shape, chunks[0].dtype)


def test_every_flipped_byte_of_an_object_is_found() -> None:
    """In data, index or their checksums: a flipped byte never gives a wrong value."""
    rng = np.random.default_rng(0)
    chunks = [rng.integers(0, 3, (2, 16)).astype(np.uint8) for _ in range(3)]
    slots = 4
    data = pack(chunks, slots)
    ends = np.cumsum([len(pack([chunk], 1)) - 16 - 4 for chunk in chunks]).tolist()
    assert len(data) == ends[-1] + slots * 16 + 4

    def read(damaged: bytes, slot: int) -> Array:
        return unpack(damaged, slot, slots, chunks[slot].shape, chunks[slot].dtype)

    for at in range(len(data)):
        for bit in (1, 128):
            damaged = data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]
            hit = next((slot for slot, end in enumerate(ends) if at < end), None)
            for slot, chunk in enumerate(chunks):
                if hit in (None, slot):  # the index belongs to all chunks
                    what = "index" if hit is None else f"chunk {slot}"
                    with pytest.raises(ValueError, match=rf"(?=.*checksum)(?=.*{what}\b)"):
                        read(damaged, slot)
                else:
                    assert (read(damaged, slot) == chunk).all()


@settings(max_examples=60)
@given(cut=st.integers(0, 400), extra=st.binary(max_size=40))
def test_an_object_of_another_length_is_found(cut: int, extra: bytes) -> None:
    chunk = np.arange(64, dtype=np.uint16)
    data = pack([chunk, chunk], 2)
    damaged = data[:cut] + extra
    if damaged == data:
        return
    with pytest.raises(ValueError):
        unpack(damaged, 0, 2, chunk.shape, chunk.dtype)
