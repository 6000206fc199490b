"""Tensors of the Open Inference Protocol: any input is read exactly or refused with a one-line error."""

import json
import struct
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from server.api.tensors import DTYPES, Tensor, read_inputs, split_body, write_output
from server.errors import RequestError

NUMBERS = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda name: arrays.arrays(DTYPES[name], arrays.array_shapes(min_dims=0, max_dims=3)).map(lambda a: (name, a))
)


@given(NUMBERS)
def test_numeric_tensor_round_trips_through_binary(case: tuple[str, np.ndarray[Any, Any]]) -> None:
    name, array = case
    assert np_to_triton_dtype(array.dtype) == name
    entry, raw = write_output(Tensor("x", name, array), binary=True)
    header, tail = split_body(
        json.dumps({"inputs": [entry]}).encode() + raw, str(len(json.dumps({"inputs": [entry]})))
    )
    (back,) = read_inputs(header, tail)
    assert back.data.tobytes() == array.tobytes() and back.data.shape == array.shape


@given(st.lists(st.binary()))
def test_string_tensor_bytes_equal_those_of_tritonclient(values: list[bytes]) -> None:
    array = np.array([*values, None], dtype=object)[:-1]
    entry, raw = write_output(Tensor("x", "BYTES", array), binary=True)
    if values:
        assert raw == serialize_byte_tensor(array).item()
    (back,) = read_inputs({"inputs": [entry]}, memoryview(raw))
    assert back.data.tolist() == values


@given(st.binary(max_size=40))
def test_any_binary_tail_is_read_or_refused(raw: bytes) -> None:
    one = {"name": "x", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(raw)}}
    try:
        (tensor,) = read_inputs({"inputs": [one]}, memoryview(raw))
    except RequestError:
        return
    assert raw == struct.pack("<I", len(raw) - 4) + tensor.data.item()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(JSON, st.sampled_from([*DTYPES, "BYTES", "x", 3]), JSON, JSON)
def test_any_json_is_read_or_refused(data: Any, datatype: Any, shape: Any, parameters: Any) -> None:
    one = {"name": "x", "datatype": datatype, "shape": shape, "data": data, "parameters": parameters}
    try:
        list(read_inputs({"inputs": [one]}, memoryview(b"")))
    except RequestError as error:
        assert "\n" not in str(error)
