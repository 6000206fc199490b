"""The classifier's inputs and outputs as tensors of the Open Inference Protocol."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.api.tensors import Tensor, parameters_of, write_output
from server.errors import RequestError
from server.ipc.messages import ModelInfo, Pixels, Prediction
from server.schema.base64_image import decode_base64

IMAGE, PIXELS = "image", "pixels"
PROBABILITIES = {"probabilities": "joint", "class_probabilities": "class_", "distill_probabilities": "distill"}
"""Names of the probability outputs, with the attribute of Prediction that each one is."""
LABEL = "label"


def signature(info: ModelInfo) -> dict[str, list[dict[str, Any]]]:
    """Metadata of the inputs and outputs; -1 stands for the number of images. A request has one of the inputs."""
    count, side = len(info.classes), info.size
    return {
        "inputs": [
            {"name": IMAGE, "datatype": "BYTES", "shape": [-1]},
            {"name": PIXELS, "datatype": "UINT8", "shape": [-1, side, side, 3]},
        ],
        "outputs": [
            *({"name": name, "datatype": "FP32", "shape": [-1, count]} for name in _probability_outputs(info)),
            {"name": LABEL, "datatype": "BYTES", "shape": [-1]},
        ],
    }


def images_of(inputs: Iterable[Tensor], info: ModelInfo, max_images: int) -> list[bytes | Pixels]:
    """The images of a request: encoded bytes, or (side, side, 3) uint8 pixels. Raises RequestError."""
    tensors = list(inputs)
    if len(tensors) != 1 or tensors[0].name not in (IMAGE, PIXELS):
        names = ", ".join(f"'{tensor.name}'" for tensor in tensors)
        raise RequestError(f"inputs are {names}; send one input, '{IMAGE}' or '{PIXELS}'")
    (tensor,) = tensors
    images = _read_encoded(tensor) if tensor.name == IMAGE else _read_pixels(tensor, info.size)
    if not 1 <= len(images) <= max_images:
        raise RequestError(f"input '{tensor.name}': {len(images)} images; send 1 to {max_images}")
    return images


def _read_encoded(tensor: Tensor) -> list[bytes | Pixels]:
    if tensor.datatype != "BYTES" or tensor.data.shape[1:] not in ((), (1,)) or tensor.data.ndim == 0:
        raise RequestError(f"input '{IMAGE}': must be BYTES of shape [N] or [N, 1], one encoded image per element")
    images: list[bytes] = tensor.data.ravel().tolist()
    if tensor.parameters.get("content_type") != "base64":
        return [*images]
    try:
        return [decode_base64(image.decode(errors="replace")) for image in images]
    except ValueError as error:
        raise RequestError(f"input '{IMAGE}': an element {error}") from None


def _read_pixels(tensor: Tensor, side: int) -> list[bytes | Pixels]:
    if tensor.datatype != "UINT8" or tensor.data.shape[1:] != (side, side, 3):
        raise RequestError(
            f"input '{PIXELS}': must be UINT8 of shape [N, {side}, {side}, 3]; see the model's metadata"
        )
    return list(np.ascontiguousarray(tensor.data))


def output_tensors(
    header: dict[str, Any], predictions: list[Prediction], info: ModelInfo
) -> list[tuple[dict[str, Any], bytes]]:
    """The requested outputs, or all: JSON entries, each with its binary data (b"" if the data is in the entry)."""
    default = parameters_of(header).get("binary_data_output", False) is True
    written = []
    for name, parameters in _requested_outputs(header, info).items():
        tensor = _output_tensor(name, parameters.get("classification", 0), predictions, info)
        written.append(write_output(tensor, parameters.get("binary_data", default) is True))
    return written


def check_outputs(header: dict[str, Any], info: ModelInfo) -> None:
    """Raise RequestError for an invalid output, before any image is classified."""
    for name, parameters in _requested_outputs(header, info).items():
        top_k = parameters.get("classification", 0)
        if type(top_k) is not int or top_k < 0 or (top_k and name == LABEL):
            raise RequestError(
                f"output '{name}': classification must be a whole number of 0 or more, and 0 for the label"
            )


def _requested_outputs(header: dict[str, Any], info: ModelInfo) -> dict[str, dict[str, Any]]:
    known = [*_probability_outputs(info), LABEL]
    outputs = header.get("outputs") or [{"name": name} for name in known]
    if not isinstance(outputs, list) or not all(isinstance(one, dict) for one in outputs):
        raise RequestError("outputs: must be a list of tensors")
    for one in outputs:
        if one.get("name") not in known:
            raise RequestError(
                f"output '{str(one.get('name'))[:40]}' is unknown; the outputs are {', '.join(known)}"
            )
    return {one["name"]: parameters_of(one) for one in outputs}


def _probability_outputs(info: ModelInfo) -> list[str]:
    return list(PROBABILITIES) if "distill" in info.heads else list(PROBABILITIES)[:2]


def _output_tensor(name: str, top_k: int, predictions: list[Prediction], info: ModelInfo) -> Tensor:
    if name == LABEL:
        labels = [info.classes[int(one.joint.argmax())].encode() for one in predictions]
        return Tensor(name, "BYTES", np.array(labels, dtype=object))
    rows: NDArray[Any] = np.stack([getattr(one, PROBABILITIES[name]) for one in predictions])
    if not top_k:
        return Tensor(name, "FP32", rows)
    order = np.argsort(-rows, axis=1, kind="stable")[:, :top_k]
    elements = [
        [f"{row[i]:f}:{i}:{info.classes[i]}".encode() for i in best] for row, best in zip(rows, order, strict=True)
    ]
    return Tensor(name, "BYTES", np.array(elements, dtype=object))
