"""Read and write tensors of the Open Inference Protocol, in JSON or with its binary tensor data extension."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import pydantic_core
from numpy.typing import NDArray

from server.errors import RequestError
from server.schema.mistakes import mistake_in_json
from server.web.body import utf8_json

DTYPES = {
    "BOOL": "?",
    **{f"UINT{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
}
"""NumPy dtype of each numeric datatype of the protocol. The other datatype is BYTES."""

HEADER_LENGTH = "Inference-Header-Content-Length"
"""Header with the length of the JSON part of a body."""

_LENGTH = struct.Struct("<I")
_MAX_DIMENSIONS = 8
_MAX_LENGTH_DIGITS = 20


@dataclass(frozen=True)
class Tensor:
    """A named array. For datatype BYTES, `data` is an object array of `bytes`."""

    name: str
    datatype: str
    data: NDArray[Any]
    parameters: dict[str, Any] = field(default_factory=dict)


def split_body(body: bytes, header_length: str | None) -> tuple[dict[str, Any], memoryview]:
    """Split a body into its JSON object and the binary tail. Raises RequestError, or HTTPException 400 for UTF-16.

    header_length: length of the JSON in bytes, from the request's header; None if all of the body is JSON.
    """
    view = memoryview(body)
    length = len(body)
    if header_length is not None:
        digits = header_length.isascii() and header_length.isdigit() and len(header_length) <= _MAX_LENGTH_DIGITS
        if not digits or int(header_length) > length:
            raise RequestError(f"{HEADER_LENGTH} '{header_length[:20]}' is not from 0 to {length} (the body)")
        length = int(header_length)
    text = bytes(view[:length])
    try:
        header = pydantic_core.from_json(utf8_json(text))
    except ValueError as error:
        if header_length is None and b'"binary_data_size"' in text:
            raise RequestError(
                f"the header {HEADER_LENGTH} is missing; send the length of the JSON in it"
            ) from None
        raise RequestError(f"the request is not JSON: {mistake_in_json(text) or error}") from None
    if not isinstance(header, dict):
        raise RequestError("the request is not a JSON object")
    return header, view[length:]


def read_inputs(header: dict[str, Any], tail: memoryview) -> Iterator[Tensor]:
    """The tensors of `inputs`; the data of binary ones is in the tail, in order. Raises RequestError."""
    inputs = header.get("inputs")
    if not isinstance(inputs, list) or not inputs or not all(isinstance(one, dict) for one in inputs):
        raise RequestError("inputs: must be a list of tensors")
    for entry in inputs:
        name, size = str(entry.get("name", ""))[:100], parameters_of(entry).get("binary_data_size")
        if size is None:
            yield _parse_tensor(entry, name, entry.get("data"))
            continue
        if type(size) is not int or not 0 <= size <= len(tail):
            raise RequestError(
                f"input '{name}': binary_data_size must be from 0 to the {len(tail)} bytes left in the body"
            )
        yield _parse_tensor(entry, name, tail[:size])
        tail = tail[size:]
    if tail:
        raise RequestError(f"{len(tail)} bytes after the last tensor; set binary_data_size of each input")


def parameters_of(part: dict[str, Any]) -> dict[str, Any]:
    """`parameters` of a request, an input or an output. Raises RequestError, also for shared memory."""
    parameters = part.get("parameters", {})
    if not isinstance(parameters, dict):
        raise RequestError("parameters: must be an object")
    if "shared_memory_region" in parameters:
        raise RequestError("shared memory is not supported; send the tensor's data")
    return parameters


def _parse_tensor(entry: dict[str, Any], name: str, data: Any) -> Tensor:
    shape, datatype = entry.get("shape"), entry.get("datatype")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS:
        raise RequestError(f"input '{name}': shape must be a list of at most {_MAX_DIMENSIONS} whole numbers")
    if not all(type(side) is int and 0 <= side < 2**31 for side in shape):
        raise RequestError(f"input '{name}': shape must be a list of whole numbers")
    if not isinstance(datatype, str) or (datatype != "BYTES" and datatype not in DTYPES):
        raise RequestError(f"input '{name}': datatype '{str(datatype)[:20]}' is unknown")
    array = _from_tail(name, datatype, data) if isinstance(data, memoryview) else _from_json(name, datatype, data)
    if array.size != prod(shape):
        raise RequestError(f"input '{name}': shape {shape} needs {prod(shape)} elements; found {array.size}")
    return Tensor(name, datatype, array.reshape(shape), parameters_of(entry))


def _from_tail(name: str, datatype: str, data: memoryview) -> NDArray[Any]:
    if datatype == "BYTES":
        return _object_array(list(_split_strings(name, data)))
    dtype = np.dtype(DTYPES[datatype])
    if len(data) % dtype.itemsize:
        raise RequestError(f"input '{name}': {len(data)} bytes are not a multiple of the size of {datatype}")
    return np.frombuffer(data, dtype)


def _split_strings(name: str, data: memoryview) -> Iterator[bytes]:
    start = 0
    while start < len(data):
        begin = start + _LENGTH.size
        end = begin + _LENGTH.unpack_from(data, start)[0] if begin <= len(data) else len(data) + 1
        if end > len(data):
            raise RequestError(f"input '{name}': the length of an element exceeds the tensor's data")
        yield bytes(data[begin:end])
        start = end


def _from_json(name: str, datatype: str, data: Any) -> NDArray[Any]:
    if not isinstance(data, list):
        raise RequestError(f"input '{name}': data is missing; send a list, or binary_data_size and binary data")
    if datatype == "BYTES":
        flat = list(_flatten(data))
        if not all(isinstance(one, str) for one in flat):
            raise RequestError(f"input '{name}': the elements of BYTES must be strings")
        return _object_array([one.encode("utf-8", "surrogatepass") for one in flat])
    mismatch = RequestError(f"input '{name}': data must be a list of numbers that fit {datatype}, nested evenly")
    try:
        with np.errstate(all="ignore"):
            values = np.asarray(data)
            array = values.astype(DTYPES[datatype])
    except (ValueError, TypeError, OverflowError):
        raise mismatch from None
    if data and not (values.dtype.kind in "biuf" and (datatype.startswith("FP") or np.array_equal(values, array))):
        raise mismatch
    return array


def _flatten(data: list[Any]) -> Iterator[Any]:
    stack = [iter(data)]
    while stack:
        for one in stack[-1]:
            if isinstance(one, list):
                stack.append(iter(one))
                break
            yield one
        else:
            stack.pop()


def _object_array(values: list[bytes]) -> NDArray[Any]:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def write_output(tensor: Tensor, binary: bool) -> tuple[dict[str, Any], bytes]:
    """The JSON entry of an output, and its binary data (b"" if the data is in the entry)."""
    entry: dict[str, Any] = {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.data.shape),
    }
    if not binary:
        flat = tensor.data.ravel().tolist()
        return entry | {"data": [one.decode() for one in flat] if tensor.datatype == "BYTES" else flat}, b""
    if tensor.datatype == "BYTES":
        raw = b"".join(_LENGTH.pack(len(one)) + one for one in tensor.data.ravel().tolist())
    else:
        raw = tensor.data.astype(DTYPES[tensor.datatype], copy=False).tobytes()
    return entry | {"parameters": {"binary_data_size": len(raw)}}, raw
